//! Chat templates: a conversation to text, and which of its bytes the assistant wrote.
//!
//! What is learnt is found in the rendered text, never guessed from strings: either the template
//! marks it with `{% generation %}`, or the conversation is rendered a second time with another text
//! in the assistant's place, and everything around it must stay the same.

use std::ops::Range;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Serde};
use minijinja::{Environment, Error, ErrorKind, Value};
use serde::Serialize;

use crate::dataset::{Message, Role};

/// Steps that a template may take: far more than a long conversation needs, and an endless loop ends.
const FUEL: u64 = 50_000_000;

/// Longest text that a template may write.
const MAX_RENDERED_BYTES: usize = 64 * 1024 * 1024;

/// Private-use characters: a stand-in for a message, and the borders of a `{% generation %}` block.
const STAND_IN: &str = "\u{e000}hone\u{e001}";
const GENERATION_BEGINS: char = '\u{e002}';
const GENERATION_ENDS: char = '\u{e003}';

/// A model's chat template (Jinja).
pub struct ChatTemplate {
    environment: Environment<'static>,
    /// Texts of the control tokens, longest first; one of them ends a turn.
    control: Vec<String>,
    beginning: String,
    end: String,
    supports_tools: bool,
    supports_tool_calls: bool,
    marks_generation: bool,
}

/// A conversation as text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rendered {
    /// The text.
    pub text: String,
    /// Byte ranges that carry loss: each trained assistant message through its end-of-turn token.
    pub learnt: Vec<Range<usize>>,
}

/// Why a conversation cannot be rendered.
#[derive(Debug, thiserror::Error)]
pub enum TemplateError {
    /// The template is not valid Jinja.
    #[error("the chat template cannot be read: {0}")]
    Invalid(String),
    /// The template itself refuses or fails.
    #[error("the chat template refuses the conversation: {0}")]
    Refused(String),
    /// The assistant's span or its end-of-turn token cannot be located.
    #[error("message {message_index}: {reason}")]
    NotLocated {
        /// Which message.
        message_index: usize,
        /// What was looked for and not found.
        reason: String,
    },
    /// The template has no place for tools.
    #[error("the model's chat template does not support tools")]
    NoTools,
}

impl ChatTemplate {
    /// Compiles a template. `control` are the texts of the model's control tokens; `beginning` and
    /// `end` what the template knows as `bos_token` and `eos_token`.
    pub fn new(
        source: &str,
        control: &[String],
        beginning: &str,
        end: &str,
    ) -> Result<Self, TemplateError> {
        let mut environment = Environment::new();
        // As transformers sets Jinja up.
        let syntax = SyntaxConfig::builder()
            .trim_blocks(true)
            .lstrip_blocks(true)
            .build()
            .map_err(|error| TemplateError::Invalid(describe(&error)))?;
        environment.set_syntax(syntax);
        environment.set_fuel(Some(FUEL));
        environment
            .set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function("raise_exception", |message: String| -> Result<Value, Error> {
            Err(Error::new(ErrorKind::InvalidOperation, message))
        });
        environment.add_filter("tojson", to_json);
        let marked = mark_generation(source);
        let marks_generation = marked != source;
        environment
            .add_template_owned("chat", marked)
            .map_err(|error| TemplateError::Invalid(describe(&error)))?;
        let mut control = control.to_vec();
        control.sort_by(|a, b| b.len().cmp(&a.len()).then_with(|| a.cmp(b)));
        Ok(Self {
            environment,
            control,
            beginning: beginning.to_owned(),
            end: end.to_owned(),
            supports_tools: source.contains("tools"),
            supports_tool_calls: source.contains("tool_calls"),
            marks_generation,
        })
    }

    /// For training: the whole conversation, with the assistant's spans.
    pub fn render_for_training(
        &self,
        messages: &[Message],
        tools: &[serde_json::Value],
    ) -> Result<Rendered, TemplateError> {
        let text = self.render(messages, tools, false)?;
        if self.marks_generation {
            return self.marked_spans(messages, &text);
        }
        let mut learnt = Vec::new();
        for (index, message) in messages.iter().enumerate() {
            if message.role != Role::Assistant || !message.trained {
                continue;
            }
            learnt.push(match &message.content {
                Some(content) if message.tool_calls.is_empty() => {
                    self.locate_content(messages, tools, index, content, &text)?
                }
                _ => self.locate_turn(messages, tools, index, &text)?,
            });
        }
        Ok(Rendered { text, learnt })
    }

    /// For inference: the conversation and the beginning of the assistant's answer.
    pub fn render_prompt(
        &self,
        messages: &[Message],
        tools: &[serde_json::Value],
    ) -> Result<String, TemplateError> {
        let text = self.render(messages, tools, true)?;
        Ok(text.replace([GENERATION_BEGINS, GENERATION_ENDS], ""))
    }

