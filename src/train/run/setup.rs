//! From a specification to everything that a run needs: the base model opened, the data tokenised,
//! every value resolved, the engine loaded. What cannot work is refused here, before any training.

use std::collections::BTreeSet;

use super::Sink;
use super::checkpoint::Identity;
use super::errors::{
    cannot_load, engine_failed, invalid_file, invalid_model, no_such_target, no_validation_example,
    too_few,
};
use super::export::Product;
use super::initial_adapter::Start;
use super::notices;
use super::plan::{self, DataSize, ModelSize, Plan};
use crate::artifacts::peft::AdapterConfig;
use crate::dataset::MIN_EXAMPLES;
use crate::domain::job::{
    DataFile, FineTuneMode, Hyperparameters, JobError, ResolvedHyperparameters,
};
use crate::train::data::tokenize::{EncodedFile, encode_file};
use crate::train::decoder::pack::longest_shared;
use crate::train::engine::memory;
use crate::train::engine::memory::estimate::Workload;
use crate::train::engine::{BackendKind, Engine, load_tuned};
use crate::train::model::base_model::BaseModel;
use crate::train::model::config::ModelConfig;
use crate::train::model::lora::{LoraSettings, LoraTarget};
use crate::train::model::trainable::Trainable;
use crate::train::protocol::RunSpec;

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
    /// How an adapter's files describe it; `None` where the model's own weights train.
    pub adapter: Option<AdapterConfig>,
    /// Whether the run begins with the adapter of an earlier job.
    pub is_continued: bool,
    /// Size of the vocabulary.
    pub vocabulary: usize,
    /// Longest text in tokens.
    pub context: usize,
    /// What computes.
    pub backend: BackendKind,
}

/// What a run goes by before its data is read.
pub(super) struct Opened {
    /// The base model.
    pub base: BaseModel,
    /// Its configuration.
    pub model: ModelConfig,
    /// What a plan needs to know of it.
    pub size: ModelSize,
    /// What the client asked for, with what the adapter that the run begins with decides.
    pub asked: Hyperparameters,
    /// That adapter.
    pub start: Option<Start>,
    /// Longest text in tokens.
    pub context: usize,
}

/// Opens the base model of `spec` and whatever the run begins with.
pub(super) fn open(spec: &RunSpec) -> Result<Opened, JobError> {
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
    if let Some(message) = plan::unknown_layer(&asked, size.layers) {
        return Err(no_such_target(message));
    }
    let context = plan::context_length(&asked, size.context) as usize;
    Ok(Opened { base, model, size, asked, start, context })
}

/// Prepares the run of `spec`; the engine holds the adapter that the run begins with.
pub(super) fn prepare(
    spec: &RunSpec,
    backend: BackendKind,
    sink: &mut Sink<'_>,
) -> Result<(Prepared, Box<dyn Engine>), JobError> {
    let Opened { base, model, size, asked, start, context } = open(spec)?;
    let training = encode_file(&spec.training_file, &base, context)
        .map_err(|error| invalid_file(error, DataFile::Training))?;
    notices::too_long(&training, "training", context, sink);
    let mut validation = None;
    if let Some(path) = &spec.validation_file {
        let file = encode_file(path, &base, context)
            .map_err(|error| invalid_file(error, DataFile::Validation))?;
        notices::too_long(&file, "validation", context, sink);
        if file.sequences.is_empty() {
            return Err(no_validation_example(context));
        }
        validation = Some(file);
    }
    let examples = training.sequences.len() as u64;
    if examples < MIN_EXAMPLES {
        return Err(too_few(examples, training.too_long.len() as u64, context));
    }

    let share = validation.as_ref().map(|file| file.tokens() as f64 / training.tokens() as f64);
    let plan = plan::resolve(&asked, &DataSize { examples, validation_share: share }, &size);
    sink(plan.progress());
    let values = &plan.hyperparameters;
    let tuning = tuning(values);
    let backend = notices::backend(&tuning, backend, sink);
    let all = || [Some(&training), validation.as_ref()].into_iter().flatten();
    let workload = Workload {
        model: &model,
        tuning: &tuning,
        backend,
        longest: all().map(EncodedFile::longest).max().unwrap_or(0),
        // Under dropout every sequence stands for itself.
        shared: match tuning.dropout() > 0.0 {
            true => 0,
            false => all().map(|file| longest_shared(file.all())).max().unwrap_or(0),
        },
        batch_size: values.batch_size as usize,
    };
    let need = memory::estimate::estimate(&workload).map_err(engine_failed)?;
    let free = memory::free_for(backend);
    memory::check(&need, free)?;
    let weights = base.weights.as_ref();
    let mut engine = load_tuned(&base.config, weights, &tuning, u64::from(spec.seed), backend)
        .map_err(cannot_load)?;
    // Candle's products round by what stands beside a row: a resumed run, which keeps nothing of what
    // ran before it, would come to other bytes.
    if matches!(backend, BackendKind::Cpu | BackendKind::CpuF32) {
        engine.keep_frozen(memory::spare(&need, free.1));
    }
    notices::tied_head(&tuning, model.tied, sink);
    if let Some(start) = &start {
        engine.set_trained(&start.tensors).map_err(engine_failed)?;
    }
    notices::statistics(&training, engine.as_ref(), sink);
    notices::frozen(engine.as_ref(), all().map(EncodedFile::tokens).sum(), sink);

    let identity = Identity {
        model: base.digest.clone(),
        start: start.as_ref().map(|start| start.digest.clone()),
        training_file: training.digest.clone(),
        validation_file: validation.as_ref().map(|file| file.digest.clone()),
        seed: spec.seed,
        hyperparameters: values.clone(),
    };
    let mut adapter = None;
    if let Trainable::Lora(lora) = &tuning {
        adapter = Some(AdapterConfig {
            lora_dropout: lora.dropout,
            layers_to_transform: lora.target.layers.clone(),
            use_rslora: lora.is_rank_stabilised,
            modules_to_save: values.modules_to_save.clone(),
            ..AdapterConfig::new(
                &spec.base_model_id,
                lora.rank,
                lora.alpha,
                &engine.adapted_modules(),
                base.config["model_type"] == "gpt2",
            )
        });
    }
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
        backend,
    };
    Ok((prepared, engine))
}

/// What a run with these values trains.
pub(super) fn tuning(values: &ResolvedHyperparameters) -> Trainable {
    match values.tuning {
        FineTuneMode::Lora => Trainable::Lora(lora_settings(values)),
        FineTuneMode::Full => Trainable::Full,
        FineTuneMode::LastLayers => {
            Trainable::LastLayers(values.tuning_layers.unwrap_or_default() as usize)
        }
    }
}

fn lora_settings(values: &ResolvedHyperparameters) -> LoraSettings {
    let rank = values.lora_r.unwrap_or_default() as usize;
    LoraSettings {
        is_rank_stabilised: values.use_rslora.unwrap_or_default(),
        dropout: values.lora_dropout.unwrap_or_default(),
        saved_modules: values.modules_to_save.clone().unwrap_or_default(),
        target: LoraTarget {
            modules: values.lora_target_modules.clone(),
            layers: values.lora_layers.clone(),
        },
        ..LoraSettings::new(rank, values.lora_alpha.unwrap_or_default())
    }
}

impl Prepared {
    /// What the checkpoints of the run hold for use.
    pub(super) fn product(&self) -> Product<'_> {
        self.adapter.as_ref().map_or(Product::Model(&self.base), Product::Adapter)
    }

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
