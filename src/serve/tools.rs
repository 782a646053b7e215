//! Calls of tools in what a model writes, read by the format in which its chat template writes them.

use serde_json::Value;

use super::events::CalledTool;
use crate::dataset::{Message, Role, ToolCall};
use crate::train::model::chat_template::ChatTemplate;

/// How a family of models writes calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ToolFormat {
    /// `<tool_call>{"name": …, "arguments": …}</tool_call>` for each call (Qwen, Hermes).
    Tagged,
    /// `[TOOL_CALLS]` and a list of calls, or a name and its arguments (Mistral).
    Listed,
    /// Nothing but `{"name": …, "parameters": …}` (Llama 3).
    Bare,
}

const TAG: &str = "<tool_call>";
const END_TAG: &str = "</tool_call>";
const LIST: &str = "[TOOL_CALLS]";
/// Stands between a name and its arguments in newer models of Mistral's.
const ARGUMENTS: &str = "[ARGS]";
/// What models of Llama 3's may write before a call.
const PYTHON: &str = "<|python_tag|>";

impl ToolFormat {
    /// The format in which a template writes calls; `None` when it is none of the known ones.
    pub fn of(template: &ChatTemplate) -> Option<Self> {
        let message = |role: Role, content: Option<&str>| Message {
            role,
            content: content.map(str::to_owned),
            name: None,
            trained: role == Role::Assistant,
            tool_calls: Vec::new(),
            tool_call_id: None,
        };
        let mut call = message(Role::Assistant, None);
        call.tool_calls.push(ToolCall {
            // Nine letters and digits, as Mistral's templates demand.
            id: "a1b2c3d4e".to_owned(),
            name: "probe".to_owned(),
            arguments: r#"{"key": "value"}"#.to_owned(),
        });
        let tool = serde_json::json!({"type": "function", "function": {
            "name": "probe", "description": "Probes.",
            "parameters": {"type": "object", "properties": {"key": {"type": "string"}}},
        }});
        let messages = [message(Role::User, Some("a")), call];
        let tools = [tool];
        let before = template.render_prompt(&messages[..1], &tools).ok()?;
        let whole = template.render_prompt(&messages, &tools).ok()?;
        let written = after_shared(&before, &whole);
        let is_after =
            |mark: &str| written.split_once(mark).is_some_and(|(_, rest)| rest.contains("probe"));
        if is_after(TAG) && written.contains(END_TAG) {
            Some(Self::Tagged)
        } else if is_after(LIST) {
            Some(Self::Listed)
        } else {
            let start = written.find('{')?;
            let end = written.rfind('}')?;
            let is_call = calls_in(written.get(start..=end)?).is_some();
            (is_call && written.contains("\"parameters\"")).then_some(Self::Bare)
        }
    }
}

/// What `whole` has after the beginning that it shares with `before`.
fn after_shared<'a>(before: &str, whole: &'a str) -> &'a str {
    let pairs = before.chars().zip(whole.chars());
    let shared: usize = pairs.take_while(|(a, b)| a == b).map(|(_, b)| b.len_utf8()).sum();
    &whole[shared..]
}

/// A part of an answer.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Piece {
    /// To be shown.
    Text(String),
    /// A call.
    Call(CalledTool),
}

/// Tells calls from text while an answer is written. What is no call in the end stays text, as it is.
pub(super) struct ToolReader {
    format: ToolFormat,
    /// Text that may be, or become, a call.
    held: String,
    /// Whether text was shown.
    has_text: bool,
    calls: usize,
    most_calls: usize,
}