    /// The control token that ends the assistant's turn, if the template has one.
    pub fn end_of_turn(&self) -> Option<String> {
        let message = |role: Role, text: &str| Message {
            role,
            content: Some(text.to_owned()),
            name: None,
            trained: role == Role::Assistant,
            tool_calls: Vec::new(),
            tool_call_id: None,
        };
        let probe = [message(Role::User, "a"), message(Role::Assistant, "b")];
        let rendered = self.render_for_training(&probe, &[]).ok()?;
        let turn = &rendered.text[rendered.learnt.first()?.clone()];
        self.control.iter().find(|token| turn.ends_with(token.as_str())).cloned()
    }

    fn render(
        &self,
        messages: &[Message],
        tools: &[serde_json::Value],
        add_generation_prompt: bool,
    ) -> Result<String, TemplateError> {
        if !tools.is_empty() && !self.supports_tools {
            return Err(TemplateError::NoTools);
        }
        let calls = messages.iter().any(|message| !message.tool_calls.is_empty());
        if calls && !self.supports_tool_calls {
            return Err(TemplateError::NoTools);
        }
        let values: Vec<serde_json::Value> = messages.iter().map(message_value).collect();
        let tools = if tools.is_empty() { None } else { Some(tools) };
        let context = minijinja::context! {
            messages => Serde(values),
            tools => Serde(tools),
            add_generation_prompt => add_generation_prompt,
            bos_token => self.beginning.clone(),
            eos_token => self.end.clone(),
        };
        let refused = |error: Error| TemplateError::Refused(describe(&error));
        let template = self.environment.get_template("chat").map_err(refused)?;
        let text = template.render(context).map_err(refused)?;
        if text.len() > MAX_RENDERED_BYTES {
            return Err(TemplateError::Refused(format!("it writes {} bytes", text.len())));
        }
        Ok(text)
    }

    /// Where a message's content stands: the same conversation with a stand-in in its place must be
    /// the same text around it.
    fn locate_content(
        &self,
        messages: &[Message],
        tools: &[serde_json::Value],
        index: usize,
        content: &str,
        text: &str,
    ) -> Result<Range<usize>, TemplateError> {
        let not_located = |reason: &str| TemplateError::NotLocated {
            message_index: index,
            reason: reason.to_owned(),
        };
        let mut changed = messages.to_vec();
        changed[index].content = Some(STAND_IN.to_owned());
        let stand_in = self.render(&changed, tools, false)?;
        let mut parts = stand_in.split(STAND_IN);
        let (Some(before), Some(after), None) = (parts.next(), parts.next(), parts.next()) else {
            return Err(not_located(
                "the chat template does not write the assistant's message exactly once",
            ));
        };
        let fits = text.len() >= before.len() + after.len()
            && text.starts_with(before)
            && text.ends_with(after);
        if !fits {
            return Err(not_located(
                "the chat template changes the text around the assistant's message with its content",
            ));
        }
        let end = text.len() - after.len();
        let written = &text[before.len()..end];
        if written != content && written != content.trim() {
            return Err(not_located("the chat template changes the assistant's message itself"));
        }
        Ok(before.len()..end + self.end_of_turn_at(index, after)?)
    }

    /// Where a turn with tool calls stands: between what the conversation before it renders to, with
    /// the beginning of an answer, and the last control token of what it renders to with it.
    fn locate_turn(
        &self,
        messages: &[Message],
        tools: &[serde_json::Value],
        index: usize,
        text: &str,
    ) -> Result<Range<usize>, TemplateError> {
        let before = self.render(&messages[..index], tools, true)?;
        let through = self.render(&messages[..=index], tools, false)?;
        let is_prefix =
            text.starts_with(&before) && text.starts_with(&through) && through.len() > before.len();
        let turn = if is_prefix { &through[before.len()..] } else { "" };
        let ends = self
            .control
            .iter()
            .filter_map(|token| turn.rfind(token.as_str()).map(|start| start + token.len()));
        match ends.max() {
            Some(end) => Ok(before.len()..before.len() + end),
            None => Err(TemplateError::NotLocated {
                message_index: index,
                reason: "the turn with tool calls cannot be located in the rendered conversation"
                    .to_owned(),
            }),
        }
    }

    /// Length of the control token with which `after` begins.
    fn end_of_turn_at(&self, index: usize, after: &str) -> Result<usize, TemplateError> {
        let token = self.control.iter().find(|token| after.starts_with(token.as_str()));
        token.map(String::len).ok_or_else(|| {
            let found: String = after.chars().take(20).collect();
            TemplateError::NotLocated {
                message_index: index,
                reason: format!(
                    "no end-of-turn token follows the assistant's message in the rendered \
                     conversation, but {found:?}: the model would never learn to stop"
                ),
            }
        })
    }

