//! From a request to its sequences: tokenizes the prompts and checks that the model can do what the request
//! asks for.

use std::sync::Arc;

use super::error::ServeError;
use super::events::{Event, EventSender};
use super::loaded_model::{LoadedModel, NamedAdapter};
use super::model_template::ModelTemplate;
use super::reasoning_parser::ReasoningParser;
use super::request::{Prompt, Request, TextPrompt};
use super::sample::Sampler;
use super::sequence_output::{OutputParameters, OutputParsers, SequenceOutput};
use super::tool_call_parser::ToolCallParser;
use super::tool_format::ToolFormat;
use crate::dataset::Message;
use crate::domain::error_code::ErrorCode;
use crate::train::model::base_model::BaseModel;
use crate::train::model::chat_template::{ChatTemplate, ReasoningTags, TemplateError};
use crate::util::exact_json::ExactJson;

/// Encodes requests to one model.
pub(super) struct RequestEncoder<'a> {
    /// The model's name.
    id: &'a str,
    /// Its tokenizer.
    model: &'a BaseModel,
    /// The chat template, that of the adapter where it keeps one.
    template: ModelTemplate,
    /// Longest sequence in tokens.
    context_length: usize,
    /// Number of tokens in the vocabulary.
    vocabulary: usize,
}

/// A prompt in tokens.
struct EncodedPrompt {
    ids: Arc<[u32]>,
    /// As [`OutputParameters::before_text`].
    before_text: usize,
    /// How answers hold reasoning, if they do.
    reasoning: Option<ReasoningTags>,
}

impl<'a> RequestEncoder<'a> {
    /// For requests to this model, or to the adapter beside it.
    pub fn new(model: &'a LoadedModel, adapter: Option<&NamedAdapter>) -> Self {
        let kept = adapter.and_then(|adapter| adapter.template.as_ref());
        Self {
            id: model.id(),
            model: model.model(),
            template: kept.map_or_else(
                || ModelTemplate::of_model(model.model()),
                |kept| kept.as_ref().clone(),
            ),
            context_length: model.responder().context_length(),
            vocabulary: model.responder().vocabulary(),
        }
    }

    /// The outputs of the sequences of a request, `n` for each prompt. Tells the client that the request
    /// has started.
    ///
    /// # Errors
    /// Why the model cannot answer the request, for the client.
    pub fn encode(
        &self,
        request: Request,
        events: &EventSender,
    ) -> Result<Vec<Vec<SequenceOutput>>, ServeError> {
        for (token, _) in &request.sampling.logit_bias {
            if *token as usize >= self.vocabulary {
                let message =
                    format!("logit_bias names token {token}, and {}", self.known_tokens());
                return Err(ServeError::about("logit_bias", ErrorCode::InvalidRequest, message));
            }
        }
        let starts_new_text = matches!(request.prompt, Prompt::Chat { .. });
        let mut tool_format = None;
        let prompts = match &request.prompt {
            Prompt::Chat { messages, tools, parallel_tool_calls, template } => {
                let template = self.template.for_request(template)?;
                let most = if *parallel_tool_calls { usize::MAX } else { 1 };
                let format = template.as_ref().filter(|_| !tools.is_empty());
                tool_format = format.and_then(ToolFormat::of).map(|format| (format, most));
                vec![self.encode_chat(template.as_ref(), messages, tools)?]
            }
            Prompt::Texts(texts) => {
                let encoded: Result<Vec<EncodedPrompt>, ServeError> =
                    texts.iter().map(|text| self.encode_text(text)).collect();
                encoded?
            }
        };
        let seed = request.seed.unwrap_or_else(random_seed);
        let mut outputs = Vec::with_capacity(prompts.len());
        let mut index = 0;
        for prompt in &prompts {
            let max_tokens = self.max_tokens(prompt.ids.len(), request.max_tokens);
            let max_tokens = max_tokens.map_err(|message| {
                let field = request.prompt.field();
                ServeError::about(field, ErrorCode::ContextLengthExceeded, message)
            })?;
            let mut of_prompt = Vec::with_capacity(request.n as usize);
            for _ in 0..request.n {
                let parameters = OutputParameters {
                    index,
                    prompt: Arc::clone(&prompt.ids),
                    before_text: prompt.before_text,
                    starts_new_text,
                    echo: request.echo,
                    max_tokens,
                    stop: request.stop.clone(),
                    stop_tokens: Arc::clone(&self.template.stop_tokens),
                    log_probabilities: request.log_probabilities,
                };
                let sampler = Sampler::new(request.sampling.clone(), seed, index);
                let parsers = OutputParsers {
                    reasoning: prompt.reasoning.clone().map(ReasoningParser::new),
                    tools: tool_format.map(|(format, most)| ToolCallParser::new(format, most)),
                };
                let tokenizer = Arc::clone(&self.model.tokenizer);
                let events = events.clone();
                of_prompt
                    .push(SequenceOutput::new(parameters, sampler, parsers, tokenizer, events));
                index += 1;
            }
            outputs.push(of_prompt);
        }
        let prompt_tokens = prompts.iter().map(|prompt| prompt.ids.len() as u64).sum();
        events.send(Event::Started { prompt_tokens });
        Ok(outputs)
    }

