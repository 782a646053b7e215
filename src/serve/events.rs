//! The events of a request, in order: it has started, its outputs grow, each output is finished.
//!
//! The channel has no bound. One thread runs the sequences of all clients and must not wait for the slowest
//! client. An output is never longer than the model's context, so the events that wait for a slow client are
//! bounded too. A client that disconnects drops its end, which [`EventSender::is_connected`] shows.

use tokio::sync::mpsc;

use super::error::ServeError;

/// An event of a request.
#[derive(Debug)]
pub enum Event {
    /// The request is accepted. Comes first, once.
    Started {
        /// Tokens of all prompts together.
        prompt_tokens: u64,
    },
    /// A prefix of a prompt was in the prefix cache. Comes at most once for each prompt.
    PrefixCacheHit {
        /// Tokens of the prefix.
        prompt_tokens: u64,
    },
    /// More of an output.
    Delta {
        /// Index of the output: those of the first prompt come first.
        index: usize,
        /// The new text; may be empty.
        text: String,
        /// The tokens of the text, if log-probabilities are requested.
        tokens: Vec<ScoredToken>,
    },
    /// More of what the model thinks before it answers.
    Reasoning {
        /// Index of the output.
        index: usize,
        /// The new text.
        text: String,
    },
    /// An output calls a tool.
    ToolCall {
        /// Index of the output.
        index: usize,
        /// The call.
        call: CalledTool,
    },
    /// An output is finished.
    Finished {
        /// Index of the output.
        index: usize,
        /// Why it ended.
        reason: FinishReason,
        /// Generated tokens, without the stop token.
        completion_tokens: u64,
        /// Those of them that are reasoning.
        reasoning_tokens: u64,
    },
    /// The request failed. Nothing follows.
    Failed(ServeError),
}

/// Why an output ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FinishReason {
    /// A stop token or a stop string.
    Stop,
    /// The token limit or the end of the context.
    Length,
    /// A stop token after tool calls.
    ToolCalls,
}

/// A tool call, as the model wrote it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CalledTool {
    /// Name of the function.
    pub name: String,
    /// Arguments as JSON text.
    pub arguments: String,
}

/// A token with its log-probability.
#[derive(Debug, Clone, PartialEq)]
pub struct ScoredToken {
    /// Its bytes; for a control token its name, which is not part of the text.
    pub bytes: Vec<u8>,
    /// Natural logarithm of the probability that the model gave it, before temperature, penalties and
    /// biases. `None` for the first token of a text.
    pub log_probability: Option<f64>,
    /// The likeliest tokens at its position, likeliest first.
    pub likeliest: Vec<LikelyToken>,
    /// Where it begins in the text of the output, in characters.
    pub offset: usize,
    /// Whether it is the stop token, which is not part of the text.
    pub is_end: bool,
}

/// A likely token at a position.
#[derive(Debug, Clone, PartialEq)]
pub struct LikelyToken {
    /// As [`ScoredToken::bytes`].
    pub bytes: Vec<u8>,
    /// As [`ScoredToken::log_probability`].
    pub log_probability: f64,
}

/// The client's end of the channel.
pub struct Events(mpsc::UnboundedReceiver<Event>);

/// The server's end of the channel, shared by the outputs of a request.
#[derive(Clone)]
pub struct EventSender(mpsc::UnboundedSender<Event>);

/// Both ends of a new channel.
pub(super) fn channel() -> (EventSender, Events) {
    let (sender, receiver) = mpsc::unbounded_channel();
    (EventSender(sender), Events(receiver))
}

impl Events {
    /// The next event; `None` after the last one.
    pub async fn next(&mut self) -> Option<Event> {
        self.0.recv().await
    }
}

impl EventSender {
    /// Sends an event, unless the client has disconnected.
    pub fn send(&self, event: Event) {
        let _disconnected = self.0.send(event);
    }

    /// Whether the client is still connected.
    pub fn is_connected(&self) -> bool {
        !self.0.is_closed()
    }
}
