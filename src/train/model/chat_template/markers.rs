//! Characters that stand for something while a template renders.

use std::ops::RangeInclusive;

/// Private-use characters that hone writes into texts itself: around a stand-in for a text, inside of a text that
/// is spelled like a control token, around a control token. A conversation that holds one of them is refused.
pub(super) const RESERVED: RangeInclusive<char> = '\u{e000}'..='\u{e006}';

/// Stands for a text of a message.
pub(super) const STAND_IN: &str = "\u{e000}0\u{e001}";

/// The filter whose block stands where a template has `{% generation %}`.
pub(super) const GENERATION_FILTER: &str = "hone_generation";

/// The template with `{% generation %}` blocks turned into blocks of a filter that marks what they
/// hold.
pub(super) fn mark_generation(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find("{%") {
        let Some(length) = rest[start..].find("%}") else { break };
        let tag = &rest[start..start + length + 2];
        let word = tag[2..tag.len() - 2].trim_matches(['-', '+']).trim();
        out.push_str(&rest[..start]);
        match word {
            "generation" => {
                out.push_str(&tag.replacen(word, &format!("filter {GENERATION_FILTER}"), 1));
            }
            "endgeneration" => out.push_str(&tag.replacen(word, "endfilter", 1)),
            _ => out.push_str(tag),
        }
        rest = &rest[start + length + 2..];
    }
    out.push_str(rest);
    out
}
