//! Chat templates: a conversation to text, and which of its bytes the assistant wrote.
//!
//! What is learnt is found in the rendered text, never guessed from strings: either the template
//! marks it with `{% generation %}`, or the conversation is rendered a second time with another text
//! in the assistant's place, and everything around it must stay the same.

mod json;

use std::ops::{Range, RangeInclusive};

use minijinja::syntax::SyntaxConfig;
use minijinja::value::Serde;
use minijinja::{Environment, Error, ErrorKind, Value};

use crate::dataset::{Message, Role};

/// Steps that a template may take: far more than a long conversation needs, and an endless loop ends.
const FUEL: u64 = 50_000_000;

/// Longest text that a template may write.
const MAX_RENDERED_BYTES: usize = 64 * 1024 * 1024;

/// Private-use characters: a stand-in for a text, and the borders of a `{% generation %}` block. A
/// conversation that holds one of them is refused.
const STAND_IN: &str = "\u{e000}0\u{e001}";
const GENERATION_BEGINS: char = '\u{e002}';
const GENERATION_ENDS: char = '\u{e003}';
const RESERVED: RangeInclusive<char> = '\u{e000}'..='\u{e003}';

/// The filter whose block stands where a template has `{% generation %}`.
const GENERATION_FILTER: &str = "hone_generation";

/// A model's chat template (Jinja).
pub struct ChatTemplate {
    environment: Environment<'static>,
    /// Texts of the control tokens, longest first; one of them ends a turn.
    control: Vec<String>,
    beginning: String,
    end: String,
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
    /// A message cannot be used: the template leaves out a part of it, or the assistant's span or
    /// its end-of-turn token cannot be located.
    #[error("message {message_index}: {reason}")]
    Message {
        /// Which message.
        message_index: usize,
        /// What was looked for and not found.
        reason: String,
    },
    /// The template has no place for tools.
    #[error("the model's chat template does not write tools: leave them out, or use another model")]
    NoTools,
    /// The template has no place for tool calls.
    #[error("message {message_index}: {NO_TOOL_CALLS}")]
    NoToolCalls {
        /// Which message.
        message_index: usize,
    },
}

/// What is said of tool calls that a template does not write.
const NO_TOOL_CALLS: &str = "the model's chat template does not write tool calls: leave the \
                             conversation out, or use another model";

impl TemplateError {
    /// The message that it is about, if it is about one, and what is said of it.
    pub fn into_parts(self) -> (Option<usize>, String) {
        match self {
            Self::Message { message_index, reason } => (Some(message_index), reason),
            Self::NoToolCalls { message_index } => (Some(message_index), NO_TOOL_CALLS.to_owned()),
            other => (None, other.to_string()),
        }
    }

