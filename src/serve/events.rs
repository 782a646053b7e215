//! What the client of a request hears, in order: that its answers have begun, their texts piece by
//! piece, how each ended.
//!
//! The channel has no bound. Whoever runs the models holds many answers in one thread and must not
//! wait for the slowest of their clients; and an answer is never longer than the model's context, so
//! neither is what waits here for a client that reads slowly. A client that goes drops its end, which
//! [`EventSender::is_wanted`] shows.

use tokio::sync::mpsc;

use super::ServeError;

/// Something that a client hears.
#[derive(Debug)]
pub enum Event {
    /// The request can be answered; comes first, once.
    Started {
        /// Tokens of all prompts together.
        prompt_tokens: u64,
    },
    /// The beginning of a prompt need not be read again; comes at most once for each prompt.
    Reused {
        /// Tokens of it.
        prompt_tokens: u64,
    },
    /// More of an answer.
    Delta {
        /// Which answer: those to the first prompt come first.
        index: usize,
        /// What it adds; may be empty.
        text: String,
        /// The tokens behind the text, if log-probabilities are wanted.
        tokens: Vec<ScoredToken>,
    },
    /// An answer calls a tool.
    ToolCall {
        /// Which answer.
        index: usize,
        /// The call.
        call: CalledTool,
    },
    /// An answer is complete.
    Finished {
        /// Which answer.
        index: usize,
        /// Why it ended.
        reason: FinishReason,
        /// Tokens that the model wrote, the one that ended its turn not counted.
        completion_tokens: u64,
    },
    /// There is no answer, or no more of it; nothing follows.
    Failed(ServeError),
}

/// Why an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FinishReason {
    /// The model ended its turn, or wrote a stop text.
    Stop,
    /// The token limit or the context ended it.
    Length,
    /// The model ended its turn with calls of tools.
    ToolCalls,
}

/// A call of a tool, as the model wrote it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CalledTool {
    /// Name of the function.
    pub name: String,
    /// Arguments as JSON text.
    pub arguments: String,
}

/// A token with what the model thought of it.
#[derive(Debug, Clone, PartialEq)]
pub struct ScoredToken {
    /// What it stands for: of a control token the name, which is not part of the text.
    pub bytes: Vec<u8>,
    /// Natural logarithm of the probability that the model itself gave it: before temperature,
    /// penalties and biases. `None` for the first token of a text, which nothing precedes.
    pub log_probability: Option<f64>,
    /// The likeliest tokens at its place, likeliest first.
    pub likeliest: Vec<LikelyToken>,
    /// Where it begins in the answer's text, in characters.
    pub offset: usize,
    /// Whether it ended the answer, and so is not part of the text.
    pub is_end: bool,
}

/// A token that might have stood at a place.
#[derive(Debug, Clone, PartialEq)]
pub struct LikelyToken {
    /// As [`ScoredToken::bytes`].
    pub bytes: Vec<u8>,
    /// As [`ScoredToken::log_probability`].
    pub log_probability: f64,
}

/// The client's end.
pub struct Events(mpsc::UnboundedReceiver<Event>);

/// The end of whoever answers; one request's answers share it.
#[derive(Clone)]
pub struct EventSender(mpsc::UnboundedSender<Event>);

/// Both ends.
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
    /// Tells the client. One that has gone needs to hear nothing.
    pub fn send(&self, event: Event) {
        let _gone = self.0.send(event);
    }

    /// Whether somebody still listens.
    pub fn is_wanted(&self) -> bool {
        !self.0.is_closed()
    }
}
