//! The file name in a field's `Content-Disposition`, as clients write it: `filename*` (RFC 5987, and in pieces
//! by RFC 2231), else `filename`, in UTF-8 or in encoded words (RFC 2047).

use base64::Engine;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use percent_encoding::percent_decode_str;

/// Base64 with padding or without, as encoded words have it.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new()
        .with_decode_allow_trailing_bits(true)
        .with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// Most pieces of a name in pieces.
const MAX_PIECES: usize = 64;

/// The file name of a `Content-Disposition`; `None` without one, or when it is not UTF-8. It is as the client sent
/// it: it may hold folders.
pub(super) fn file_name(disposition: &[u8]) -> Option<String> {
    let parameters = parameters(std::str::from_utf8(disposition).ok()?);
    let find = |wanted: &str| {
        let found = parameters.iter().find(|(name, _)| name.eq_ignore_ascii_case(wanted));
        found.map(|(_, value)| value.as_str())
    };
    let extended = find("filename*").and_then(extended);
    let plain = || find("filename").map(decode_words);
    extended.or_else(|| in_pieces(find)).or_else(plain)
}

/// The parameters of a header: names and values without their quotes.
fn parameters(header: &str) -> Vec<(&str, String)> {
    let mut parameters = Vec::new();
    let mut rest = header.split_once(';').map_or("", |(_kind, rest)| rest);
    while !rest.is_empty() {
        let Some((name, after)) = rest.split_once('=') else { break };
        let after = after.trim_start();
        let (value, next) = match after.strip_prefix('"') {
            Some(quoted) => {
                let end = closing_quote(quoted);
                // A backslash alone stays: names of Windows' files have them.
                (quoted[..end].replace("\\\"", "\""), quoted.get(end + 1..).unwrap_or_default())
            }
            None => {
                let end = after.find(';').unwrap_or(after.len());
                (after[..end].trim().to_owned(), &after[end..])
            }
        };
        // A parameter without a value stands before this name.
        let name = name.rsplit(';').next().unwrap_or(name);
        parameters.push((name.trim(), value));
        rest = next.split_once(';').map_or("", |(_space, next)| next);
    }
    parameters
}

/// Where a text in quotes ends.
fn closing_quote(text: &str) -> usize {
    let bytes = text.as_bytes();
    let mut ends = memchr::memchr_iter(b'"', bytes);
    ends.find(|end| *end == 0 || bytes[end - 1] != b'\\').unwrap_or(text.len())
}

/// `charset'language'percent-encoded`; `None` in another character set.
fn extended(value: &str) -> Option<String> {
    let (charset, rest) = value.split_once('\'')?;
    let (_language, text) = rest.split_once('\'')?;
    decode_bytes(charset, percent_decode_str(text).collect())
}

/// A name in pieces: `filename*0*=utf-8''a%20; filename*1="b"`.
fn in_pieces<'a>(find: impl Fn(&str) -> Option<&'a str>) -> Option<String> {
    let mut bytes = Vec::new();
    let mut charset = "utf-8";
    for number in 0..MAX_PIECES {
        if let Some(piece) = find(&format!("filename*{number}*")) {
            let mut text = piece;
            if number == 0 {
                let (name, rest) = piece.split_once('\'')?;
                charset = name;
                text = rest.split_once('\'')?.1;
            }
            bytes.extend(percent_decode_str(text));
        } else if let Some(piece) = find(&format!("filename*{number}")) {
            bytes.extend_from_slice(piece.as_bytes());
        } else {
            break;
        }
    }
    if bytes.is_empty() { None } else { decode_bytes(charset, bytes) }
}

/// A text with its encoded words (`=?utf-8?B?…?=`) decoded. A word that cannot be read stays as it is.
fn decode_words(text: &str) -> String {
    let mut decoded = String::new();
    let mut words = EncodedWords::default();
    let mut rest = text;
    while let Some(start) = rest.find("=?") {
        let (before, word) = rest.split_at(start);
        let Some((charset, bytes, length)) = encoded_word(word) else {
            words.end(&mut decoded);
            decoded.push_str(&rest[..start + 2]);
            rest = &rest[start + 2..];
            continue;
        };
        // White space between two words belongs to neither.
        if !before.trim().is_empty() || words.charset.is_none() {
            words.end(&mut decoded);
            decoded.push_str(before);
        }
        words.take(charset, bytes, &word[..length], &mut decoded);
        rest = &word[length..];
    }
    words.end(&mut decoded);
    decoded.push_str(rest);
    decoded
}

/// Encoded words that follow each other: a character may begin in one and end in the next.
#[derive(Default)]
struct EncodedWords<'a> {
    charset: Option<&'a str>,
    bytes: Vec<u8>,
    source: String,
}

impl<'a> EncodedWords<'a> {
    fn take(&mut self, charset: &'a str, bytes: Vec<u8>, source: &str, decoded: &mut String) {
        if self.charset.is_some_and(|before| !before.eq_ignore_ascii_case(charset)) {
            self.end(decoded);
        }
        self.charset = Some(charset);
        self.bytes.extend(bytes);
        self.source.push_str(source);
    }

