//! A request becomes answers: prompts as tokens, looked at for what the model cannot do.

use std::sync::Arc;

use super::ServeError;
use super::answer::{Answer, Plan};
use super::events::{Event, EventSender};
use super::request::{Prompt, Request, TextPrompt};
use super::sample::Sampler;
use super::tools::{ToolFormat, ToolReader};
use crate::dataset::Message;
use crate::domain::error_code::ErrorCode;
use crate::train::data::tokenize::{control_token_in, control_token_message};
use crate::train::model::base_model::BaseModel;
use crate::train::model::chat_template::TemplateError;

/// A model, as far as requests to it are concerned.
pub(super) struct Answering<'a> {
    /// Its name.
    pub id: &'a str,
    /// Its tokenizer and template.
    pub model: &'a BaseModel,
    /// Longest text in tokens.
    pub context_length: usize,
    /// How many tokens it knows.
    pub vocabulary: usize,
}

/// A prompt as the model reads it.
struct Encoded {
    ids: Arc<[u32]>,
    /// As [`Plan::before_text`].
    before_text: usize,
}

impl Answering<'_> {
    /// The answers that a request asks for, `n` to each prompt, after telling the client that they
    /// have begun.
    ///
    /// # Errors
    /// What of the request the model cannot do, for the client.
    pub fn begin(&self, request: Request, events: &EventSender) -> Result<Vec<Answer>, ServeError> {
        for (token, _) in &request.sampling.logit_bias {
            if *token as usize >= self.vocabulary {
                let message =
                    format!("logit_bias names token {token}, and {}", self.known_tokens());
                return Err(ServeError::about("logit_bias", ErrorCode::InvalidRequest, message));
            }
        }
        let is_own_text = matches!(request.prompt, Prompt::Chat { .. });
        let prompts = match &request.prompt {
            Prompt::Chat { messages, tools, .. } => vec![self.encode_chat(messages, tools)?],
            Prompt::Texts(texts) => {
                let encoded: Result<Vec<Encoded>, ServeError> =
                    texts.iter().map(|text| self.encode_text(text)).collect();
                encoded?
            }
        };
        let seed = request.seed.unwrap_or_else(random_seed);
        let mut plans = Vec::new();
        for prompt in &prompts {
            let room = self.room(prompt.ids.len(), request.max_tokens);
            let max_tokens = room.map_err(|message| {
                let field = request.prompt.field();
                ServeError::about(field, ErrorCode::ContextLengthExceeded, message)
            })?;
            for _ in 0..request.n {
                plans.push(Plan {
                    index: plans.len(),
                    prompt: Arc::clone(&prompt.ids),
                    before_text: prompt.before_text,
                    is_own_text,
                    echo: request.echo,
                    max_tokens,
                    stop: request.stop.clone(),
                    log_probabilities: request.log_probabilities,
                });
            }
        }
        let tool_format = self.tool_format(&request.prompt);
        let prompt_tokens = prompts.iter().map(|prompt| prompt.ids.len() as u64).sum();
        events.send(Event::Started { prompt_tokens });
        let answers = plans.into_iter().map(|plan| {
            let sampler = Sampler::new(request.sampling.clone(), seed, plan.index);
            let tools = tool_format.map(|(format, most)| ToolReader::new(format, most));
            Answer::new(plan, sampler, tools, Arc::clone(&self.model.tokenizer), events.clone())
        });
        Ok(answers.collect())
    }

    /// In which format answers may call tools, and how often.
    fn tool_format(&self, prompt: &Prompt) -> Option<(ToolFormat, usize)> {
        let Prompt::Chat { tools, parallel_tool_calls, .. } = prompt else {
            return None;
        };
        if tools.is_empty() {
            return None;
        }
        let format = ToolFormat::of(self.model.template.as_ref()?)?;
        Some((format, if *parallel_tool_calls { usize::MAX } else { 1 }))
    }

    /// Most tokens of an answer to a prompt of this length, or why there is no room for one.
    fn room(&self, prompt_tokens: usize, wanted: Option<u32>) -> Result<usize, String> {
        let room = self.context_length.checked_sub(prompt_tokens);
        match (room, wanted) {
            // Nothing is written, so the prompt may fill the context.
            (Some(_), Some(0)) => Ok(0),
            (Some(room @ 1..), wanted) => Ok(wanted.map_or(room, |most| room.min(most as usize))),
            _ => Err(format!(
                "the prompt is {prompt_tokens} tokens long and the model's context is {} tokens: \
                 shorten it",
                self.context_length
            )),
        }
    }

    /// A conversation, up to where the answer begins.
    fn encode_chat(
        &self,
        messages: &[Message],
        tools: &[serde_json::Value],
    ) -> Result<Encoded, ServeError> {
        let Some(template) = &self.model.template else {
            let message = format!(
                "the base model {:?} has no chat template: /v1/completions continues plain texts",
                self.id
            );
            return Err(ServeError::about("model", ErrorCode::InvalidRequest, message));
        };
        let refused = |code, message| ServeError::about("messages", code, message);
        if let Some((index, key, token)) = control_token_in(self.model, messages) {
            let message = format!("messages[{index}].{key}: {}", control_token_message(&token));
            return Err(refused(ErrorCode::ControlTokenInContent, message));
        }
        let text = template.render_prompt(messages, tools).map_err(|error| match error {
            TemplateError::NoTools => {
                ServeError::about("tools", ErrorCode::Unsupported, error.to_string())
            }
            TemplateError::NoToolCalls { .. } => refused(ErrorCode::Unsupported, error.to_string()),
            _ => refused(ErrorCode::InvalidRequest, error.to_string()),
        })?;
        Ok(Encoded { ids: self.tokens(&text)?.into(), before_text: 0 })
    }

    /// A text as it is. As transformers does, a text begins with the beginning-of-text token where
    /// the model's tokenizer says so, unless it has it already; tokens are taken as they are.
    fn encode_text(&self, prompt: &TextPrompt) -> Result<Encoded, ServeError> {
        let special = self.model.tokenizer.special();
        let (mut ids, mut before_text) = match prompt {
            TextPrompt::Tokens(ids) => (ids.clone(), 0),
            TextPrompt::Text(text) => {
                let ids = self.tokens(text)?;
                let beginning = special.beginning.filter(|_| special.adds_beginning);
                match beginning.filter(|beginning| ids.first() != Some(beginning)) {
                    Some(beginning) => ([vec![beginning], ids].concat(), 1),
                    None => (ids, 0),
                }
            }
        };
        if ids.is_empty() {
            // A new text, which begins as training texts do: after the end of another one.
            ids.extend(special.beginning.or(special.ends.first().copied()));
            before_text = ids.len();
        }
        if ids.is_empty() {
            let message = "the prompt is empty, and the model has no token that begins a text";
            return Err(ServeError::about("prompt", ErrorCode::InvalidRequest, message.to_owned()));
        }
        if let Some(id) = ids.iter().find(|id| **id as usize >= self.vocabulary) {
            let message = format!("the prompt holds token {id}, and {}", self.known_tokens());
            return Err(ServeError::about("prompt", ErrorCode::InvalidRequest, message));
        }
        Ok(Encoded { ids: ids.into(), before_text })
    }

    fn tokens(&self, text: &str) -> Result<Vec<u32>, ServeError> {
        let tokens = self
            .model
            .tokenizer
            .encode(text)
            .map_err(|error| ServeError::new(ErrorCode::InternalError, error.to_string()))?;
        Ok(tokens.into_iter().map(|(id, _)| id).collect())
    }

    fn known_tokens(&self) -> String {
        format!("the model's tokens are 0 to {}", self.vocabulary.saturating_sub(1))
    }
}

/// A seed for a request that states none.
fn random_seed() -> u64 {
    uuid::Uuid::new_v4().as_u64_pair().0
}
