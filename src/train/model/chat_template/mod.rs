//! Chat templates: a conversation to text, and which of its bytes the assistant wrote.
//!
//! The supervised spans are found in the rendered text, never guessed from strings: either the template
//! marks them with `{% generation %}`, or the conversation is rendered a second time with a stand-in
//! for the assistant's text, and everything around it must stay the same.

pub mod error;
mod json;
mod markers;
mod omissions;
mod render;
mod supervised_spans;

use std::ops::Range;

use minijinja::syntax::SyntaxConfig;
use minijinja::{Environment, Error, ErrorKind, Value};

pub use self::error::TemplateError;
use self::error::describe;
use self::markers::{GENERATION_BEGINS, GENERATION_ENDS, GENERATION_FILTER, mark_generation};
use crate::dataset::{Message, Role};

/// Steps that a template may take: far more than a long conversation needs, and an endless loop ends.
const FUEL: u64 = 50_000_000;

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
    pub supervised: Vec<Range<usize>>,
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
        let mut supervised = Vec::new();
        for (index, message) in messages.iter().enumerate() {
            if message.role != Role::Assistant || !message.trained {
                continue;
            }
            supervised.push(match &message.content {
                Some(_) if message.tool_calls.is_empty() => {
                    self.locate_content(messages, tools, index, &text)?
                }
                _ => self.locate_turn(messages, tools, index, &text)?,
            });
        }
        Ok(Rendered { text, supervised })
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
        let turn = &rendered.text[rendered.supervised.first()?.clone()];
        self.control.iter().find(|token| turn.ends_with(token.as_str())).cloned()
    }
}