    fn end(&mut self, decoded: &mut String) {
        let Some(charset) = self.charset.take() else { return };
        let (bytes, source) = (std::mem::take(&mut self.bytes), std::mem::take(&mut self.source));
        decoded.push_str(&decode_bytes(charset, bytes).unwrap_or(source));
    }
}

/// The encoded word at the beginning of a text: character set, bytes, and its length in the text.
fn encoded_word(text: &str) -> Option<(&str, Vec<u8>, usize)> {
    let (charset, rest) = text.strip_prefix("=?")?.split_once('?')?;
    let (encoding, rest) = rest.split_once('?')?;
    let (content, after) = rest.split_once("?=")?;
    let bytes = match encoding {
        "B" | "b" => BASE64.decode(content).ok()?,
        "Q" | "q" => {
            // As percent-encoding, with another mark and another space.
            let percent = content.replace('%', "%25").replace('=', "%").replace('_', " ");
            percent_decode_str(&percent).collect()
        }
        _ => return None,
    };
    // RFC 2231 allows a language behind the character set.
    let charset = charset.split('*').next().unwrap_or(charset);
    Some((charset, bytes, text.len() - after.len()))
}

/// Bytes in a character set as text; `None` when they are not, or in an unknown one.
fn decode_bytes(charset: &str, bytes: Vec<u8>) -> Option<String> {
    match charset.to_ascii_lowercase().as_str() {
        "utf-8" | "utf8" | "us-ascii" | "ascii" | "" => String::from_utf8(bytes).ok(),
        "iso-8859-1" | "latin1" => Some(bytes.into_iter().map(char::from).collect()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(parameters: &str) -> Option<String> {
        file_name(format!("form-data; name=\"file\"; {parameters}").as_bytes())
    }

    #[test]
    fn the_name_is_read_as_clients_write_it() {
        for (parameters, wanted) in [
            // As it is.
            (r#"filename="a b.jsonl""#, "a b.jsonl"),
            (r#"filename="训练.jsonl""#, "训练.jsonl"),
            (r#"filename="a\"b; x=\"y.jsonl"; x="z""#, "a\"b; x=\"y.jsonl"),
            (r#"filename="..\..\boot.ini""#, r"..\..\boot.ini"),
            ("filename=a.jsonl; size=3", "a.jsonl"),
            (r#"FileName = "a.jsonl""#, "a.jsonl"),
            (r#"filename="%2e%2fx""#, "%2e%2fx"),
            // RFC 5987 wins, wherever it stands.
            (r#"filename="x"; filename*=utf-8''%E8%AE%AD%E7%BB%83.jsonl"#, "训练.jsonl"),
            (r#"filename*=UTF-8'en'a%20b.jsonl; filename="x""#, "a b.jsonl"),
            (r#"filename*="utf-8''a%2Fb.jsonl""#, "a/b.jsonl"),
            ("filename*=iso-8859-1''%e4.jsonl", "ä.jsonl"),
            // Of another character set the plain name is better than nothing.
            (r#"filename*=gb2312''%D1%B5; filename="plain.jsonl""#, "plain.jsonl"),
            // In pieces.
            (r#"filename*0*=utf-8''%E8%AE; filename*1*=%AD; filename*2=".jsonl""#, "训.jsonl"),
            (r#"filename*0="a "; filename*1="b.jsonl""#, "a b.jsonl"),
            // Encoded words.
            (r#"filename="=?utf-8?B?6K6t57uDLmpzb25s?=""#, "训练.jsonl"),
            (r#"filename="=?UTF-8?b?6K6t57uDLmpzb25s?=""#, "训练.jsonl"),
            // A slash of base64 is no folder.
            (r#"filename="=?utf-8?B?w7/Dvw==?=""#, "ÿÿ"),
            (r#"filename="=?utf-8?Q?=E8=AE=AD_a=2Ejsonl?=""#, "训 a.jsonl"),
            (r#"filename="=?iso-8859-1?Q?=E4.jsonl?=""#, "ä.jsonl"),
            (r#"filename="=?utf-8?B?6K6t?= =?utf-8?B?57uD?=.jsonl""#, "训练.jsonl"),
            // A character that is cut by the end of a word.
            (r#"filename="=?utf-8?B?6K4=?= =?utf-8?B?rQ==?=""#, "训"),
            // What cannot be read stays.
            (r#"filename="=?utf-8?X?a?=""#, "=?utf-8?X?a?="),
            (r#"filename="=?gb2312?B?0bU=?=""#, "=?gb2312?B?0bU=?="),
            (r#"filename="a=?b""#, "a=?b"),
            (r#"filename="""#, ""),
        ] {
            assert_eq!(name(parameters).as_deref(), Some(wanted), "{parameters}");
        }
        assert_eq!(name("size=3"), None);
        assert_eq!(file_name(b"form-data; filename=\"\xff\xfe\""), None);
    }

    proptest::proptest! {
        #[test]
        fn no_header_makes_it_panic(header in "[a-z =?*;'\"\\\\%0-9/_é]{0,60}") {
            let _ = file_name(header.as_bytes());
            let _ = name(&header);
            let _ = name(&format!("filename=\"=?utf-8?{header}"));
        }
    }
}