    /// Most tokens to generate after a prompt of this length, or why the context has no room for one.
    fn max_tokens(&self, prompt_tokens: usize, requested: Option<u32>) -> Result<usize, String> {
        let room = self.context_length.checked_sub(prompt_tokens);
        match (room, requested) {
            // Nothing is generated, so the prompt may fill the context.
            (Some(_), Some(0)) => Ok(0),
            (Some(room @ 1..), requested) => {
                Ok(requested.map_or(room, |most| room.min(most as usize)))
            }
            _ => Err(format!(
                "the prompt is {prompt_tokens} tokens long and the model's context is {} tokens: \
                 shorten it",
                self.context_length
            )),
        }
    }

    /// Tokenizes a conversation, up to where the answer begins.
    fn encode_chat(
        &self,
        template: Option<&ChatTemplate>,
        messages: &[Message],
        tools: &[ExactJson],
    ) -> Result<EncodedPrompt, ServeError> {
        let Some(template) = template else {
            let message = format!(
                "the base model {:?} has no chat template: /v1/completions continues plain texts",
                self.id
            );
            return Err(ServeError::about("model", ErrorCode::InvalidRequest, message));
        };
        let refused = |code, message| ServeError::about("messages", code, message);
        let text = template.render_prompt(messages, tools).map_err(|error| match error {
            TemplateError::NoTools => {
                ServeError::about("tools", ErrorCode::Unsupported, error.to_string())
            }
            TemplateError::NoToolCalls { .. } => refused(ErrorCode::Unsupported, error.to_string()),
            TemplateError::NoDefault { .. } => {
                let code = ErrorCode::InvalidRequest;
                ServeError::about("chat_template", code, error.to_string())
            }
            _ => refused(ErrorCode::InvalidRequest, error.to_string()),
        })?;
        let tokens = self.model.tokenizer.encode_escaped(&text);
        let tokens =
            tokens.map_err(|error| refused(ErrorCode::ControlTokenInContent, error.to_string()))?;
        let ids: Vec<u32> = tokens.into_iter().map(|(id, _)| id).collect();
        self.check_ids(&ids, "messages")?;
        let reasoning = template.reasoning_tags(&text);
        Ok(EncodedPrompt { ids: ids.into(), before_text: 0, reasoning })
    }

    /// Tokenizes a plain text. Like transformers, it puts the beginning-of-text token first where the
    /// model's tokenizer says so, unless the text has it already. Tokens are used as they are.
    fn encode_text(&self, prompt: &TextPrompt) -> Result<EncodedPrompt, ServeError> {
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
            // A new text begins as training texts do: after the end of another one.
            ids.extend(special.before_first());
            before_text = ids.len();
        }
        if ids.is_empty() {
            let message = "the prompt is empty, and the model has no token that begins a text";
            return Err(ServeError::about("prompt", ErrorCode::InvalidRequest, message.to_owned()));
        }
        self.check_ids(&ids, "prompt")?;
        Ok(EncodedPrompt { ids: ids.into(), before_text, reasoning: None })
    }

    fn tokens(&self, text: &str) -> Result<Vec<u32>, ServeError> {
        let tokens = self
            .model
            .tokenizer
            .encode(text)
            .map_err(|error| ServeError::new(ErrorCode::InternalError, error.to_string()))?;
        Ok(tokens.into_iter().map(|(id, _)| id).collect())
    }

    /// Refuses tokens that the model's embedding does not have. A tokenizer may know more of them.
    fn check_ids(&self, ids: &[u32], field: &'static str) -> Result<(), ServeError> {
        let Some(id) = ids.iter().find(|id| **id as usize >= self.vocabulary) else {
            return Ok(());
        };
        let text = self.model.tokenizer.text_of(*id);
        let spelled = text.map_or_else(String::new, |text| format!(" ({text:?})"));
        let message = format!("the prompt holds token {id}{spelled}, and {}", self.known_tokens());
        Err(ServeError::about(field, ErrorCode::InvalidRequest, message))
    }

    fn known_tokens(&self) -> String {
        format!("the model's tokens are 0 to {}", self.vocabulary.saturating_sub(1))
    }
}

/// A seed for a request without one.
fn random_seed() -> u64 {
    uuid::Uuid::new_v4().as_u64_pair().0
}
