//! Rendering: what the template writes for a conversation.

use super::ChatTemplate;
use super::error::TemplateError;
use super::jinja::{self, Limits, Template, Value};
use super::omissions::refuse_reserved;
use super::values::{self, Form, writes_python_dict};
use crate::dataset::Message;
use crate::util::exact_json::ExactJson;

impl ChatTemplate {
    /// For inference: the conversation and the beginning of the assistant's answer. Whatever in it is spelled like
    /// a control token and comes from the conversation carries a mark, see
    /// [`escape`](crate::train::model::tokenizer::escape).
    pub fn render_prompt(
        &self,
        messages: &[Message],
        tools: &[ExactJson],
    ) -> Result<String, TemplateError> {
        jinja::within(Limits::PROMPT, || {
            refuse_reserved(messages, tools)?;
            let text = self
                .render(messages, tools, true)
                .map_err(|error| self.name_message(messages, tools, error))?;
            self.refuse_omissions(messages, tools, &text)?;
            Ok(text)
        })
    }

    /// What the template writes, in the first form of the conversation that it takes.
    pub(super) fn render(
        &self,
        messages: &[Message],
        tools: &[ExactJson],
        add_generation_prompt: bool,
    ) -> Result<String, TemplateError> {
        if let Some(reason) = &self.limit {
            return Err(TemplateError::Limit(reason.clone()));
        }
        let mut refused = None;
        let mut printed = None;
        for form in Form::of(messages) {
            match self.render_form(messages, tools, add_generation_prompt, form) {
                Ok(text) if !form.text_arguments && writes_python_dict(&text, messages) => {
                    printed.get_or_insert(text);
                }
                Ok(text) => return Ok(text),
                Err(limit @ TemplateError::Limit(_)) => return Err(limit),
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
        tools: &[ExactJson],
        add_generation_prompt: bool,
        form: Form,
    ) -> Result<String, TemplateError> {
        let (template, takes) = self.choose(!tools.is_empty())?;
        let mut context = self.settings.variables(&self.control);
        context.push(("messages", values::messages(messages, form, takes, &self.control)));
        context.push(("tools", values::tools(tools, &self.control)));
        context.push(("add_generation_prompt", Value::Bool(add_generation_prompt)));
        for (name, token) in self.named_tokens.iter() {
            context.push((name, Value::from(token.as_str())));
        }
        write(template, context)
    }

    /// What the template writes with other variables than those of a conversation. `variables` is a
    /// JSON object, in which numbers keep every digit.
    ///
    /// # Errors
    /// The variables are no JSON object, or the template refuses them.
    pub fn render_variables(&self, variables: &str) -> Result<String, TemplateError> {
        let (template, _) = self.choose(false)?;
        let variables = ExactJson::read(variables)
            .map_err(|error| TemplateError::Refused(error.to_string()))?;
        let variables = jinja::from_exact(&variables);
        let context = variables
            .named()
            .ok_or_else(|| TemplateError::Refused("the variables are no JSON object".to_owned()))?;
        write(template, context)
    }

    /// A refusal, with the message from which on the template refuses.
    pub(super) fn name_message(
        &self,
        messages: &[Message],
        tools: &[ExactJson],
        error: TemplateError,
    ) -> TemplateError {
        let TemplateError::Refused(reason) = &error else {
            return error;
        };
        // Some templates refuse system messages in words of their own.
        let is_system = messages.first().is_some_and(|first| first.role.in_templates() == "system");
        if is_system {
            match self.render(&messages[1..], tools, true) {
                Err(limit @ TemplateError::Limit(_)) => return limit,
                Err(_) => {}
                Ok(_) => {
                    let reason = format!(
                        "the model's chat template takes no system messages ({error}): put the text at \
                         the beginning of the first user message"
                    );
                    return TemplateError::message(0, reason);
                }
            }
        }
        for count in 1..=messages.len() {
            match self.render(&messages[..count], tools, false) {
                Ok(_) => {}
                Err(limit @ TemplateError::Limit(_)) => return limit,
                Err(_) => {
                    let reason =
                        format!("the chat template refuses the conversation here: {reason}");
                    return TemplateError::message(count - 1, reason);
                }
            }
        }
        error
    }
}

/// What a template writes with these variables.
fn write(template: &Template, context: Vec<(&str, Value)>) -> Result<String, TemplateError> {
    template.render(context).map_err(|error| match error.is_limit() {
        true => TemplateError::Limit(error.to_string()),
        false => TemplateError::Refused(error.to_string()),
    })
}