    /// Something about one message.
    fn message(message_index: usize, reason: impl Into<String>) -> Self {
        Self::Message { message_index, reason: reason.into() }
    }
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
        environment.add_filter("tojson", json::to_json);
        environment.add_filter(GENERATION_FILTER, |text: &str| {
            format!("{GENERATION_BEGINS}{text}{GENERATION_ENDS}")
        });
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
            marks_generation,
        })
    }

    /// For training: the whole conversation, with the assistant's spans.
    pub fn render_for_training(
        &self,
        messages: &[Message],
        tools: &[serde_json::Value],
    ) -> Result<Rendered, TemplateError> {
        let text = self.render_whole(messages, tools, false)?;
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
        let text = self.render_whole(messages, tools, true)?;
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

    /// The conversation as text, after looking that nothing of it is left out.
    fn render_whole(
        &self,
        messages: &[Message],
        tools: &[serde_json::Value],
        add_generation_prompt: bool,
    ) -> Result<String, TemplateError> {
        refuse_reserved(messages)?;
        let text = self.render(messages, tools, add_generation_prompt).map_err(|error| {
            // Some templates refuse system messages in words of their own.
            let is_system =
                messages.first().is_some_and(|first| first.role.in_templates() == "system");
            if is_system && self.render(&messages[1..], tools, add_generation_prompt).is_ok() {
                let reason = format!(
                    "the model's chat template takes no system messages ({error}): put the text at \
                     the beginning of the first user message"
                );
                return TemplateError::message(0, reason);
            }
            error
        })?;
        self.refuse_omissions(messages, tools, add_generation_prompt, &text)?;
        Ok(text)
    }

    /// What the template writes. Where it refuses messages without content, which are those that call
    /// tools, they have an empty one, which says the same.
    fn render(
        &self,
        messages: &[Message],
        tools: &[serde_json::Value],
        add_generation_prompt: bool,
    ) -> Result<String, TemplateError> {
        let mut values: Vec<serde_json::Value> = messages.iter().map(message_value).collect();
        let refused = match self.render_values(&values, tools, add_generation_prompt) {
            Err(error) if messages.iter().any(|message| message.content.is_none()) => error,
            done => return done,
        };
        for value in values.iter_mut().filter(|value| value["content"].is_null()) {
            value["content"] = "".into();
        }
        self.render_values(&values, tools, add_generation_prompt).map_err(|_also_refused| refused)
    }

    fn render_values(
        &self,
        values: &[serde_json::Value],
        tools: &[serde_json::Value],
        add_generation_prompt: bool,
    ) -> Result<String, TemplateError> {
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

    /// Looks that the template writes every tool, every tool call and every message: the
    /// conversation is rendered with stand-ins in their places, each of which must come out. Where
    /// the template refuses the stand-ins, the texts themselves must stand in `text`.
    fn refuse_omissions(
        &self,
        messages: &[Message],
        tools: &[serde_json::Value],
        add_generation_prompt: bool,
        text: &str,
    ) -> Result<(), TemplateError> {
        let probes = Probes::of(messages, tools);
        let rendered = self.render(&probes.messages, &probes.tools, add_generation_prompt).ok();
        for probe in probes.list {
            let is_written = match &rendered {
                Some(rendered) => rendered.contains(&probe.stand_in),
                None => text.contains(probe.original.trim()),
            };
            if is_written {
                continue;
            }
            return Err(match probe.part {
                Part::Tool => TemplateError::NoTools,
                Part::Call(message_index) => TemplateError::NoToolCalls { message_index },
                Part::Content(index) => {
                    let message = &messages[index];
                    let beside = match message.tool_calls.is_empty() {
                        true => "",
                        false => " beside its tool calls",
                    };
                    let reason = format!(
                        "the model's chat template does not write the content of this {} \
                         message{beside}: it would be lost",
                        message.role.in_templates()
                    );
                    TemplateError::message(index, reason)
                }
            });
        }
        Ok(())
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
        let not_located = |reason: &str| Err(TemplateError::message(index, reason));
        let mut changed = messages.to_vec();
        changed[index].content = Some(STAND_IN.to_owned());
        let stand_in = self.render(&changed, tools, false)?;
        let mut parts = stand_in.split(STAND_IN);
        let (Some(before), Some(after), None) = (parts.next(), parts.next(), parts.next()) else {
            return not_located(
                "the chat template does not write the assistant's message exactly once",
            );
        };
        let fits = text.len() >= before.len() + after.len()
            && text.starts_with(before)
            && text.ends_with(after);
        if !fits {
            // A template may take a part of the message for something else, such as reasoning; the
            // turn as a whole may still be the message.
            if let Ok(turn) = self.locate_turn(messages, tools, index, text)
                && let Some(written) = self.without_end(&text[turn.clone()])
                && written.trim() == content.trim()
            {
                return Ok(turn);
            }
            return not_located(
                "the chat template changes the text around the assistant's message with its content",
            );
        }
        let end = text.len() - after.len();
        let written = &text[before.len()..end];
        if written != content && written != content.trim() {
            return not_located("the chat template changes the assistant's message itself");
        }
        Ok(before.len()..end + self.end_of_turn_at(index, after)?)
    }

    /// Where a whole turn stands: between what the conversation before it renders to, with the
    /// beginning of an answer, and the last control token of what it renders to with it. Where the
    /// template writes shorter conversations otherwise, a message without tool calls in the turn's
    /// place shows what stands around it.
    fn locate_turn(
        &self,
        messages: &[Message],
        tools: &[serde_json::Value],
        index: usize,
        text: &str,
    ) -> Result<Range<usize>, TemplateError> {
        let before = self.render(&messages[..index], tools, true);
        let through = self.render(&messages[..=index], tools, false);
        if let (Ok(before), Ok(through)) = (before, through)
            && text.starts_with(&before)
            && text.starts_with(&through)
            && through.len() > before.len()
            && let Some(end) = self.last_control_token(&through[before.len()..])
        {
            return Ok(before.len()..before.len() + end);
        }
        let mut changed = messages.to_vec();
        changed[index].content = Some(STAND_IN.to_owned());
        changed[index].tool_calls.clear();
        if let Ok(stand_in) = self.render(&changed, tools, false)
            && let Some((before, after)) = stand_in.split_once(STAND_IN)
        {
            // Some templates (Mistral's) put a space before a text, and none before a call.
            let before = if text.starts_with(before) { before } else { before.trim_end() };
            let fits = text.len() >= before.len() + after.len();
            if fits && text.starts_with(before) && text.ends_with(after) {
                let end = text.len() - after.len() + self.end_of_turn_at(index, after)?;
                return Ok(before.len()..end);
            }
        }
        let reason = "the assistant's turn cannot be located in the rendered conversation";
        Err(TemplateError::message(index, reason))
    }

    /// Where the last control token of a text ends.
    fn last_control_token(&self, text: &str) -> Option<usize> {
        let ends = self
            .control
            .iter()
            .filter_map(|token| text.rfind(token.as_str()).map(|start| start + token.len()));
        ends.max()
    }

    /// A turn without the control token that ends it.
    fn without_end<'a>(&self, turn: &'a str) -> Option<&'a str> {
        self.control.iter().find_map(|token| turn.strip_suffix(token.as_str()))
    }

    /// Length of the control token with which `after` begins, and of the spaces that some templates
    /// (Llama 2's) put before it.
    fn end_of_turn_at(&self, index: usize, after: &str) -> Result<usize, TemplateError> {
        let token = after.trim_start_matches(' ');
        let spaces = after.len() - token.len();
        let end = self.control.iter().find(|end| token.starts_with(end.as_str()));
        end.map(|end| spaces + end.len()).ok_or_else(|| {
            let found: String = after.chars().take(20).collect();
            TemplateError::message(
                index,
                format!(
                    "no end-of-turn token follows the assistant's message in the rendered \
                     conversation, but {found:?}: the model would never learn to stop"
                ),
            )
        })
    }

    /// The spans that the template itself marks, one for each assistant message, through the control
    /// token that ends the turn.
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
            let reason = format!(
                "the chat template marks {} spans for {} assistant messages",
                spans.len(),
                turns.len()
            );
            return Err(TemplateError::message(
                turns.last().map_or(0, |(index, _)| *index),
                reason,
            ));
        }
        let mut learnt = Vec::new();
        for ((index, message), mut span) in turns.into_iter().zip(spans) {
            if !message.trained {
                continue;
            }
            let written = &text[span.clone()];
            let content = message.content.as_deref().unwrap_or_default();
            if !written.contains(content.trim()) {
                let reason = "the span that the chat template marks does not hold the message";
                return Err(TemplateError::message(index, reason));
            }
            if self.without_end(written.trim_end()).is_none() {
                span.end += self.end_of_turn_at(index, &text[span.end..])?;
            }
            learnt.push(span);
        }
        Ok(Rendered { text, learnt })
    }
}

