//! What a template is given for a conversation: messages and tools as values, in the form that it takes.

use std::borrow::Cow;

use sha2::{Digest, Sha256};

use super::jinja::{self, Value};
use super::reads::{ReadsReasoning, TemplateReads};
use crate::dataset::{Message, ToolCall};
use crate::train::model::tokenizer::escape;
use crate::util::exact_json::ExactJson;

/// Characters of the ids that Mistral's templates take.
const ID_LENGTH: usize = 9;

/// How values are written, where templates differ in what they take. The plain form is tried first, the others
/// where a template refuses it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Form {
    /// Absent content is an empty text instead of a missing key.
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
) -> Value {
    let writer = ValueWriter { form, reads, control };
    Value::list(messages.iter().map(|message| writer.message(message)).collect())
}

/// Tools as a template sees them, with the same marks; nothing where there are none.
pub(super) fn tools(tools: &[ExactJson], control: &[String]) -> Value {
    if tools.is_empty() {
        return Value::None;
    }
    Value::list(tools.iter().map(|tool| escaped(tool, control)).collect())
}

/// JSON as a template sees it, with marks in its texts and keys.
pub(super) fn escaped(json: &ExactJson, control: &[String]) -> Value {
    jinja::from_exact(&json.map_texts(&|text| escape(text, control).into_owned()))
}

struct ValueWriter<'a> {
    form: Form,
    reads: TemplateReads,
    control: &'a [String],
}

impl ValueWriter<'_> {
    fn text(&self, text: &str) -> Value {
        Value::from(escape(text, self.control).as_ref())
    }

    fn message(&self, message: &Message) -> Value {
        let mut fields = vec![("role", message.role.in_templates().into())];
        if let Some(content) = self.content(message) {
            fields.push(("content", content));
        }
        if let Some(name) = &message.name {
            fields.push(("name", self.text(name)));
        }
        if let Some(id) = &message.tool_call_id {
            fields.push(("tool_call_id", self.id(id)));
        }
        if let (Some(reasoning), ReadsReasoning::Key) = (&message.reasoning, self.reads.reasoning) {
            for key in ReadsReasoning::KEYS {
                fields.push((key, self.text(reasoning)));
            }
        }
        if !message.tool_calls.is_empty() {
            let calls = message.tool_calls.iter().map(|call| self.call(call));
            fields.push(("tool_calls", Value::list(calls.collect())));
        }
        Value::record(fields)
    }

    /// The content; transformers drops the key where there is none.
    fn content(&self, message: &Message) -> Option<Value> {
        let part = |text: &str| Value::record([("type", "text".into()), ("text", self.text(text))]);
        if self.reads.parts && !message.content_parts.is_empty() {
            let parts = message.content_parts.iter().map(|text| part(text));
            return Some(Value::list(parts.collect()));
        }
        let Some(content) = &message.content else {
            return self.form.empty_content.then(|| "".into());
        };
        let text = match (&message.reasoning, self.reads.reasoning) {
            (Some(reasoning), ReadsReasoning::InContent) => {
                Cow::Owned(format!("<think>\n{reasoning}\n</think>\n\n{content}"))
            }
            _ => Cow::Borrowed(content.as_str()),
        };
        Some(match self.reads.texts {
            true => self.text(&text),
            false => Value::list(vec![part(&text)]),
        })
    }

    fn call(&self, call: &ToolCall) -> Value {
        let arguments = match self.form.text_arguments {
            true => self.text(&call.arguments),
            // The numbers stay as they are written. Whoever parsed the call has seen that it is an object.
            false => match ExactJson::read(&call.arguments) {
                Ok(arguments) => escaped(&arguments, self.control),
                // Whoever parsed the call has seen that it is an object.
                Err(_) => self.text(&call.arguments),
            },
        };
        let function = Value::record([("name", self.text(&call.name)), ("arguments", arguments)]);
        Value::record([
            ("id", self.id(&call.id)),
            ("type", "function".into()),
            ("function", function),
        ])
    }

    /// The id of a call. Its nine-letter form follows from the id, so that a call and its result agree, in
    /// training and in serving.
    fn id(&self, id: &str) -> Value {
        let is_short = id.len() == ID_LENGTH && id.bytes().all(|byte| byte.is_ascii_alphanumeric());
        if !self.form.nine_letter_ids || is_short {
            return self.text(id);
        }
        const LETTERS: &[u8; 62] =
            b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
        let digest = Sha256::digest(id.as_bytes());
        let letter = |byte: &u8| char::from(LETTERS[usize::from(*byte) % LETTERS.len()]);
        digest.iter().take(ID_LENGTH).map(letter).collect::<String>().into()
    }
}

/// Whether a template has written the arguments of a call as Python prints a dict: it meant a text.
pub(super) fn writes_python_dict(text: &str, messages: &[Message]) -> bool {
    let calls = messages.iter().flat_map(|message| &message.tool_calls);
    calls
        .filter_map(|call| {
            let arguments: serde_json::Value = serde_json::from_str(&call.arguments).ok()?;
            arguments.as_object()?.keys().next().cloned()
        })
        .any(|key| text.contains(&format!("{{'{key}'")) && !text.contains(&format!("{{\"{key}\"")))
}
