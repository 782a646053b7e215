//! Finds tool calls in a text while it is generated.

use super::events::CalledTool;
use super::tool_format::{
    ARGUMENTS, END_TAG, LIST, PYTHON, TAG, ToolFormat, calls_in, listed_calls,
};

/// A part of an output.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum OutputPart {
    /// Text to show.
    Text(String),
    /// A tool call.
    Call(CalledTool),
}

/// Separates tool calls from text. What turns out to be no call stays text, unchanged.
pub(super) struct ToolCallParser {
    format: ToolFormat,
    /// Text that is, or may become, a call.
    pending: String,
    /// Whether text was shown.
    has_text: bool,
    calls: usize,
    most_calls: usize,
}

impl ToolCallParser {
    /// For an output in this format with at most this many calls.
    pub fn new(format: ToolFormat, most_calls: usize) -> Self {
        Self { format, pending: String::new(), has_text: false, calls: 0, most_calls }
    }

    /// Whether a control token's text is a part of the format.
    pub fn is_mark(&self, text: &[u8]) -> bool {
        let marks: &[&str] = match self.format {
            ToolFormat::Tagged => &[TAG, END_TAG],
            ToolFormat::Listed => &[LIST, ARGUMENTS],
            ToolFormat::Bare => &[PYTHON],
        };
        marks.iter().any(|mark| mark.as_bytes() == text)
    }

    /// How many calls there were.
    pub fn calls(&self) -> usize {
        self.calls
    }

    /// Whether there are as many calls as allowed.
    pub fn is_full(&self) -> bool {
        self.calls >= self.most_calls
    }

    /// Adds text. The parts that are certain by now.
    pub fn push(&mut self, text: &str) -> Vec<OutputPart> {
        self.pending += text;
        let mut parts = Vec::new();
        match self.format {
            ToolFormat::Tagged => self.read_tags(&mut parts),
            ToolFormat::Listed => {
                if !self.pending.contains(LIST) {
                    self.show_up_to(
                        &mut parts,
                        self.pending.len() - beginning_of(&self.pending, LIST),
                    );
                }
            }
            ToolFormat::Bare => {
                let begun = self.pending.trim_start();
                let may_be_call = begun.starts_with('{')
                    || PYTHON.starts_with(begun)
                    || begun.starts_with(PYTHON);
                if self.has_text || !may_be_call {
                    self.show_up_to(&mut parts, self.pending.len());
                }
            }
        }
        parts
    }

    /// The rest, at the end of the output.
    pub fn finish(&mut self) -> Vec<OutputPart> {
        let mut parts = Vec::new();
        let pending = std::mem::take(&mut self.pending);
        let (text, calls) = match self.format {
            // A stop token may come in place of the last tag.
            ToolFormat::Tagged => match pending.split_once(TAG) {
                Some((text, call)) => (text, calls_in(call)),
                None => (pending.as_str(), None),
            },
            ToolFormat::Listed => match pending.split_once(LIST) {
                Some((text, calls)) => (text, listed_calls(calls)),
                None => (pending.as_str(), None),
            },
            ToolFormat::Bare if self.has_text => (pending.as_str(), None),
            ToolFormat::Bare => {
                let call = pending.trim_start();
                ("", calls_in(call.strip_prefix(PYTHON).unwrap_or(call)))
            }
        };
        match calls {
            Some(calls) => {
                self.show(&mut parts, text.trim_end());
                for call in calls {
                    self.call(&mut parts, call);
                }
            }
            // Blank lines after the last call are no text.
            None if self.calls > 0 && pending.trim().is_empty() => {}
            None => self.show(&mut parts, &pending),
        }
        parts
    }

    fn read_tags(&mut self, parts: &mut Vec<OutputPart>) {
        while let Some(start) = self.pending.find(TAG) {
            let after = start + TAG.len();
            let Some(length) = self.pending[after..].find(END_TAG) else {
                self.show_up_to(parts, start);
                return;
            };
            let whole = after + length + END_TAG.len();
            match calls_in(&self.pending[after..after + length]) {
                Some(calls) => {
                    self.show_up_to(parts, start);
                    // Removes the blank lines before the call, and the call itself.
                    self.pending
                        .drain(..self.pending.find(END_TAG).unwrap_or_default() + END_TAG.len());
                    for call in calls {
                        self.call(parts, call);
                    }
                }
                None => {
                    let text: String = self.pending.drain(..whole).collect();
                    self.show(parts, &text);
                }
            }
        }
        self.show_up_to(parts, self.pending.len() - beginning_of(&self.pending, TAG));
    }

    /// Shows the pending text up to `end`. White space at its end stays pending: before a call it is no
    /// text.
    fn show_up_to(&mut self, parts: &mut Vec<OutputPart>, end: usize) {
        let text = self.pending[..end].trim_end();
        let rest = self.pending.split_off(text.len());
        let text = std::mem::replace(&mut self.pending, rest);
        self.show(parts, &text);
    }