    /// The spans that the template itself marks, one for each assistant message.
    fn marked_spans(&self, messages: &[Message], marked: &str) -> Result<Rendered, TemplateError> {
        let mut text = String::with_capacity(marked.len());
        let mut spans = Vec::new();
        let mut begin = 0;
        for character in marked.chars() {
            match character {
                GENERATION_BEGINS => begin = text.len(),
                GENERATION_ENDS => spans.push(begin..text.len()),
                _ => text.push(character),
            }
        }
        let turns: Vec<(usize, &Message)> = messages
            .iter()
            .enumerate()
            .filter(|(_, message)| message.role == Role::Assistant)
            .collect();
        if turns.len() != spans.len() {
            return Err(TemplateError::NotLocated {
                message_index: turns.last().map_or(0, |(index, _)| *index),
                reason: format!(
                    "the chat template marks {} spans for {} assistant messages",
                    spans.len(),
                    turns.len()
                ),
            });
        }
        let learnt = turns.into_iter().zip(spans).filter(|((_, message), _)| message.trained);
        Ok(Rendered { learnt: learnt.map(|(_, span)| span).collect(), text })
    }
}

/// A message as templates see it.
fn message_value(message: &Message) -> serde_json::Value {
    let mut value = serde_json::json!({
        "role": message.role.in_templates(),
        "content": message.content,
    });
    if let Some(name) = &message.name {
        value["name"] = name.clone().into();
    }
    if let Some(id) = &message.tool_call_id {
        value["tool_call_id"] = id.clone().into();
    }
    if !message.tool_calls.is_empty() {
        let calls = message.tool_calls.iter().map(|call| {
            // Templates write arguments as JSON values; a text that is none stays a text.
            let arguments: serde_json::Value = serde_json::from_str(&call.arguments)
                .unwrap_or_else(|_| call.arguments.clone().into());
            serde_json::json!({
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": arguments},
            })
        });
        value["tool_calls"] = calls.collect();
    }
    value
}

/// The template with `{% generation %}` blocks turned into marks around what they hold.
fn mark_generation(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find("{%") {
        let Some(length) = rest[start..].find("%}") else { break };
        let tag = &rest[start..start + length + 2];
        let inner = tag[2..tag.len() - 2].trim_matches(['-', '+']).trim();
        let mark = match inner {
            "generation" => Some(GENERATION_BEGINS),
            "endgeneration" => Some(GENERATION_ENDS),
            _ => None,
        };
        out.push_str(&rest[..start]);
        match mark {
            None => out.push_str(tag),
            Some(mark) => {
                let left = if tag.starts_with("{%-") { "-" } else { "" };
                let right = if tag.ends_with("-%}") { "-" } else { "" };
                out.push_str(&format!("{{{{{left} '{mark}' {right}}}}}"));
            }
        }
        rest = &rest[start + length + 2..];
    }
    out.push_str(rest);
    out
}

/// The innermost reason of a template's error.
fn describe(error: &Error) -> String {
    error.detail().map_or_else(|| error.to_string(), str::to_owned)
}

/// JSON as Python's `json.dumps` writes it: a space behind commas and colons, no escapes for HTML.
fn to_json(value: &Value, options: Kwargs) -> Result<Value, Error> {
    let indent: Option<usize> = options.get("indent")?;
    // Other options of json.dumps do not change what templates use it for.
    let _: Option<bool> = options.get("ensure_ascii")?;
    options.assert_all_used()?;
    let failed = |error: serde_json::Error| {
        Error::new(ErrorKind::InvalidOperation, format!("tojson failed: {error}"))
    };
    let mut bytes = Vec::new();
    match indent {
        Some(width) => {
            let spaces = " ".repeat(width);
            let pretty = serde_json::ser::PrettyFormatter::with_indent(spaces.as_bytes());
            let mut serializer = serde_json::Serializer::with_formatter(&mut bytes, pretty);
            value.serialize(&mut serializer).map_err(failed)?;
        }
        None => {
            let mut serializer = serde_json::Serializer::with_formatter(&mut bytes, Spaced);
            value.serialize(&mut serializer).map_err(failed)?;
        }
    }
    let text = String::from_utf8_lossy(&bytes).into_owned();
    Ok(Value::from_safe_string(text))
}

/// One line with a space behind commas and colons.
struct Spaced;

impl serde_json::ser::Formatter for Spaced {
    fn begin_array_value<W: ?Sized + std::io::Write>(
        &mut self,
        writer: &mut W,
        first: bool,
    ) -> std::io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_key<W: ?Sized + std::io::Write>(
        &mut self,
        writer: &mut W,
        first: bool,
    ) -> std::io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_value<W: ?Sized + std::io::Write>(
        &mut self,
        writer: &mut W,
    ) -> std::io::Result<()> {
        writer.write_all(b": ")
    }
}
