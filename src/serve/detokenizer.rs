//! From the bytes of tokens to text that can be shown: never a part of a character, never what may become a
//! stop string.

/// Collects the text of an output.
pub(super) struct Detokenizer {
    stops: Vec<String>,
    /// Text that may become a stop string.
    pending_text: String,
    /// Bytes that may become a character.
    pending_bytes: Vec<u8>,
    /// Bytes of text shown.
    shown: usize,
    /// Characters of text shown and pending.
    characters: usize,
}

/// Text that can be shown now.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct DecodedText {
    /// The text.
    pub text: String,
    /// Whether a stop string came after it, so that nothing more is shown.
    pub is_stopped: bool,
}

impl Detokenizer {
    /// For an output that these strings stop.
    pub fn new(stops: Vec<String>) -> Self {
        Self {
            stops,
            pending_text: String::new(),
            pending_bytes: Vec::new(),
            shown: 0,
            characters: 0,
        }
    }

    /// Length of the text so far, shown or not, in bytes.
    pub fn end(&self) -> usize {
        self.shown + self.pending_text.len()
    }

    /// Length of the text so far, in characters.
    pub fn end_in_characters(&self) -> usize {
        self.characters
    }

    /// Length of the text that is shown, in bytes.
    pub fn shown(&self) -> usize {
        self.shown
    }

    /// Adds a part of the prompt, in which stop strings have no effect.
    pub fn push_prompt(&mut self, bytes: &[u8]) -> String {
        self.decode(bytes);
        self.show(self.pending_text.len())
    }

    /// Adds the bytes of a token.
    pub fn push(&mut self, bytes: &[u8]) -> DecodedText {
        self.decode(bytes);
        self.show_up_to_stop()
    }

    /// Shows the rest at the end: a part of a character becomes U+FFFD.
    pub fn finish(&mut self) -> DecodedText {
        if !self.pending_bytes.is_empty() {
            self.pending_bytes.clear();
            self.pending_text.push(char::REPLACEMENT_CHARACTER);
            self.characters += 1;
        }
        let decoded = self.show_up_to_stop();
        if decoded.is_stopped {
            return decoded;
        }
        let rest = self.show(self.pending_text.len());
        DecodedText { text: decoded.text + &rest, is_stopped: false }
    }

    /// Moves whole characters from the bytes to the text.
    fn decode(&mut self, bytes: &[u8]) {
        let mut all = std::mem::take(&mut self.pending_bytes);
        all.extend_from_slice(bytes);
        let before = self.pending_text.len();
        let mut rest = all.as_slice();
        loop {
            match std::str::from_utf8(rest) {
                Ok(text) => {
                    self.pending_text.push_str(text);
                    break;
                }
                Err(error) => {
                    let (good, bad) = rest.split_at(error.valid_up_to());
                    self.pending_text.push_str(&String::from_utf8_lossy(good));
                    let Some(length) = error.error_len() else {
                        // The bytes end in the middle of a character.
                        self.pending_bytes = bad.to_vec();
                        break;
                    };
                    self.pending_text.push(char::REPLACEMENT_CHARACTER);
                    rest = &bad[length..];
                }
            }
        }
        self.characters += self.pending_text[before..].chars().count();
    }

    /// Shows the text that is no stop string and cannot become one.
    fn show_up_to_stop(&mut self) -> DecodedText {
        let found =
            self.stops.iter().filter_map(|stop| self.pending_text.find(stop.as_str())).min();
        if let Some(start) = found {
            let text = self.show(start);
            return DecodedText { text, is_stopped: true };
        }
        let text = self.show(self.pending_text.len() - self.longest_beginning_of_a_stop());
        DecodedText { text, is_stopped: false }
    }

    /// Length of the longest end of the pending text with which a stop string begins.
    fn longest_beginning_of_a_stop(&self) -> usize {
        let mut longest = 0;
        for stop in &self.stops {
            for (length, _) in stop.char_indices().skip(1) {
                if length > longest && self.pending_text.ends_with(&stop[..length]) {
                    longest = length;
                }
            }
        }
        longest
    }

    fn show(&mut self, length: usize) -> String {
        let rest = self.pending_text.split_off(length);
        self.shown += length;
        std::mem::replace(&mut self.pending_text, rest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn detokenizer(stops: &[&str]) -> Detokenizer {
        Detokenizer::new(stops.iter().map(|stop| (*stop).to_owned()).collect())
    }

    /// Pushes pieces; what is shown after each, until a stop string comes.
    fn shown(stops: &[&str], pieces: &[&[u8]]) -> (Vec<String>, bool) {
        let mut detokenizer = detokenizer(stops);
        let mut texts = Vec::new();
        for piece in pieces {
            let decoded = detokenizer.push(piece);
            texts.push(decoded.text);
            if decoded.is_stopped {
                return (texts, true);
            }
        }
        let rest = detokenizer.finish();
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
    fn what_may_become_a_stop_string_is_held_back() {
        let (texts, is_stopped) = shown(&["END"], &[b"one E", b"N", b"ough E", b"ND more"]);
        assert_eq!(
            (texts, is_stopped),
            (vec!["one ".to_owned(), String::new(), "ENough ".to_owned(), String::new(),], true)
        );
        let (texts, is_stopped) = shown(&["END"], &[b"one EN"]);
        assert_eq!((texts.concat().as_str(), is_stopped), ("one EN", false));
    }

    #[test]
    fn the_earliest_stop_string_ends_an_answer() {
        assert_eq!(shown(&["END", "\n"], &[b"one\ntwo END"]).0, ["one"]);
        assert_eq!(shown(&["END", "\n"], &[b"one END\n"]).0, ["one "]);
        assert_eq!(
            shown(&["aab"], &[b"a", b"a", b"a", b"b"]).0.concat(),
            "a",
            "beginnings overlap"
        );
    }

    #[test]
    fn the_prompt_is_shown_whole_even_with_a_stop_string_in_it() {
        let mut detokenizer = detokenizer(&["b"]);
        assert_eq!(detokenizer.push_prompt(b"abc\xc3"), "abc");
        assert_eq!(
            detokenizer.push(b"\xa9b"),
            DecodedText { text: "é".to_owned(), is_stopped: true }
        );
        assert_eq!((detokenizer.shown(), detokenizer.end_in_characters()), (5, 5));
    }

    proptest::proptest! {
        #[test]
        fn however_a_text_is_cut_it_comes_out_whole_and_without_the_stop_string(
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