impl ToolReader {
    /// Of answers in this format with at most this many calls.
    pub fn new(format: ToolFormat, most_calls: usize) -> Self {
        Self { format, held: String::new(), has_text: false, calls: 0, most_calls }
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

    /// Whether there are as many calls as there may be.
    pub fn is_full(&self) -> bool {
        self.calls >= self.most_calls
    }

    /// Adds text; what is known of it by now.
    pub fn push(&mut self, text: &str) -> Vec<Piece> {
        self.held += text;
        let mut pieces = Vec::new();
        match self.format {
            ToolFormat::Tagged => self.read_tags(&mut pieces),
            ToolFormat::Listed => {
                if !self.held.contains(LIST) {
                    self.show_up_to(&mut pieces, self.held.len() - beginning_of(&self.held, LIST));
                }
            }
            ToolFormat::Bare => {
                let begun = self.held.trim_start();
                let may_be_call = begun.starts_with('{')
                    || PYTHON.starts_with(begun)
                    || begun.starts_with(PYTHON);
                if self.has_text || !may_be_call {
                    self.show_up_to(&mut pieces, self.held.len());
                }
            }
        }
        pieces
    }

    /// What is left at the end of the answer.
    pub fn finish(&mut self) -> Vec<Piece> {
        let mut pieces = Vec::new();
        let held = std::mem::take(&mut self.held);
        let (text, calls) = match self.format {
            // The end of the turn may come in the place of the last tag.
            ToolFormat::Tagged => match held.split_once(TAG) {
                Some((text, call)) => (text, calls_in(call)),
                None => (held.as_str(), None),
            },
            ToolFormat::Listed => match held.split_once(LIST) {
                Some((text, calls)) => (text, listed_calls(calls)),
                None => (held.as_str(), None),
            },
            ToolFormat::Bare if self.has_text => (held.as_str(), None),
            ToolFormat::Bare => {
                let call = held.trim_start();
                ("", calls_in(call.strip_prefix(PYTHON).unwrap_or(call)))
            }
        };
        match calls {
            Some(calls) => {
                self.show(&mut pieces, text.trim_end());
                for call in calls {
                    self.call(&mut pieces, call);
                }
            }
            // Lines between calls and the end of the turn are no answer.
            None if self.calls > 0 && held.trim().is_empty() => {}
            None => self.show(&mut pieces, &held),
        }
        pieces
    }

    fn read_tags(&mut self, pieces: &mut Vec<Piece>) {
        while let Some(start) = self.held.find(TAG) {
            let after = start + TAG.len();
            let Some(length) = self.held[after..].find(END_TAG) else {
                self.show_up_to(pieces, start);
                return;
            };
            let whole = after + length + END_TAG.len();
            match calls_in(&self.held[after..after + length]) {
                Some(calls) => {
                    self.show_up_to(pieces, start);
                    // What is left of the lines before it, and the call itself.
                    self.held.drain(..self.held.find(END_TAG).unwrap_or_default() + END_TAG.len());
                    for call in calls {
                        self.call(pieces, call);
                    }
                }
                None => {
                    let text: String = self.held.drain(..whole).collect();
                    self.show(pieces, &text);
                }
            }
        }
        self.show_up_to(pieces, self.held.len() - beginning_of(&self.held, TAG));
    }

    /// Shows what is held up to `end`, without spaces and lines at its end, which stay held: before a
    /// call they are no answer.
    fn show_up_to(&mut self, pieces: &mut Vec<Piece>, end: usize) {
        let text = self.held[..end].trim_end();
        let rest = self.held.split_off(text.len());
        let text = std::mem::replace(&mut self.held, rest);
        self.show(pieces, &text);
    }

    fn show(&mut self, pieces: &mut Vec<Piece>, text: &str) {
        if !text.is_empty() {
            self.has_text = true;
            pieces.push(Piece::Text(text.to_owned()));
        }
    }

    fn call(&mut self, pieces: &mut Vec<Piece>, call: CalledTool) {
        if !self.is_full() {
            self.calls += 1;
            pieces.push(Piece::Call(call));
        }
    }
}

/// How many bytes at the end of a text may be the beginning of a mark.
fn beginning_of(text: &str, mark: &str) -> usize {
    let mut lengths = (1..mark.len()).rev();
    lengths.find(|length| text.ends_with(&mark[..*length])).unwrap_or_default()
}

/// The calls of a text that is nothing but JSON objects of calls, in a list or one after the other.
fn calls_in(text: &str) -> Option<Vec<CalledTool>> {
    let mut calls = Vec::new();
    // Models of Llama 3's put semicolons between calls.
    let mut rest = text.trim();
    while !rest.is_empty() {
        let mut values = serde_json::Deserializer::from_str(rest).into_iter::<Value>();
        match values.next()?.ok()? {
            Value::Array(list) => {
                for value in &list {
                    calls.push(call_of(value)?);
                }
            }
            value => calls.push(call_of(&value)?),
        }
        rest = rest[values.byte_offset()..].trim_start_matches([';', ',', ' ', '\n', '\r', '\t']);
    }
    (!calls.is_empty()).then_some(calls)
}

/// The calls after Mistral's mark: a list, or names with arguments, each after a mark of its own.
fn listed_calls(text: &str) -> Option<Vec<CalledTool>> {
    let mut calls = Vec::new();
    for part in text.split(LIST).map(str::trim).filter(|part| !part.is_empty()) {
        if part.starts_with(['[', '{']) {
            calls.extend(calls_in(part)?);
            continue;
        }
        let (name, arguments) = part.split_at(part.find('{')?);
        let name = name.trim().trim_end_matches(ARGUMENTS).trim();
        let arguments: Value = serde_json::from_str(arguments).ok()?;
        let is_name = !name.is_empty() && !name.contains(char::is_whitespace);
        calls.push(
            is_name
                .then(|| CalledTool { name: name.to_owned(), arguments: arguments.to_string() })?,
        );
    }
    (!calls.is_empty()).then_some(calls)
}

/// A call with its arguments, under either of their names, as JSON text.
fn call_of(value: &Value) -> Option<CalledTool> {
    let name = value.get("name")?.as_str()?.to_owned();
    let arguments = match value.get("arguments").or_else(|| value.get("parameters")) {
        // Some models write them as text already.
        Some(Value::String(text)) => text.clone(),
        Some(arguments @ Value::Object(_)) => arguments.to_string(),
        _ => return None,
    };
    Some(CalledTool { name, arguments })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads a text in pieces of `size` characters: the text that is shown, and the calls.
    fn read(format: ToolFormat, text: &str, size: usize) -> (String, Vec<CalledTool>) {
        let mut reader = ToolReader::new(format, usize::MAX);
        let characters: Vec<char> = text.chars().collect();
        let mut pieces = Vec::new();
        for piece in characters.chunks(size) {
            pieces.extend(reader.push(&piece.iter().collect::<String>()));
        }
        pieces.extend(reader.finish());
        let (mut shown, mut calls) = (String::new(), Vec::new());
        for piece in pieces {
            match piece {
                Piece::Text(text) => shown += &text,
                Piece::Call(call) => calls.push(call),
            }
        }
        assert_eq!(reader.calls(), calls.len());
        (shown, calls)
    }

    fn call(name: &str, arguments: &str) -> CalledTool {
        CalledTool { name: name.to_owned(), arguments: arguments.to_owned() }
    }

    #[test]
    fn calls_are_read_however_the_answer_comes_in_pieces() {
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
    fn an_answer_that_may_call_once_is_full_after_one_call() {
        let mut reader = ToolReader::new(ToolFormat::Tagged, 1);
        let call = "<tool_call>{\"name\":\"f\",\"arguments\":{}}</tool_call>";
        assert_eq!(reader.push(&call.repeat(2)).len(), 1);
        assert!(reader.is_full());
    }

    #[test]
    fn the_format_is_found_in_what_the_template_writes() {
        let source = |name: &str| {
            let folder =
                std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/templates");
            std::fs::read_to_string(folder.join(format!("{name}.jinja"))).expect("there")
        };
        let control = [
            "<|im_start|>",
            "<|im_end|>",
            "<s>",
            "</s>",
            "<|eot_id|>",
            "<|start_header_id|>",
            "<|end_header_id|>",
            "<|begin_of_text|>",
            "[INST]",
            "[/INST]",
            "[TOOL_CALLS]",
            "<|end|>",
            "[AVAILABLE_TOOLS]",
            "[/AVAILABLE_TOOLS]",
            "[TOOL_RESULTS]",
            "[/TOOL_RESULTS]",
        ];
        let control: Vec<String> = control.iter().map(|token| (*token).to_owned()).collect();
        for (name, format) in [
            ("qwen2", Some(ToolFormat::Tagged)),
            ("qwen3", Some(ToolFormat::Tagged)),
            ("mistral", Some(ToolFormat::Listed)),
            ("llama3", Some(ToolFormat::Bare)),
            ("chatml", None),
            ("phi3", None),
        ] {
            let template = ChatTemplate::new(&source(name), &control, "<s>", "</s>").expect("read");
            assert_eq!(ToolFormat::of(&template), format, "{name}");
        }
    }
}
