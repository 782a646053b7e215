//! Omissions: a part of a conversation that the template would leave out is an error, never dropped.

use super::ChatTemplate;
use super::error::TemplateError;
use super::markers::{RESERVED, STAND_IN};
use super::reasoning;
use crate::dataset::Message;
use crate::train::model::tokenizer::escape;
use crate::util::exact_json::ExactJson;

impl ChatTemplate {
    /// Looks that the template writes every tool, every tool call and every message into a prompt: the
    /// conversation is rendered with stand-ins in their places, each of which must come out. Where
    /// the template refuses the stand-ins, the texts themselves must stand in `text`. Reasoning of earlier
    /// turns may be left out: models do not see it again.
    pub(super) fn refuse_omissions(
        &self,
        messages: &[Message],
        tools: &[ExactJson],
        text: &str,
    ) -> Result<(), TemplateError> {
        let probes = Probes::of(messages, tools);
        let rendered = self.render(&probes.messages, &probes.tools, true).ok();
        for probe in probes.list {
            let is_written = match &rendered {
                Some(rendered) => rendered.contains(&probe.stand_in),
                None => text.contains(escape(probe.original.trim(), &self.control).as_ref()),
            };
            if is_written {
                continue;
            }
            return Err(match probe.part {
                ProbedPart::Tool => TemplateError::NoTools,
                ProbedPart::Call(message_index) => TemplateError::NoToolCalls { message_index },
                ProbedPart::Content(index) => {
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
}

/// A part of a conversation that a template must write.
enum ProbedPart {
    Tool,
    /// A tool call of the message of this index.
    Call(usize),
    /// The content of the message of this index.
    Content(usize),
}

/// A part, and what stands in its place.
struct Probe {
    part: ProbedPart,
    original: String,
    stand_in: String,
}

/// A conversation with stand-ins for whatever must be written.
struct Probes {
    messages: Vec<Message>,
    tools: Vec<ExactJson>,
    list: Vec<Probe>,
}

impl Probes {
    fn of(messages: &[Message], tools: &[ExactJson]) -> Self {
        let mut probes =
            Self { messages: messages.to_vec(), tools: tools.to_vec(), list: Vec::new() };
        let Self { messages, tools, list } = &mut probes;
        let mut replace = |part: ProbedPart, text: &mut String| {
            let stand_in = format!("{STAND_IN}{}\u{e001}", list.len());
            let original = std::mem::replace(text, stand_in.clone());
            list.push(Probe { part, original, stand_in });
        };
        for tool in tools {
            let function = tool.get_mut("function");
            if let Some(ExactJson::Text(name)) = function.and_then(|one| one.get_mut("name")) {
                replace(ProbedPart::Tool, name);
            }
        }
        for (index, message) in messages.iter_mut().enumerate() {
            for call in &mut message.tool_calls {
                replace(ProbedPart::Call(index), &mut call.name);
            }
            message.content_parts.retain(|part| !part.trim().is_empty());
            if !message.content_parts.is_empty() {
                let parts = &mut message.content_parts;
                parts.iter_mut().for_each(|part| replace(ProbedPart::Content(index), part));
                message.content = Some(message.content_parts.concat());
            } else if let Some(content) = &mut message.content
                && !content.trim().is_empty()
            {
                replace(ProbedPart::Content(index), content);
            }
        }
        probes
    }
}

/// What of a message a text lacks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Missing {
    /// The reasoning that stands in a key of the message.
    Reasoning,
    /// The reasoning that stands in its content.
    ReasoningInContent,
    Calls,
    Content,
}

impl Missing {
    fn of(message: &Message, text: &str, control: &[String]) -> Option<Self> {
        let holds = |part: &str| text.contains(escape(part.trim(), control).as_ref());
        if message.reasoning.as_ref().is_some_and(|reasoning| !holds(reasoning)) {
            return Some(Self::Reasoning);
        }
        if message.tool_calls.iter().any(|call| !holds(&call.name)) {
            return Some(Self::Calls);
        }
        let content = message.content.as_deref().unwrap_or_default();
        let has_parts = !message.content_parts.is_empty();
        if holds(content) || (has_parts && message.content_parts.iter().all(|part| holds(part))) {
            return None;
        }
        // Templates write lines of their own around reasoning.
        match reasoning::split(content) {
            Some((thought, rest)) if holds(rest) => {
                (!holds(thought)).then_some(Self::ReasoningInContent)
            }
            _ => Some(Self::Content),
        }
    }
}

/// Looks that a trained turn holds all of its message. The turn is `answer[..end]`, which ends with the token `stop`;
/// `answer` is all that the template writes from the prompt on.
pub(super) fn refuse_incomplete_turn(
    index: usize,
    message: &Message,
    answer: &str,
    (end, stop): (usize, &str),
    control: &[String],
) -> Result<(), TemplateError> {
    let Some(missing) = Missing::of(message, &answer[..end], control) else { return Ok(()) };
    if Missing::of(message, answer, control).is_none() {
        let reason = format!(
            "the chat template writes {stop:?}, at which the model stops, within this turn: serving would end \
             before the rest of it"
        );
        return Err(TemplateError::message(index, reason));
    }
    let reasoning_lost = "the model's chat template does not write the reasoning of this answer: it would be \
                          lost. Leave it out, or use a model that reasons";
    Err(match missing {
        Missing::Reasoning | Missing::ReasoningInContent => TemplateError::Message {
            message_index: index,
            key: Some(if missing == Missing::Reasoning { "reasoning_content" } else { "content" }),
            reason: reasoning_lost.to_owned(),
        },
        Missing::Calls => TemplateError::NoToolCalls { message_index: index },
        Missing::Content => TemplateError::message(
            index,
            match message.tool_calls.is_empty() {
                true => "the chat template changes the assistant's message itself",
                false => {
                    "the model's chat template does not write the content of this assistant message beside \
                     its tool calls: it would be lost"
                }
            },
        ),
    })
}

/// Refuses texts with the characters that stand for something here.
pub(super) fn refuse_reserved(
    messages: &[Message],
    tools: &[ExactJson],
) -> Result<(), TemplateError> {
    for (index, message) in messages.iter().enumerate() {
        let ids = message.tool_calls.iter().map(|call| &call.id).chain(&message.tool_call_id);
        let calls = message.tool_calls.iter().flat_map(|call| [&call.name, &call.arguments]);
        let contents = message.content.iter().chain(&message.reasoning).chain(&message.name);
        let mut found = contents.chain(ids).chain(calls).find_map(|text| reserved_in(text));
        for call in &message.tool_calls {
            // An escape of JSON becomes its character on the way to the template.
            let arguments = ExactJson::read(&call.arguments).ok();
            let decoded = arguments.and_then(|json| json.find_in_texts(&reserved_in));
            found = found.or(decoded);
        }
        if let Some(found) = found {
            return Err(TemplateError::message(index, reserved_message(found)));
        }
    }
    match tools.iter().find_map(|tool| tool.find_in_texts(&reserved_in)) {
        Some(found) => Err(TemplateError::Tools(reserved_message(found))),
        None => Ok(()),
    }
}

fn reserved_in(text: &str) -> Option<char> {
    text.chars().find(|character| RESERVED.contains(character))
}

fn reserved_message(found: char) -> String {
    let code = u32::from(found);
    format!("the text holds the private-use character U+{code:04X}, which hone uses itself")
}
