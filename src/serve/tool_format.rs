//! The formats in which models write tool calls. The format of a model is found in its chat template.

use serde::de::IgnoredAny;

use super::events::CalledTool;
use crate::dataset::{Message, Role, ToolCall};
use crate::train::model::chat_template::{ChatTemplate, PROBE_TOOL};
use crate::util::exact_json::ExactJson;

/// How a family of models writes tool calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ToolFormat {
    /// `<tool_call>{"name": …, "arguments": …}</tool_call>` for each call (Qwen, Hermes).
    Tagged,
    /// `[TOOL_CALLS]` and a list of calls, or a name and its arguments (Mistral).
    Listed,
    /// Nothing but `{"name": …, "parameters": …}` (Llama 3).
    Bare,
}

pub(super) const TAG: &str = "<tool_call>";
pub(super) const END_TAG: &str = "</tool_call>";
pub(super) const LIST: &str = "[TOOL_CALLS]";
/// Between a name and its arguments in newer models of Mistral's.
pub(super) const ARGUMENTS: &str = "[ARGS]";
/// May come before a call of a Llama 3 model.
pub(super) const PYTHON: &str = "<|python_tag|>";

impl ToolFormat {
    /// The format in which a template writes calls; `None` for an unknown format.
    pub fn of(template: &ChatTemplate) -> Option<Self> {
        let mut call = Message { content: None, ..Message::text(Role::Assistant, "") };
        call.tool_calls.push(ToolCall {
            // Nine letters and digits, as the templates of Mistral's require.
            id: "a1b2c3d4e".to_owned(),
            name: "probe".to_owned(),
            arguments: r#"{"key": "value"}"#.to_owned(),
        });
        let tool = ExactJson::read(PROBE_TOOL).ok()?;
        let messages = [Message::text(Role::User, "a"), call];
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

/// The rest of `whole` after its common prefix with `before`.
fn after_shared<'a>(before: &str, whole: &'a str) -> &'a str {
    let pairs = before.chars().zip(whole.chars());
    let shared: usize = pairs.take_while(|(a, b)| a == b).map(|(_, b)| b.len_utf8()).sum();
    &whole[shared..]
}

/// The calls of a text that consists of JSON objects of calls, in a list or one after the other.
pub(super) fn calls_in(text: &str) -> Option<Vec<CalledTool>> {
    let mut calls = Vec::new();
    // Llama 3 models put semicolons between calls.
    let mut rest = text.trim();
    while !rest.is_empty() {
        let mut values = serde_json::Deserializer::from_str(rest).into_iter::<IgnoredAny>();
        values.next()?.ok()?;
        let (value, behind) = rest.split_at(values.byte_offset());
        // Numbers stay as the model has written them.
        match ExactJson::read(value).ok()? {
            ExactJson::List(list) => {
                for value in &list {
                    calls.push(call_of(value)?);
                }
            }
            value => calls.push(call_of(&value)?),
        }
        rest = behind.trim_start_matches([';', ',', ' ', '\n', '\r', '\t']);
    }
    (!calls.is_empty()).then_some(calls)
}

/// The calls after Mistral's mark: a list, or names with arguments, each after its own mark.
pub(super) fn listed_calls(text: &str) -> Option<Vec<CalledTool>> {
    let mut calls = Vec::new();
    for part in text.split(LIST).map(str::trim).filter(|part| !part.is_empty()) {
        if part.starts_with(['[', '{']) {
            calls.extend(calls_in(part)?);
            continue;
        }
        let (name, arguments) = part.split_at(part.find('{')?);
        let name = name.trim().trim_end_matches(ARGUMENTS).trim();
        let arguments = ExactJson::read(arguments).ok()?;
        let is_name = !name.is_empty() && !name.contains(char::is_whitespace);
        calls.push(
            is_name
                .then(|| CalledTool { name: name.to_owned(), arguments: arguments.to_string() })?,
        );
    }
    (!calls.is_empty()).then_some(calls)
}

/// A call with its arguments, under either of their names, as JSON text.
fn call_of(value: &ExactJson) -> Option<CalledTool> {
    let name = value.get("name")?.as_text()?.to_owned();
    let arguments = match value.get("arguments").or_else(|| value.get("parameters")) {
        // Some models write them as text already.
        Some(ExactJson::Text(text)) => text.clone(),
        Some(arguments @ ExactJson::Object(_)) => arguments.to_string(),
        _ => return None,
    };
    Some(CalledTool { name, arguments })
}

#[cfg(test)]
mod tests {
    use super::*;

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

    #[test]
    fn arguments_of_calls_keep_every_digit_that_the_model_has_written() {
        let arguments = r#"{"x":12345678901234567890123,"y":0.10,"z":[18446744073709551616]}"#;
        let spaced = arguments.replace(':', ": ").replace(",\"", ", \"");
        let call = format!(r#"{{"name": "f", "arguments": {spaced}}}"#);
        for calls in [
            calls_in(&call),
            listed_calls(&format!("f[ARGS]{spaced}")),
            listed_calls(&format!("[{call}]")),
        ] {
            let calls = calls.expect("they are calls");
            assert_eq!(calls[0].arguments, arguments);
        }
    }
}
