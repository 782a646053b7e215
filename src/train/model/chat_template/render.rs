//! Rendering: what the template writes for a conversation.

use minijinja::Error;
use minijinja::value::Serde;

use super::ChatTemplate;
use super::error::{TemplateError, describe};
use super::omissions::refuse_reserved;
use crate::dataset::Message;

/// Longest text that a template may write.
const MAX_RENDERED_BYTES: usize = 64 * 1024 * 1024;

impl ChatTemplate {
    /// The conversation as text, after looking that nothing of it is left out.
    pub(super) fn render_whole(
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
    pub(super) fn render(
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
