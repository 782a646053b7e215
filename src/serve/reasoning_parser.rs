//! Separates what a model thinks from what it answers, while it is generated.

use crate::train::model::chat_template::ReasoningTags;

/// New text of an output, by its kind.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct SplitText {
    /// More of the reasoning.
    pub reasoning: String,
    /// More of the answer.
    pub answer: String,
}

/// Separates reasoning from the answer. The line breaks that templates put around the tags belong to neither.
pub(super) struct ReasoningParser {
    tags: ReasoningTags,
    state: State,
    /// Text whose kind is not known yet.
    pending: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Before the first character that is not white space.
    Start,
    /// Behind the opening tag, before the reasoning.
    Opened,
    Reasoning,
    /// Behind the closing tag, before the answer.
    Closed,
    Answer,
}

impl ReasoningParser {
    /// For an output whose reasoning stands between these tags.
    pub fn new(tags: ReasoningTags) -> Self {
        let state = if tags.is_open { State::Opened } else { State::Start };
        Self { tags, state, pending: String::new() }
    }

    /// Whether what comes next is reasoning, or the tag that closes it.
    pub fn is_reasoning(&self) -> bool {
        matches!(self.state, State::Opened | State::Reasoning)
    }

    /// Whether a control token's text is one of the tags.
    pub fn is_tag(&self, text: &[u8]) -> bool {
        [&self.tags.begin, &self.tags.end].iter().any(|tag| tag.as_bytes() == text)
    }

    /// Adds text. What is certain by now.
    pub fn push(&mut self, text: &str) -> SplitText {
        self.pending += text;
        let mut split = SplitText::default();
        while self.advance(&mut split) {}
        split
    }

    /// The rest: the output has ended.
    pub fn finish(&mut self) -> SplitText {
        let rest = std::mem::take(&mut self.pending);
        match self.state {
            State::Start | State::Answer | State::Closed => {
                SplitText { answer: rest, ..SplitText::default() }
            }
            State::Opened | State::Reasoning => {
                SplitText { reasoning: rest.trim_end().to_owned(), ..SplitText::default() }
            }
        }
    }

    /// Moves pending text on; whether the state has changed.
    fn advance(&mut self, split: &mut SplitText) -> bool {
        match self.state {
            State::Start => {
                let begun = self.pending.trim_start();
                if let Some(rest) = begun.strip_prefix(&self.tags.begin) {
                    self.pending = rest.to_owned();
                    self.state = State::Opened;
                    return true;
                }
                // White space alone, or a part of the tag, decides nothing.
                if self.tags.begin.starts_with(begun) {
                    return false;
                }
                self.state = State::Answer;
                true
            }
            State::Opened => self.skip_line_breaks(State::Reasoning),
            State::Closed => self.skip_line_breaks(State::Answer),
            State::Reasoning => {
                if let Some((reasoning, rest)) = self.pending.split_once(&self.tags.end) {
                    split.reasoning += reasoning.trim_end();
                    self.pending = rest.to_owned();
                    self.state = State::Closed;
                    return true;
                }
                // The closing tag may have begun, and white space before it belongs to it.
                let partial = (0..self.tags.end.len())
                    .rev()
                    .find(|length| {
                        self.tags.end.get(..*length).is_some_and(|tag| self.pending.ends_with(tag))
                    })
                    .unwrap_or(0);
                let certain = self.pending[..self.pending.len() - partial].trim_end().len();
                split.reasoning.extend(self.pending.drain(..certain));
                false
            }
            State::Answer => {
                split.answer += &std::mem::take(&mut self.pending);
                false
            }
        }
    }

    fn skip_line_breaks(&mut self, next: State) -> bool {
        let breaks = self.pending.len() - self.pending.trim_start_matches(['\n', '\r']).len();
        self.pending.drain(..breaks);
        if self.pending.is_empty() {
            return false;
        }
        self.state = next;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split(is_open: bool, pieces: &[&str]) -> (String, String) {
        let tags = ReasoningTags { begin: "<think>".into(), end: "</think>".into(), is_open };
        let mut parser = ReasoningParser::new(tags);
        let (mut reasoning, mut answer) = (String::new(), String::new());
        for made in pieces.iter().map(|piece| parser.push(piece)).collect::<Vec<_>>() {
            reasoning += &made.reasoning;
            answer += &made.answer;
        }
        let rest = parser.finish();
        (reasoning + &rest.reasoning, answer + &rest.answer)
    }

    #[test]
    fn reasoning_and_answer_are_parted_wherever_the_text_is_cut() {
        let whole = "<think>\nHm, a < b.\n\nSo.\n</think>\n\nYes </b>.";
        for first in 0..=whole.len() {
            for second in first..=whole.len() {
                let pieces = [&whole[..first], &whole[first..second], &whole[second..]];
                let (reasoning, answer) = split(false, &pieces);
                assert_eq!(
                    (reasoning.as_str(), answer.as_str()),
                    ("Hm, a < b.\n\nSo.", "Yes </b>.")
                );
            }
        }
    }

    #[test]
    fn a_block_that_the_prompt_has_opened_needs_no_opening_tag() {
        assert_eq!(split(true, &["\n</thi", "nk>\n\nYes."]), (String::new(), "Yes.".into()));
        assert_eq!(split(true, &["plan\n</think>", "\n\nYes."]), ("plan".into(), "Yes.".into()));
        assert_eq!(split(true, &["never ends\n"]), ("never ends".into(), String::new()));
    }

    #[test]
    fn an_answer_without_reasoning_stays_as_it_is() {
        assert_eq!(split(false, &[" \n<thi", "s> a\n"]), (String::new(), " \n<this> a\n".into()));
        assert_eq!(split(false, &["a <think>b</think>"]).1, "a <think>b</think>");
        assert_eq!(split(false, &[" "]), (String::new(), " ".into()));
    }
}
