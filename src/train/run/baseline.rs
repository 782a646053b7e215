//! The base model as a baseline of the diagnostics, and the answers by which models are compared.

use super::errors::{RunError, engine_failed};
use super::findings;
use super::general_text;
use super::setup::RunSetup;
use crate::train::engine::Engine;

/// Training prompts that the model answers at the ends of epochs, to see repetition.
const SAMPLES: usize = 3;

/// Most tokens of such an answer.
const SAMPLE_TOKENS: usize = 48;

/// What the base alone does, measured before its own weights move.
pub(super) struct Baseline {
    /// Its loss on general text.
    pub general_text: Option<f64>,
    /// Whether it repeats itself.
    pub repeats: bool,
}

impl Baseline {
    /// Measures it while the engine still holds the base.
    pub(super) fn measure(setup: &RunSetup, engine: &mut dyn Engine) -> Result<Self, RunError> {
        let texts = general_text::sequences(&setup.base, setup.context);
        let general_text = general_text::loss(engine, &texts, false).map_err(engine_failed)?;
        let answers = answers(setup, engine, false)?;
        Ok(Self { general_text, repeats: findings::collapse(0, &answers).is_some() })
    }
}

/// Greedy answers to a few training prompts, of the model as it is (`trained`) or of the base alone.
pub(super) fn answers(
    setup: &RunSetup,
    engine: &mut dyn Engine,
    trained: bool,
) -> Result<Vec<Vec<u32>>, RunError> {
    let ends = &setup.base.tokenizer.special().ends;
    let mut answers = Vec::new();
    for prompt in setup.prompts(SAMPLES) {
        if prompt.len() + SAMPLE_TOKENS > setup.context {
            continue;
        }
        let answer = engine.generate_greedily(prompt, SAMPLE_TOKENS, ends, trained);
        answers.push(answer.map_err(engine_failed)?);
    }
    Ok(answers)
}
