//! The bytes that single tokens stand for, which need not be whole characters.

use std::collections::HashMap;

use tokenizers::DecoderWrapper;

/// How a vocabulary writes bytes.
pub(super) enum Spelling {
    /// A printable character for each byte (GPT-2's way).
    ByteLevel(HashMap<char, u8>),
    /// Characters, `▁` for a space; `<0x0A>` is a byte of a character that has no token.
    Pieces,
}

impl Spelling {
    /// What this decoder reads.
    pub(super) fn of(decoder: Option<&DecoderWrapper>) -> Self {
        let is_byte_level = match decoder {
            Some(DecoderWrapper::ByteLevel(_)) => true,
            Some(DecoderWrapper::Sequence(sequence)) => sequence
                .get_decoders()
                .iter()
                .any(|decoder| matches!(decoder, DecoderWrapper::ByteLevel(_))),
            _ => false,
        };
        if is_byte_level { Self::ByteLevel(byte_level()) } else { Self::Pieces }
    }

    /// The bytes of a token of the vocabulary, in the middle of a text.
    pub(super) fn bytes(&self, piece: &str) -> Vec<u8> {
        match self {
            Self::ByteLevel(bytes) => {
                let mapped: Option<Vec<u8>> =
                    piece.chars().map(|character| bytes.get(&character).copied()).collect();
                // A token with other characters stands for itself, as in the decoder.
                mapped.unwrap_or_else(|| piece.as_bytes().to_vec())
            }
            Self::Pieces => match hexadecimal(piece) {
                Some(byte) => vec![byte],
                None => piece.replace('▁', " ").into_bytes(),
            },
        }
    }
}

/// The byte that `<0x0A>` is.
fn hexadecimal(piece: &str) -> Option<u8> {
    let digits = piece.strip_prefix("<0x")?.strip_suffix('>')?;
    if digits.len() == 2 { u8::from_str_radix(digits, 16).ok() } else { None }
}

/// GPT-2's characters for bytes: printable ones of Latin-1 stand for themselves, the others, in
/// order, have those from U+0100 on.
fn byte_level() -> HashMap<char, u8> {
    let mut next = 0x100;
    let mut table = HashMap::with_capacity(256);
    for byte in 0..=u8::MAX {
        let is_printable = matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
        let character = if is_printable {
            Some(char::from(byte))
        } else {
            next += 1;
            char::from_u32(next - 1)
        };
        table.extend(character.map(|character| (character, byte)));
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_has_a_character_of_its_own() {
        let table = byte_level();
        assert_eq!(table.len(), 256);
        assert_eq!(table[&'Ġ'], b' ');
        assert_eq!(table[&'Ċ'], b'\n');
        assert_eq!(table[&'é'], 0xe9);
        let spelling = Spelling::ByteLevel(table);
        assert_eq!(spelling.bytes("Ã©Ġ"), "é ".as_bytes());
        assert_eq!(spelling.bytes("é中"), "é中".as_bytes(), "no bytes: itself");
    }

    #[test]
    fn pieces_are_characters_spaces_and_single_bytes() {
        let spelling = Spelling::Pieces;
        assert_eq!(spelling.bytes("▁a▁b"), b" a b");
        assert_eq!(spelling.bytes("<0xE2>"), [0xe2]);
        assert_eq!(spelling.bytes("<0xEE2>"), b"<0xEE2>");
    }
}
