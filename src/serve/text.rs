//! Bytes of tokens to text that may be shown: never half a character, never what may yet become a
//! stop text.

/// Collects an answer's text.
pub(super) struct TextWriter {
    stops: Vec<String>,
    /// Text that may yet become a stop text.
    held: String,
    /// Bytes that may yet become a character.
    tail: Vec<u8>,
    /// Bytes of text released.
    released: usize,
    /// Characters of text released and held.
    characters: usize,
}

/// What may be shown after some more bytes.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Released {
    /// The text.
    pub text: String,
    /// Whether a stop text came after it: nothing more is shown.
    pub is_stopped: bool,
}

impl TextWriter {
    /// Of an answer that these texts end.
    pub fn new(stops: Vec<String>) -> Self {
        Self { stops, held: String::new(), tail: Vec::new(), released: 0, characters: 0 }
    }

    /// Where the text ends so far, shown or not, in bytes.
    pub fn end(&self) -> usize {
        self.released + self.held.len()
    }

    /// Where it ends, in characters.
    pub fn end_in_characters(&self) -> usize {
        self.characters
    }

    /// How much of it is shown, in bytes.
    pub fn released(&self) -> usize {
        self.released
    }

    /// Adds a part of the prompt, in which stop texts end nothing.
    pub fn push_prompt(&mut self, bytes: &[u8]) -> String {
        self.decode(bytes);
        self.release(self.held.len())
    }

    /// Adds the bytes of a token.
    pub fn push(&mut self, bytes: &[u8]) -> Released {
        self.decode(bytes);
        self.look()
    }

    /// What is left at the end: half a character becomes U+FFFD.
    pub fn finish(&mut self) -> Released {
        if !self.tail.is_empty() {
            self.tail.clear();
            self.held.push(char::REPLACEMENT_CHARACTER);
            self.characters += 1;
        }
        let seen = self.look();
        if seen.is_stopped {
            return seen;
        }
        let rest = self.release(self.held.len());
        Released { text: seen.text + &rest, is_stopped: false }
    }

    /// Moves whole characters from the bytes to the text.
    fn decode(&mut self, bytes: &[u8]) {
        let mut all = std::mem::take(&mut self.tail);
        all.extend_from_slice(bytes);
        let before = self.held.len();
        let mut rest = all.as_slice();
        loop {
            match std::str::from_utf8(rest) {
                Ok(text) => {
                    self.held.push_str(text);
                    break;
                }
                Err(error) => {
                    let (good, bad) = rest.split_at(error.valid_up_to());
                    self.held.push_str(&String::from_utf8_lossy(good));
                    let Some(length) = error.error_len() else {
                        // The end of the bytes came in the middle of a character.
                        self.tail = bad.to_vec();
                        break;
                    };
                    self.held.push(char::REPLACEMENT_CHARACTER);
                    rest = &bad[length..];
                }
            }
        }
        self.characters += self.held[before..].chars().count();
    }

    /// Releases what is no stop text and cannot become one.
    fn look(&mut self) -> Released {
        let found = self.stops.iter().filter_map(|stop| self.held.find(stop.as_str())).min();
        if let Some(start) = found {
            let text = self.release(start);
            return Released { text, is_stopped: true };
        }
        let text = self.release(self.held.len() - self.longest_beginning_of_a_stop());
        Released { text, is_stopped: false }
    }

    /// Length of the longest end of the held text with which a stop text begins.
    fn longest_beginning_of_a_stop(&self) -> usize {
        let mut longest = 0;
        for stop in &self.stops {
            for (length, _) in stop.char_indices().skip(1) {
                if length > longest && self.held.ends_with(&stop[..length]) {
                    longest = length;
                }
            }
        }
        longest
    }

    fn release(&mut self, length: usize) -> String {
        let rest = self.held.split_off(length);
        self.released += length;
        std::mem::replace(&mut self.held, rest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn writer(stops: &[&str]) -> TextWriter {
        TextWriter::new(stops.iter().map(|stop| (*stop).to_owned()).collect())
    }

    /// Pushes pieces; what is shown after each, until a stop text comes.
    fn shown(stops: &[&str], pieces: &[&[u8]]) -> (Vec<String>, bool) {
        let mut writer = writer(stops);
        let mut texts = Vec::new();
        for piece in pieces {
            let released = writer.push(piece);
            texts.push(released.text);
            if released.is_stopped {
                return (texts, true);
            }
        }
        let rest = writer.finish();
        texts.push(rest.text);
        (texts, rest.is_stopped)
    }

    #[test]
    fn a_character_is_shown_when_its_last_byte_has_come() {
        let pieces: [&[u8]; 4] = [b"a\xf0\x9f", b"\x98", b"\x80b", b"\xc3"];
        let (texts, _) = shown(&[], &pieces);
        assert_eq!(texts, ["a", "", "😀b", "", "\u{fffd}"]);
        let (texts, _) = shown(&[], &[b"\xf0\x9fx"]);
        assert_eq!(texts.concat(), "\u{fffd}x", "what cannot become a character does not wait");
    }

    #[test]
    fn what_may_become_a_stop_text_is_held_back() {
        let (texts, is_stopped) = shown(&["END"], &[b"one E", b"N", b"ough E", b"ND more"]);
        assert_eq!(
            (texts, is_stopped),
            (vec!["one ".to_owned(), String::new(), "ENough ".to_owned(), String::new(),], true)
        );
        let (texts, is_stopped) = shown(&["END"], &[b"one EN"]);
        assert_eq!((texts.concat().as_str(), is_stopped), ("one EN", false));
    }

    #[test]
    fn the_earliest_stop_text_ends_an_answer() {
        assert_eq!(shown(&["END", "\n"], &[b"one\ntwo END"]).0, ["one"]);
        assert_eq!(shown(&["END", "\n"], &[b"one END\n"]).0, ["one "]);
        assert_eq!(
            shown(&["aab"], &[b"a", b"a", b"a", b"b"]).0.concat(),
            "a",
            "beginnings overlap"
        );
    }

    #[test]
    fn the_prompt_is_shown_whole_even_with_a_stop_text_in_it() {
        let mut writer = writer(&["b"]);
        assert_eq!(writer.push_prompt(b"abc\xc3"), "abc");
        assert_eq!(writer.push(b"\xa9b"), Released { text: "é".to_owned(), is_stopped: true });
        assert_eq!((writer.released(), writer.end_in_characters()), (5, 5));
    }

    proptest::proptest! {
        #[test]
        fn however_a_text_is_cut_it_comes_out_whole_and_without_the_stop_text(
            text in "[abé😀]{0,30}",
            stop in "[abé]{1,3}",
            cuts in proptest::collection::vec(1usize..4, 0..60),
        ) {
            let mut rest = text.as_bytes();
            let mut pieces = Vec::new();
            for cut in cuts {
                let (piece, others) = rest.split_at(cut.min(rest.len()));
                pieces.push(piece);
                rest = others;
            }
            pieces.push(rest);
            let (all, _) = shown(&[], &pieces);
            proptest::prop_assert_eq!(all.concat(), text.as_str());
            let (texts, is_stopped) = shown(&[&stop], &pieces);
            let wanted = text.split_once(&stop).map(|(before, _)| before);
            proptest::prop_assert_eq!(texts.concat(), wanted.unwrap_or(&text));
            proptest::prop_assert_eq!(is_stopped, wanted.is_some());
        }
    }
}