/// A part of a conversation that a template must write.
enum Part {
    Tool,
    /// A tool call of the message of this index.
    Call(usize),
    /// The content of the message of this index.
    Content(usize),
}

/// A part, and what stands in its place.
struct Probe {
    part: Part,
    original: String,
    stand_in: String,
}

/// A conversation with stand-ins for whatever must be written.
struct Probes {
    messages: Vec<Message>,
    tools: Vec<serde_json::Value>,
    list: Vec<Probe>,
}

impl Probes {
    fn of(messages: &[Message], tools: &[serde_json::Value]) -> Self {
        let mut probes =
            Self { messages: messages.to_vec(), tools: tools.to_vec(), list: Vec::new() };
        let Self { messages, tools, list } = &mut probes;
        let mut replace = |part: Part, text: &mut String| {
            let stand_in = format!("{STAND_IN}{}\u{e001}", list.len());
            let original = std::mem::replace(text, stand_in.clone());
            list.push(Probe { part, original, stand_in });
        };
        for tool in tools {
            if let Some(serde_json::Value::String(name)) = tool.pointer_mut("/function/name") {
                replace(Part::Tool, name);
            }
        }
        for (index, message) in messages.iter_mut().enumerate() {
            let has_calls = !message.tool_calls.is_empty();
            for call in &mut message.tool_calls {
                replace(Part::Call(index), &mut call.name);
            }
            // The assistant's plain messages are located one by one.
            if (message.role != Role::Assistant || has_calls || !message.trained)
                && let Some(content) = &mut message.content
                && !content.trim().is_empty()
            {
                replace(Part::Content(index), content);
            }
        }
        probes
    }
}

/// Refuses texts with the characters that stand for something here.
fn refuse_reserved(messages: &[Message]) -> Result<(), TemplateError> {
    for (index, message) in messages.iter().enumerate() {
        let calls = message.tool_calls.iter().flat_map(|call| [&call.name, &call.arguments]);
        for text in message.content.iter().chain(calls) {
            if let Some(found) = text.chars().find(|character| RESERVED.contains(character)) {
                let reason = format!(
                    "the text holds the private-use character U+{:04X}, which hone uses itself",
                    u32::from(found)
                );
                return Err(TemplateError::message(index, reason));
            }
        }
    }
    Ok(())
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

/// The template with `{% generation %}` blocks turned into blocks of a filter that marks what they
/// hold.
fn mark_generation(source: &str) -> String {
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

/// The innermost reason of a template's error.
fn describe(error: &Error) -> String {
    error.detail().map_or_else(|| error.to_string(), str::to_owned)
}
