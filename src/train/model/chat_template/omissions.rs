//! Omissions: a part of a conversation that the template would leave out is an error, never dropped.

use super::ChatTemplate;
use super::error::TemplateError;
use super::markers::{RESERVED, STAND_IN};
use crate::dataset::{Message, Role};

impl ChatTemplate {
    /// Looks that the template writes every tool, every tool call and every message: the
    /// conversation is rendered with stand-ins in their places, each of which must come out. Where
    /// the template refuses the stand-ins, the texts themselves must stand in `text`.
    pub(super) fn refuse_omissions(
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
    tools: Vec<serde_json::Value>,
    list: Vec<Probe>,
}

impl Probes {
    fn of(messages: &[Message], tools: &[serde_json::Value]) -> Self {
        let mut probes =
            Self { messages: messages.to_vec(), tools: tools.to_vec(), list: Vec::new() };
        let Self { messages, tools, list } = &mut probes;
        let mut replace = |part: ProbedPart, text: &mut String| {
            let stand_in = format!("{STAND_IN}{}\u{e001}", list.len());
            let original = std::mem::replace(text, stand_in.clone());
            list.push(Probe { part, original, stand_in });
        };
        for tool in tools {
            if let Some(serde_json::Value::String(name)) = tool.pointer_mut("/function/name") {
                replace(ProbedPart::Tool, name);
            }
        }
        for (index, message) in messages.iter_mut().enumerate() {
            let has_calls = !message.tool_calls.is_empty();
            for call in &mut message.tool_calls {
                replace(ProbedPart::Call(index), &mut call.name);
            }
            // The assistant's plain messages are located one by one.
            if (message.role != Role::Assistant || has_calls || !message.trained)
                && let Some(content) = &mut message.content
                && !content.trim().is_empty()
            {
                replace(ProbedPart::Content(index), content);
            }
        }
        probes
    }
}

/// Refuses texts with the characters that stand for something here.
pub(super) fn refuse_reserved(messages: &[Message]) -> Result<(), TemplateError> {
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
