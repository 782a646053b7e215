//! Reasoning: what an assistant thinks before its answer, in data and in prompts.

/// How a model writes its reasoning in an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReasoningTags {
    /// Comes before the reasoning.
    pub begin: String,
    /// Comes behind it.
    pub end: String,
    /// Whether the prompt has written `begin` already.
    pub is_open: bool,
}

impl ReasoningTags {
    /// Of answers to `prompt`, by a model with the template `source`; `None` where neither says that it reasons.
    pub(super) fn of(source: &str, prompt: &str) -> Option<Self> {
        if let Some(opened) = OpenedReasoning::at_end_of(prompt) {
            return Some(Self { begin: opened.begin.to_owned(), end: opened.end, is_open: true });
        }
        let known = [(BEGIN, END), ("[THINK]", "[/THINK]")];
        let (begin, end) = known.into_iter().find(|(_, end)| source.contains(end))?;
        Some(Self { begin: begin.to_owned(), end: end.to_owned(), is_open: false })
    }
}

/// Words of a tag between which models think.
const WORDS: [&str; 3] = ["think", "reason", "thought"];

/// The tags around reasoning in contents.
const BEGIN: &str = "<think>";
const END: &str = "</think>";

/// A prompt that ends with an opened block of reasoning, as `…<think>\n`.
#[derive(Debug, PartialEq, Eq)]
pub struct OpenedReasoning<'a> {
    /// The prompt before the block.
    pub before: &'a str,
    /// The tag that opens it.
    pub begin: &'a str,
    /// The tag that closes it.
    pub end: String,
    /// Whether the tags stand on lines of their own.
    pub has_lines: bool,
}

impl<'a> OpenedReasoning<'a> {
    /// The block at the end of a prompt, if it opens one.
    pub fn at_end_of(prompt: &'a str) -> Option<Self> {
        let trimmed = prompt.trim_end();
        let (open, close) = match trimmed.chars().next_back()? {
            '>' => ('<', '>'),
            ']' => ('[', ']'),
            _ => return None,
        };
        let start = trimmed.rfind(open)?;
        let begin = &trimmed[start..];
        let name = begin.trim_start_matches(open).trim_end_matches(close);
        let is_tag = !name.is_empty() && !name.contains(char::is_whitespace);
        let lower = name.to_lowercase();
        if !is_tag || lower.starts_with('/') || !WORDS.iter().any(|word| lower.contains(word)) {
            return None;
        }
        Some(Self {
            before: &trimmed[..start],
            begin,
            end: format!("{open}/{name}{close}"),
            has_lines: prompt[trimmed.len()..].contains('\n'),
        })
    }

    /// What the model writes after the prompt: the rest of the block, and the answer.
    pub fn continuation(&self, reasoning: &str, answer: &str) -> String {
        let (line, gap) = if self.has_lines { ("\n", "\n\n") } else { ("", "") };
        let reasoning = reasoning.trim_matches('\n');
        let answer = answer.trim_start_matches('\n');
        format!("{reasoning}{line}{}{gap}{answer}", self.end)
    }
}

/// The reasoning of a content that begins with it, and the rest; `None` for a content without.
pub fn split(content: &str) -> Option<(&str, &str)> {
    let (reasoning, answer) = content.rsplit_once(END)?;
    Some((reasoning.rsplit_once(BEGIN).map_or(reasoning, |(_, inner)| inner), answer))
}
