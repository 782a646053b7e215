//! From a specification to everything that a run needs: the base model opened, the data tokenised,
//! every value resolved, the engine loaded. What cannot work is refused here, before any training.

use std::collections::BTreeSet;

use super::announce;
use super::base_model::BaseModel;
use super::checkpoint::Identity;
use super::config::ModelConfig;
use super::decoder::pack::longest_shared;
use super::encode::{EncodedFile, encode_file};
use super::engine::{BackendKind, Engine, LoraSettings, LoraTarget, load};
use super::failure::{
    cannot_load, engine_failed, invalid_file, invalid_model, no_such_target, no_validation_example,
    too_few,
};
use super::memory::{self, estimate::Workload};
use super::protocol::RunSpec;
use super::resolve::{self, DataSize, ModelSize, Plan};
use super::run::Sink;
use super::start::Start;
use crate::artifacts::peft::AdapterConfig;
use crate::dataset::MIN_EXAMPLES;
use crate::job::{DataFile, JobError, ResolvedHyperparameters};

/// A run that can begin.
pub(super) struct Prepared {
    /// The base model.
    pub base: BaseModel,
    /// What is trained on.
    pub training: EncodedFile,
    /// What is measured on.
    pub validation: Option<EncodedFile>,
    /// Every value, and the steps.
    pub plan: Plan,
    /// What the run is.
    pub identity: Identity,
    /// How the adapter's files describe it.
    pub adapter: AdapterConfig,
    /// Whether the run begins with the adapter of an earlier job.
    pub is_continued: bool,
    /// Size of the vocabulary.
    pub vocabulary: usize,
    /// Longest text in tokens.
    pub context: usize,
}

/// Prepares the run of `spec`; the engine holds the adapter that the run begins with.
pub(super) fn prepare(
    spec: &RunSpec,
    backend: BackendKind,
    sink: &mut Sink<'_>,
) -> Result<(Prepared, Box<dyn Engine>), JobError> {
    let base = BaseModel::open(&spec.base_model).map_err(invalid_model)?;
    let model = ModelConfig::read(&base.config).map_err(invalid_model)?;
    let size = ModelSize { context: model.context_length, layers: model.layers as u32 };
    let mut asked = spec.hyperparameters.clone();
    let start = match &spec.continue_from {
        Some(folder) => Some(Start::read(folder)?),
        None => None,
    };
    if let Some(start) = &start {
        start.settle(&mut asked)?;
    }
    if let Some(message) = resolve::unknown_layer(&asked, size.layers) {
        return Err(no_such_target(message));
    }
    let context = resolve::context_length(&asked, size.context) as usize;

    let training = encode_file(&spec.training_file, &base, context)
        .map_err(|error| invalid_file(error, DataFile::Training))?;
    announce::too_long(&training, "training", context, sink);
    let mut validation = None;
    if let Some(path) = &spec.validation_file {
        let file = encode_file(path, &base, context)
            .map_err(|error| invalid_file(error, DataFile::Validation))?;
        announce::too_long(&file, "validation", context, sink);
        if file.sequences.is_empty() {
            return Err(no_validation_example(context));
        }
        validation = Some(file);
    }
    let examples = training.sequences.len() as u64;
    if examples < MIN_EXAMPLES {
        return Err(too_few(examples, &training, context));
    }

    let share = validation.as_ref().map(|file| file.tokens() as f64 / training.tokens() as f64);
    let plan = resolve::resolve(&asked, &DataSize { examples, validation_share: share }, &size);
    sink(plan.progress());
    let values = &plan.hyperparameters;
    let lora = lora_settings(values);
    let all = || [Some(&training), validation.as_ref()].into_iter().flatten();
    let workload = Workload {
        model: &model,
        lora: &lora,
        backend,
        longest: all().map(EncodedFile::longest).max().unwrap_or(0),
        // Under dropout every sequence stands for itself.
        shared: match lora.dropout > 0.0 {
            true => 0,
            false => all().map(|file| longest_shared(file.all())).max().unwrap_or(0),
        },
        batch_size: values.batch_size as usize,
    };
    let need = memory::estimate::estimate(&workload).map_err(engine_failed)?;
    memory::check(&need, memory::free_for(backend))?;
    let mut engine =
        load(&base.config, base.weights.as_ref(), &lora, u64::from(spec.seed), backend)
            .map_err(cannot_load)?;
    if let Some(start) = &start {
        engine.set_trained(&start.tensors).map_err(engine_failed)?;
    }
    announce::statistics(&training, engine.as_ref(), sink);

    let identity = Identity {
        model: base.digest.clone(),
        start: start.as_ref().map(|start| start.digest.clone()),
        training_file: training.digest.clone(),
        validation_file: validation.as_ref().map(|file| file.digest.clone()),
        seed: spec.seed,
        hyperparameters: values.clone(),
    };
    let adapter = AdapterConfig {
        lora_dropout: lora.dropout,
        layers_to_transform: lora.target.layers.clone(),
        use_rslora: lora.is_rank_stabilised,
        ..AdapterConfig::new(
            &spec.base_model_id,
            lora.rank,
            lora.alpha,
            &engine.adapted_modules(),
            base.config["model_type"] == "gpt2",
        )
    };
    let prepared = Prepared {
        base,
        training,
        validation,
        plan,
        identity,
        adapter,
        is_continued: start.is_some(),
        vocabulary: model.vocabulary,
        context,
    };
    Ok((prepared, engine))
}

fn lora_settings(values: &ResolvedHyperparameters) -> LoraSettings {
    LoraSettings {
        is_rank_stabilised: values.use_rslora,
        dropout: values.lora_dropout,
        target: LoraTarget {
            modules: values.lora_target_modules.clone(),
            layers: values.lora_layers.clone(),
        },
        ..LoraSettings::new(values.lora_r as usize, values.lora_alpha)
    }
}

impl Prepared {
    /// The beginnings of `most` examples up to their first learnt token, spread over the file: what
    /// the model is asked when it shall write by itself. No beginning comes twice.
    pub(super) fn prompts(&self, most: usize) -> Vec<&[u32]> {
        let sequences = &self.training.sequences;
        let places: BTreeSet<usize> =
            (0..most).map(|place| place * sequences.len() / most.max(1)).collect();
        let mut prompts: BTreeSet<&[u32]> = BTreeSet::new();
        for sequence in places.into_iter().filter_map(|place| sequences.get(place)) {
            let learnt = sequence.loss_mask.iter().skip(1).position(|counts| *counts);
            if let Some(index) = learnt {
                prompts.insert(&sequence.input_ids[..=index]);
            }
        }
        prompts.into_iter().collect()
    }
}
