//! General text: a few paragraphs on which a model that forgets becomes worse.

use crate::train::backend::BackendError;
use crate::train::data::sequence::Sequence;
use crate::train::engine::Engine;
use crate::train::model::base_model::BaseModel;

/// A few paragraphs of different kinds, written for this; blank lines stand between them.
const TEXTS: &str = include_str!("general_texts.txt");

/// The texts as tokens, every one of them counted; those that are longer than `context` are left
/// out. None at all for a vocabulary that cannot spell them.
pub(super) fn sequences(base: &BaseModel, context: usize) -> Vec<Sequence> {
    let mut made = Vec::new();
    for text in TEXTS.split("\n\n").map(str::trim).filter(|text| !text.is_empty()) {
        let Ok(tokens) = base.tokenizer.encode(text) else { continue };
        if tokens.len() < 2 || tokens.len() > context {
            continue;
        }
        let input_ids: Vec<u32> = tokens.into_iter().map(|(id, _)| id).collect();
        let loss_mask = vec![true; input_ids.len()];
        made.push(Sequence { input_ids, loss_mask });
    }
    made
}

/// Mean loss in nats a token, of the base alone or of the model as it is; `None` without texts.
pub(super) fn loss(
    engine: &mut dyn Engine,
    texts: &[Sequence],
    trained: bool,
) -> Result<Option<f64>, BackendError> {
    let targets: usize = texts.iter().map(|text| text.input_ids.len() - 1).sum();
    if targets == 0 {
        return Ok(None);
    }
    let batch: Vec<&Sequence> = texts.iter().collect();
    let log_probabilities = engine.log_probabilities(&batch, trained)?;
    Ok(Some(-log_probabilities.iter().sum::<f64>() / targets as f64))
}