    fn show(&mut self, parts: &mut Vec<OutputPart>, text: &str) {
        if !text.is_empty() {
            self.has_text = true;
            parts.push(OutputPart::Text(text.to_owned()));
        }
    }

    fn call(&mut self, parts: &mut Vec<OutputPart>, call: CalledTool) {
        if !self.is_full() {
            self.calls += 1;
            parts.push(OutputPart::Call(call));
        }
    }
}

/// Number of bytes at the end of a text that may be the beginning of a mark.
fn beginning_of(text: &str, mark: &str) -> usize {
    let mut lengths = (1..mark.len()).rev();
    lengths.find(|length| text.ends_with(&mark[..*length])).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads a text in parts of `size` characters: the text that is shown, and the calls.
    fn read(format: ToolFormat, text: &str, size: usize) -> (String, Vec<CalledTool>) {
        let mut parser = ToolCallParser::new(format, usize::MAX);
        let characters: Vec<char> = text.chars().collect();
        let mut parts = Vec::new();
        for part in characters.chunks(size) {
            parts.extend(parser.push(&part.iter().collect::<String>()));
        }
        parts.extend(parser.finish());
        let (mut shown, mut calls) = (String::new(), Vec::new());
        for part in parts {
            match part {
                OutputPart::Text(text) => shown += &text,
                OutputPart::Call(call) => calls.push(call),
            }
        }
        assert_eq!(parser.calls(), calls.len());
        (shown, calls)
    }

    fn call(name: &str, arguments: &str) -> CalledTool {
        CalledTool { name: name.to_owned(), arguments: arguments.to_owned() }
    }

    #[test]
    fn calls_are_read_however_the_text_is_cut() {
        use ToolFormat::{Bare, Listed, Tagged};
        let two = [call("f", r#"{"a":1}"#), call("g", "{}")];
        let one = &two[..1];
        for (format, text, shown, calls) in [
            (
                Tagged,
                "<tool_call>\n{\"name\": \"f\", \"arguments\": {\"a\": 1}}\n</tool_call>",
                "",
                one,
            ),
            (
                Tagged,
                "Look:\n\n<tool_call>{\"name\":\"f\",\"arguments\":{\"a\":1}}</tool_call>\n<tool_call>{\"name\":\"g\",\"arguments\":{}}</tool_call>\n",
                "Look:",
                &two,
            ),
            (Tagged, "<tool_call>{\"name\":\"f\",\"arguments\":\"{\\\"a\\\":1}\"}", "", one),
            (
                Listed,
                "[TOOL_CALLS] [{\"name\": \"f\", \"arguments\": {\"a\": 1}}, {\"name\": \"g\", \"arguments\": {}}]",
                "",
                &two,
            ),
            (Listed, "Ok [TOOL_CALLS]f[ARGS]{\"a\": 1}[TOOL_CALLS]g[ARGS]{}", "Ok", &two),
            (Bare, "{\"name\": \"f\", \"parameters\": {\"a\": 1}}", "", one),
            (
                Bare,
                "\n<|python_tag|>{\"name\":\"f\",\"parameters\":{\"a\":1}}; {\"name\":\"g\",\"parameters\":{}}",
                "",
                &two,
            ),
        ] {
            for size in [1, 2, 3, 7, 1000] {
                assert_eq!(read(format, text, size), (shown.to_owned(), calls.to_vec()), "{text}");
            }
        }
    }

    #[test]
    fn what_is_no_call_stays_the_text_that_it_is() {
        use ToolFormat::{Bare, Listed, Tagged};
        for (format, text) in [
            (Tagged, "a <b> <tool c"),
            (Tagged, "x <tool_call>\nnot JSON\n</tool_call> y \n"),
            (Tagged, "<tool_call>{\"name\": \"f\""),
            (Tagged, "<tool_call>{\"name\": 3}</tool_call>"),
            (Listed, "[TOOL_CALLS] nothing"),
            (Listed, "[TOOL_CALLS] [] "),
            (Listed, "a [TOOL "),
            (Bare, "{\"answer\": 3}"),
            (Bare, "{\"name\": \"Ada\"}"),
            (Bare, "{\"name\": \"f\"} and more"),
            (Bare, "Hello {\"name\": \"f\"}\n"),
            (Bare, "  "),
        ] {
            for size in [1, 3, 1000] {
                assert_eq!(read(format, text, size), (text.to_owned(), Vec::new()), "{text}");
            }
        }
    }

    #[test]
    fn an_output_that_may_call_once_is_full_after_one_call() {
        let mut parser = ToolCallParser::new(ToolFormat::Tagged, 1);
        let call = "<tool_call>{\"name\":\"f\",\"arguments\":{}}</tool_call>";
        assert_eq!(parser.push(&call.repeat(2)).len(), 1);
        assert!(parser.is_full());
    }
}
