//! How much longer texts become where a tokenizer's file says what characters are replaced with. A file may let them
//! grow without end: each of sixty steps that double a text.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde_json::Value;

use super::error::TokenizerError;

/// Most bytes that a byte of a text may become by all replacements of a chain.
const MOST_GROWTH: f64 = 256.0;

/// Most tokens beside the vocabulary: each is looked for in every text.
const MOST_ADDED_TOKENS: usize = 1 << 16;

/// Longest table of replacements (`Precompiled`); real ones have some 300 kB.
const MOST_TABLE_BYTES: usize = 2 << 20;

/// The parts of a `tokenizer.json` that write texts.
#[derive(Deserialize)]
struct WritingParts {
    #[serde(default)]
    normalizer: Value,
    #[serde(default)]
    pre_tokenizer: Value,
    #[serde(default)]
    decoder: Value,
    #[serde(default)]
    added_tokens: Vec<serde::de::IgnoredAny>,
}

/// Refuses a `tokenizer.json` whose texts may grow without end.
///
/// # Errors
/// Names the part that does it.
pub(super) fn refuse_growth(file: &[u8]) -> Result<(), TokenizerError> {
    // What is no tokenizer at all is refused, in words of its own, by whoever reads it.
    let Ok(parts) = serde_json::from_slice::<WritingParts>(file) else { return Ok(()) };
    let named = [
        ("normalizer", &parts.normalizer),
        ("pre_tokenizer", &parts.pre_tokenizer),
        ("decoder", &parts.decoder),
    ];
    for (name, part) in named {
        if growth(part) > MOST_GROWTH {
            return Err(TokenizerError(format!(
                "its {name} lets a text become more than {MOST_GROWTH} times as long"
            )));
        }
    }
    if parts.added_tokens.len() > MOST_ADDED_TOKENS {
        let count = parts.added_tokens.len();
        let message = format!("it has {count} added_tokens; {MOST_ADDED_TOKENS} at most");
        return Err(TokenizerError(message));
    }
    Ok(())
}

/// The most bytes that one byte becomes.
fn growth(part: &Value) -> f64 {
    const LISTS: [&str; 3] = ["normalizers", "pretokenizers", "decoders"];
    let length = |key: &str| part[key].as_str().map_or(0.0, |text| text.len() as f64);
    match part["type"].as_str() {
        Some("Sequence") => {
            let members = LISTS.iter().filter_map(|key| part[key].as_array()).flatten();
            members.map(growth).product()
        }
        Some("Replace") => match part["pattern"]["String"].as_str() {
            Some(pattern) if !pattern.is_empty() => {
                (length("content") / pattern.len() as f64).max(1.0)
            }
            // An expression may fit before every byte.
            _ => 1.0 + length("content"),
        },
        Some("Prepend") => 1.0 + length("prepend"),
        Some("Precompiled") => growth_of_table(part["precompiled_charsmap"].as_str()),
        _ => 1.0,
    }
}

/// The longest text in a table of SentencePiece's: the length of a search tree, the tree, and what its entries become,
/// each with a zero byte behind it.
fn growth_of_table(table: Option<&str>) -> f64 {
    let bytes = table.and_then(|text| STANDARD.decode(text).ok()).unwrap_or_default();
    if bytes.len() > MOST_TABLE_BYTES {
        return f64::INFINITY;
    }
    let Some((tree, rest)) = bytes.split_first_chunk::<4>() else { return 1.0 };
    let texts = rest.get(u32::from_le_bytes(*tree) as usize..).unwrap_or_default();
    texts.split(|byte| *byte == 0).map(<[u8]>::len).max().unwrap_or_default().max(1) as f64
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn refused(file: &Value) -> Option<String> {
        refuse_growth(file.to_string().as_bytes()).err().map(|error| error.to_string())
    }

    #[test]
    fn a_tokenizer_whose_texts_grow_without_end_is_refused_by_the_part_that_does_it() {
        let replace = |pattern: Value, content: &str| json!({"type": "Replace", "pattern": pattern, "content": content});
        let doubles = replace(json!({"String": "a"}), "aa");
        let chain = json!({"type": "Sequence", "normalizers": vec![doubles.clone(); 60]});
        let nested = json!({"type": "Sequence", "normalizers": [chain, {"type": "NFC"}]});
        let long = replace(json!({"Regex": ""}), &"x".repeat(1000));
        assert!(
            refused(&json!({"normalizer": nested})).is_some_and(|said| said.contains("normalizer"))
        );
        assert!(refused(&json!({"normalizer": long})).is_some());
        let precompiled = json!({"type": "Precompiled", "precompiled_charsmap": table(10_000)});
        assert!(refused(&json!({"normalizer": precompiled})).is_some());
        let decoders = json!({"type": "Sequence", "decoders": vec![doubles; 60]});
        assert!(
            refused(&json!({"decoder": decoders})).is_some_and(|said| said.contains("decoder"))
        );
        let tokens: Vec<Value> = (0..=MOST_ADDED_TOKENS).map(|id| json!({"id": id})).collect();
        assert!(refused(&json!({"added_tokens": tokens})).is_some());
    }

    /// A table with an empty tree and one text.
    fn table(length: usize) -> String {
        STANDARD.encode([&[0u8; 4][..], "x".repeat(length).as_bytes(), &[0]].concat())
    }

    #[test]
    fn the_replacements_of_real_tokenizers_are_taken() {
        let llama = json!({"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]});
        let albert = json!({"type": "Sequence", "normalizers": [
            {"type": "Replace", "pattern": {"String": "``"}, "content": "\""},
            {"type": "NFKD"}, {"type": "StripAccents"}, {"type": "Lowercase"},
            {"type": "Precompiled", "precompiled_charsmap": table(18)},
            {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "}]});
        for normalizer in [Value::Null, llama, albert] {
            assert_eq!(refused(&json!({"normalizer": normalizer})), None);
        }
    }
}
