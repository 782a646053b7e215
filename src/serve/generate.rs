//! One answer, token by token: sampling, ends, stop texts. Called by [`super::worker`].

use candle_core::{Device, Tensor};
use candle_transformers::generation::LogitsProcessor;

use super::{Choice, FinishReason, ServeError};
use crate::error_code::ErrorCode;
use crate::train::engine::EngineError;
use crate::train::tokenizer::Tokenizer;

/// Gives the logits of the position after `ids`, which continue what was given before.
pub(super) type NextLogits<'a> = dyn FnMut(&[u32]) -> Result<Vec<f32>, EngineError> + 'a;

/// How one answer is made.
pub(super) struct Plan<'a> {
    /// The rendered conversation, as tokens.
    pub prompt: &'a [u32],
    /// Most tokens of the answer, at least 1.
    pub max_tokens: usize,
    /// 0 is greedy.
    pub temperature: f64,
    /// Nucleus.
    pub top_p: f64,
    /// Seed of the sampling.
    pub seed: u64,
    /// Texts that end the answer and are not part of it.
    pub stop: &'a [String],
}

/// Makes one answer. `wanted` is asked before each token; `None` when it said no.
///
/// Returns the answer and how many tokens the model wrote, the end-of-turn token not counted.
pub(super) fn generate(
    plan: &Plan<'_>,
    tokenizer: &Tokenizer,
    next_logits: &mut NextLogits<'_>,
    wanted: &dyn Fn() -> bool,
) -> Result<Option<(Choice, u64)>, ServeError> {
    let top_p = (plan.top_p < 1.0).then_some(plan.top_p);
    let mut sampler = LogitsProcessor::new(plan.seed, Some(plan.temperature), top_p);
    let mut written: Vec<u32> = Vec::new();
    let mut logits = next_logits(plan.prompt).map_err(engine_failed)?;
    loop {
        if !wanted() {
            return Ok(None);
        }
        let token = sample(&mut sampler, &logits)?;
        if tokenizer.stop_ids().contains(&token) {
            return finish(tokenizer, &written, FinishReason::Stop);
        }
        written.push(token);
        if !plan.stop.is_empty() {
            let text = decode(tokenizer, &written)?;
            if let Some(end) = first_stop(&text, plan.stop) {
                let choice =
                    Choice { text: text[..end].to_owned(), finish_reason: FinishReason::Stop };
                return Ok(Some((choice, written.len() as u64)));
            }
        }
        if written.len() >= plan.max_tokens {
            return finish(tokenizer, &written, FinishReason::Length);
        }
        logits = next_logits(&[token]).map_err(engine_failed)?;
    }
}

fn finish(
    tokenizer: &Tokenizer,
    written: &[u32],
    finish_reason: FinishReason,
) -> Result<Option<(Choice, u64)>, ServeError> {
    let text = decode(tokenizer, written)?;
    Ok(Some((Choice { text, finish_reason }, written.len() as u64)))
}

fn decode(tokenizer: &Tokenizer, ids: &[u32]) -> Result<String, ServeError> {
    tokenizer.decode(ids).map_err(|reason| ServeError {
        code: ErrorCode::InternalError,
        message: format!("the tokenizer cannot decode what the model wrote: {reason}"),
    })
}

fn sample(sampler: &mut LogitsProcessor, logits: &[f32]) -> Result<u32, ServeError> {
    Tensor::from_slice(logits, logits.len(), &Device::Cpu)
        .and_then(|logits| sampler.sample(&logits))
        .map_err(|error| ServeError {
            code: ErrorCode::InternalError,
            message: format!("sampling failed: {error}"),
        })
}

/// Where the earliest stop text begins, in bytes.
fn first_stop(text: &str, stop: &[String]) -> Option<usize> {
    stop.iter().filter_map(|stop| text.find(stop.as_str())).min()
}

/// An engine fault is ours: the client hears that it failed, the log hears why.
pub(super) fn engine_failed(error: EngineError) -> ServeError {
    ServeError { code: ErrorCode::InternalError, message: error.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_earliest_stop_text_ends_an_answer() {
        let stop = ["END".to_owned(), "\n".to_owned()];
        assert_eq!(first_stop("one\ntwo END", &stop), Some(3));
        assert_eq!(first_stop("one END\n", &stop), Some(4));
        assert_eq!(first_stop("one", &stop), None);
    }
}
