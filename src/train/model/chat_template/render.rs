//! Rendering: what the template writes for a conversation.

use minijinja::value::Serde;
use minijinja::{Error, ErrorKind};

use super::ChatTemplate;
use super::error::{TemplateError, describe};
use super::omissions::refuse_reserved;
use super::values::{self, Form, writes_python_dict};
use crate::dataset::Message;
use crate::train::model::tokenizer::ESCAPE;

/// Longest text that a template may write.
const MAX_RENDERED_BYTES: usize = 64 * 1024 * 1024;

impl ChatTemplate {
    /// For inference: the conversation and the beginning of the assistant's answer. Whatever in it is spelled like
    /// a control token and comes from the conversation carries a mark, see
    /// [`escape`](crate::train::model::tokenizer::escape).
    pub fn render_prompt(
        &self,
        messages: &[Message],
        tools: &[serde_json::Value],
    ) -> Result<String, TemplateError> {
        refuse_reserved(messages)?;
        let text = self
            .render(messages, tools, true)
            .map_err(|error| self.name_message(messages, tools, error))?;
        self.refuse_omissions(messages, tools, &text)?;
        Ok(text)
    }

    /// What the template writes, in the first form of the conversation that it takes.
    pub(super) fn render(
        &self,
        messages: &[Message],
        tools: &[serde_json::Value],
        add_generation_prompt: bool,
    ) -> Result<String, TemplateError> {
        let mut refused = None;
        let mut printed = None;
        for form in Form::of(messages) {
            match self.render_form(messages, tools, add_generation_prompt, form) {
                Ok(text) if !form.text_arguments && writes_python_dict(&text, messages) => {
                    printed.get_or_insert(text);
                }
                Ok(text) => return Ok(text),
                Err(TemplateError::Endless) => return Err(TemplateError::Endless),
                Err(error) => {
                    refused.get_or_insert(error);
                }
            }
        }
        match (printed, refused) {
            (Some(text), _) => Ok(text),
            (None, Some(error)) => Err(error),
            (None, None) => Ok(String::new()),
        }
    }

    fn render_form(
        &self,
        messages: &[Message],
        tools: &[serde_json::Value],
        add_generation_prompt: bool,
        form: Form,
    ) -> Result<String, TemplateError> {
        let (name, named) = self.choose(tools)?;
        let values = values::messages(messages, form, named.takes, &self.control);
        let tools = values::tools(tools, &self.control);
        let tools = if tools.is_empty() { None } else { Some(tools) };
        let context = minijinja::context! {
            messages => Serde(&values),
            tools => Serde(tools),
            add_generation_prompt => add_generation_prompt,
            bos_token => self.beginning.clone(),
            eos_token => self.end.clone(),
            ..self.settings.variables()
        };
        let refused = |error: Error| match error.kind() {
            ErrorKind::OutOfFuel => TemplateError::Endless,
            _ => TemplateError::Refused(describe(&error)),
        };
        let template = self.environment.get_template(name).map_err(refused)?;
        let text = template.render(context).map_err(refused)?;
        if text.len() > MAX_RENDERED_BYTES {
            return Err(TemplateError::Refused(format!("it writes {} bytes", text.len())));
        }
        // What JSON in ASCII alone makes of the mark.
        let spelled = format!("\\u{:04x}", u32::from(ESCAPE));
        Ok(if text.contains(&spelled) { text.replace(&spelled, &ESCAPE.to_string()) } else { text })
    }

    /// A refusal, with the message from which on the template refuses.
    pub(super) fn name_message(
        &self,
        messages: &[Message],
        tools: &[serde_json::Value],
        error: TemplateError,
    ) -> TemplateError {
        let TemplateError::Refused(reason) = &error else {
            return error;
        };
        // Some templates refuse system messages in words of their own.
        let is_system = messages.first().is_some_and(|first| first.role.in_templates() == "system");
        if is_system && self.render(&messages[1..], tools, true).is_ok() {
            let reason = format!(
                "the model's chat template takes no system messages ({error}): put the text at \
                 the beginning of the first user message"
            );
            return TemplateError::message(0, reason);
        }
        let refuses = |count: &usize| self.render(&messages[..*count], tools, false).is_err();
        match (1..=messages.len()).find(refuses) {
            Some(count) => TemplateError::message(
                count - 1,
                format!("the chat template refuses the conversation here: {reason}"),
            ),
            None => error,
        }
    }
}
