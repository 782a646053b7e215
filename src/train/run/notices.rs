//! Notices: the events that a run sends about its data, memory and values.

use std::time::Duration;

use super::channels::Sink;
use crate::dataset::{Diagnostics, MAX_LISTED_PROBLEMS};
use crate::domain::job::{DataFile, EventLevel};
use crate::train::data::sequence::Sequence;
use crate::train::data::tokenize::EncodedFile;
use crate::train::engine::{BackendKind, Engine};
use crate::train::model::trainable::Trainable;
use crate::train::protocol::Progress;

/// Warnings of a data file that an event says in full.
const SHOWN: usize = 3;

/// Says a sentence.
pub(super) fn note(
    sink: &mut Sink<'_>,
    level: EventLevel,
    message: String,
    data: Option<serde_json::Value>,
) {
    sink(Progress::Note { level, message, data });
}

/// Says a sentence that the user should look at.
pub(super) fn warn(sink: &mut Sink<'_>, message: String) {
    note(sink, EventLevel::Warn, message, None);
}

/// Says which examples are left out because they are too long.
pub(super) fn too_long(file: &EncodedFile, which: &str, context: usize, sink: &mut Sink<'_>) {
    let Some(longest) = file.too_long.iter().map(|(_, tokens)| *tokens).max() else {
        return;
    };
    let lines: Vec<String> = file
        .too_long
        .iter()
        .take(MAX_LISTED_PROBLEMS)
        .map(|(line, tokens)| format!("{line} ({tokens} tokens)"))
        .collect();
    let more = match file.too_long.len() - lines.len() {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    let message = format!(
        "{} of {} {which} examples are longer than {context} tokens and are left out whole, none is \
         cut: lines {}{more}; the longest has {longest} tokens",
        file.too_long.len(),
        file.too_long.len() + file.examples.len(),
        lines.join(", ")
    );
    let data = serde_json::json!({"left_out": file.too_long.len(), "longest": longest});
    note(sink, EventLevel::Warn, message, Some(data));
}

/// Says what the user should look at in a data file, though it can be used.
pub(super) fn data_warnings(warnings: &Diagnostics, which: DataFile, sink: &mut Sink<'_>) {
    if warnings.is_empty() {
        return;
    }
    let first: Vec<String> = warnings.listed.iter().take(SHOWN).map(ToString::to_string).collect();
    let more = match warnings.total - first.len() as u64 {
        0 => String::new(),
        more => format!("; and {more} more"),
    };
    let message = format!("{}: {}{more}", which.param(), first.join("; "));
    let data = serde_json::json!({"warnings": warnings.listed, "total": warnings.total});
    note(sink, EventLevel::Warn, message, Some(data));
}

/// The backend that the run takes: another one than `wanted`, and a sentence that says so, where that
/// does not train what `tuning` asks for.
pub(super) fn backend(tuning: &Trainable, wanted: BackendKind, sink: &mut Sink<'_>) -> BackendKind {
    let is_frozen = matches!(wanted, BackendKind::Cpu | BackendKind::CpuF32);
    if !tuning.needs_weights() || !is_frozen {
        return wanted;
    }
    let message = "The run computes with candle in 32-bit floats, slower than LoRA alone would: \
                   hone's own kernels for the CPU keep the model's weights as they are"
        .to_owned();
    note(sink, EventLevel::Info, message, None);
    BackendKind::Candle
}

/// Says what the files of a whole model leave out of the base's, a sentence each.
pub(super) fn omissions(sentences: &[String], sink: &mut Sink<'_>) {
    for sentence in sentences {
        warn(sink, format!("In the trained model's {sentence}"));
    }
}

/// Says that the head does not train, where one could think that it does.
pub(super) fn tied_head(tuning: &Trainable, is_tied: bool, sink: &mut Sink<'_>) {
    if !is_tied || !matches!(tuning, Trainable::LastLayers(_)) {
        return;
    }
    let message =
        "The model's head is its embedding, which stays as it is: the input of the first \
                   blocks would change with it. tuning \"full\" trains it"
            .to_owned();
    note(sink, EventLevel::Info, message, None);
}

/// Says that the frozen blocks run over each text once, where they do. `tokens` are those of all texts.
pub(super) fn frozen(engine: &dyn Engine, tokens: usize, sink: &mut Sink<'_>) {
    let room = engine.frozen_cache().capacity;
    if room == 0 {
        return;
    }
    let how_far = match room >= tokens as u64 {
        true => "later epochs do not compute them again".to_owned(),
        false => format!(
            "memory has room for about {room} of {tokens} tokens, which later epochs do not compute again"
        ),
    };
    let message = format!("The outputs of the frozen blocks are cached: {how_far}");
    let data = serde_json::json!({"room_for_tokens": room, "tokens": tokens});
    note(sink, EventLevel::Info, message, Some(data));
}

/// Says what the data and what trains come to.
pub(super) fn statistics(training: &EncodedFile, engine: &dyn Engine, sink: &mut Sink<'_>) {
    let tokens = training.tokens();
    let supervised: u64 = training.all().map(Sequence::targets).sum();
    let (trainable, total) = engine.parameter_counts();
    let message = format!(
        "{} training examples with {tokens} tokens, {supervised} of them ({:.0} %) supervised; \
         {trainable} of {total} parameters are trained",
        training.examples.len(),
        100.0 * supervised as f64 / tokens.max(1) as f64
    );
    let data = serde_json::json!({
        "examples": training.examples.len(),
        "tokens": tokens,
        "loss_tokens": supervised,
        "trainable_parameters": trainable,
        "total_parameters": total,
    });
    note(sink, EventLevel::Info, message, Some(data));
}

/// Says how far each block's weights have moved, the blocks in order.
pub(super) fn weight_change(change: &[(u32, f64)], sink: &mut Sink<'_>) {
    let (Some(first), Some(last)) = (change.first(), change.last()) else {
        return;
    };
    let message = format!(
        "Mean |ΔW| by block: from {:.2e} in block {} to {:.2e} in block {}; the report has the table",
        first.1, first.0, last.1, last.0
    );
    let data = change.iter().map(|(layer, mean)| (layer.to_string(), serde_json::json!(mean)));
    let data = serde_json::json!({"mean_absolute_change": serde_json::Map::from_iter(data)});
    note(sink, EventLevel::Info, message, Some(data));
}

/// Says for how long the run has yielded to serving, if that is a second or more.
pub(super) fn yielded(waited: Duration, sink: &mut Sink<'_>) {
    let seconds = waited.as_secs_f64();
    if seconds < 1.0 {
        return;
    }
    let message = format!("Training waited {seconds:.0} seconds while requests were answered");
    let data = serde_json::json!({"yielded_seconds": seconds});
    note(sink, EventLevel::Info, message, Some(data));
}
