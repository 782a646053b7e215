//! What a template is given for a conversation: messages and tools as values, in the form that it takes.

use std::borrow::Cow;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::reads::{ReadsReasoning, TemplateReads};
use crate::dataset::{Message, ToolCall};
use crate::train::model::tokenizer::escape;

/// Characters of the ids that Mistral's templates take.
const ID_LENGTH: usize = 9;

/// How values are written, where templates differ in what they take. The plain form is tried first, the others
/// where a template refuses it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Form {
    /// Absent content is an empty text instead of null.
    pub empty_content: bool,
    /// Arguments of calls are JSON texts instead of values.
    pub text_arguments: bool,
    /// Ids of calls have nine letters and digits.
    pub nine_letter_ids: bool,
}

impl Form {
    /// The forms in which a conversation differs, the plain one first.
    pub(super) fn of(messages: &[Message]) -> Vec<Self> {
        let has_calls = messages.iter().any(|message| !message.tool_calls.is_empty());
        let lacks_content = messages.iter().any(|message| message.content.is_none());
        let both = |varies: bool| if varies { &[false, true][..] } else { &[false][..] };
        let mut forms = Vec::new();
        for &nine_letter_ids in both(has_calls) {
            for &text_arguments in both(has_calls) {
                for &empty_content in both(lacks_content) {
                    forms.push(Self { empty_content, text_arguments, nine_letter_ids });
                }
            }
        }
        forms
    }
}

/// Messages as a template sees them. What is spelled like one of `control` carries a mark.
pub(super) fn messages(
    messages: &[Message],
    form: Form,
    reads: TemplateReads,
    control: &[String],
) -> Vec<Value> {
    let writer = ValueWriter { form, reads, control };
    messages.iter().map(|message| writer.message(message)).collect()
}

/// Tools as a template sees them, with the same marks.
pub(super) fn tools<'a>(tools: &'a [Value], control: &[String]) -> Cow<'a, [Value]> {
    let holds = |tool: &Value| {
        let text = tool.to_string();
        control.iter().any(|token| text.contains(token.as_str()))
    };
    if !tools.iter().any(holds) {
        return Cow::Borrowed(tools);
    }
    let mut marked = tools.to_vec();
    marked.iter_mut().for_each(|tool| escape_texts(tool, control));
    Cow::Owned(marked)
}

/// Marks every text of a JSON value.
fn escape_texts(value: &mut Value, control: &[String]) {
    match value {
        Value::String(text) => *text = escape(text, control).into_owned(),
        Value::Array(list) => list.iter_mut().for_each(|value| escape_texts(value, control)),
        Value::Object(object) => {
            object.values_mut().for_each(|value| escape_texts(value, control));
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

struct ValueWriter<'a> {
    form: Form,
    reads: TemplateReads,
    control: &'a [String],
}

impl ValueWriter<'_> {
    fn text(&self, text: &str) -> String {
        escape(text, self.control).into_owned()
    }

    fn message(&self, message: &Message) -> Value {
        let mut value = json!({
            "role": message.role.in_templates(),
            "content": self.content(message),
        });
        if let Some(name) = &message.name {
            value["name"] = self.text(name).into();
        }
        if let Some(id) = &message.tool_call_id {
            value["tool_call_id"] = self.id(id).into();
        }
        if let (Some(reasoning), ReadsReasoning::Key) = (&message.reasoning, self.reads.reasoning) {
            for key in ReadsReasoning::KEYS {
                value[*key] = self.text(reasoning).into();
            }
        }
        if !message.tool_calls.is_empty() {
            value["tool_calls"] = message.tool_calls.iter().map(|call| self.call(call)).collect();
        }
        value
    }

    fn content(&self, message: &Message) -> Value {
        let part = |text: &String| json!({"type": "text", "text": self.text(text)});
        if self.reads.parts && !message.content_parts.is_empty() {
            return message.content_parts.iter().map(part).collect();
        }
        let Some(content) = &message.content else {
            return if self.form.empty_content { "".into() } else { Value::Null };
        };
        let text = match (&message.reasoning, self.reads.reasoning) {
            (Some(reasoning), ReadsReasoning::InContent) => {
                Cow::Owned(format!("<think>\n{reasoning}\n</think>\n\n{content}"))
            }
            _ => Cow::Borrowed(content),
        };
        match self.reads.texts {
            true => self.text(&text).into(),
            false => json!([part(&text)]),
        }
    }

    fn call(&self, call: &ToolCall) -> Value {
        let arguments = match self.form.text_arguments {
            true => self.text(&call.arguments).into(),
            // Whoever parsed the call has seen that it is an object.
            false => {
                let mut arguments = serde_json::from_str(&call.arguments)
                    .unwrap_or_else(|_| call.arguments.clone().into());
                escape_texts(&mut arguments, self.control);
                arguments
            }
        };
        json!({
            "id": self.id(&call.id),
            "type": "function",
            "function": {"name": self.text(&call.name), "arguments": arguments},
        })
    }

    /// The id of a call. Its nine-letter form follows from the id, so that a call and its result agree, in
    /// training and in serving.
    fn id(&self, id: &str) -> String {
        let is_short = id.len() == ID_LENGTH && id.bytes().all(|byte| byte.is_ascii_alphanumeric());
        if !self.form.nine_letter_ids || is_short {
            return self.text(id);
        }
        const LETTERS: &[u8; 62] =
            b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
        let digest = Sha256::digest(id.as_bytes());
        let letter = |byte: &u8| char::from(LETTERS[usize::from(*byte) % LETTERS.len()]);
        digest.iter().take(ID_LENGTH).map(letter).collect()
    }
}

/// Whether a template has written the arguments of a call as Python prints a dict: it meant a text.
pub(super) fn writes_python_dict(text: &str, messages: &[Message]) -> bool {
    let calls = messages.iter().flat_map(|message| &message.tool_calls);
    calls
        .filter_map(|call| {
            let arguments: Value = serde_json::from_str(&call.arguments).ok()?;
            arguments.as_object()?.keys().next().cloned()
        })
        .any(|key| text.contains(&format!("{{'{key}'")) && !text.contains(&format!("{{\"{key}\"")))
}
