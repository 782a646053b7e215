//! From a specification to everything that a run needs: the base model opened, the data tokenised, every
//! value resolved, the engine loaded. What cannot work is refused here, before any training. A dry run
//! opens, plans and weighs the memory by the same functions.

use std::collections::BTreeSet;

use super::channels::Sink;
use super::chat_template;
use super::checkpoint::Identity;
use super::errors::{
    RunError, cannot_load, cannot_open, engine_failed, invalid_file, invalid_model, memory_refused,
    no_such_target, no_validation_example, too_few,
};
use super::export::{TrainedModel, WEIGHT_TYPE};
use super::initial_adapter::InitialAdapter;
use super::notices;
use super::plan::{self, DataSize, ModelSize, Plan};
use crate::artifacts::peft::AdapterConfig;
use crate::base_models::hub_name;
use crate::dataset::MIN_EXAMPLES;
use crate::device::Device;
use crate::domain::job::{DataFile, FineTuneMode, Hyperparameters, ResolvedHyperparameters};
use crate::train::data::tokenize::{EncodedFile, encode_file};
use crate::train::decoder::pack::longest_shared_prefix;
use crate::train::device::{self, DeviceMemory};
use crate::train::engine::memory::{self, estimate::MemoryEstimate, estimate::Workload};
use crate::train::engine::{BackendKind, Engine, InferenceEngine, OpenBackend, load_on};
use crate::train::model::base_model::BaseModel;
use crate::train::model::config::ModelConfig;
use crate::train::model::lora::{LoraSettings, LoraTarget};
use crate::train::model::model_files::ModelFiles;
use crate::train::model::trainable::Trainable;
use crate::train::protocol::RunSpec;

/// A run that can begin.
pub(super) struct RunSetup {
    /// The base model.
    pub base: BaseModel,
    /// The training set.
    pub training: EncodedFile,
    /// The validation set.
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

/// The base model of a run and what is requested of it, before the data is read.
pub(super) struct BaseSetup {
    /// The base model.
    pub base: BaseModel,
    /// Its configuration.
    pub model: ModelConfig,
    /// What a plan needs to know of it.
    pub size: ModelSize,
    /// What the client requested, completed by what the initial adapter decides.
    pub requested: Hyperparameters,
    /// The adapter that the run begins with.
    pub initial_adapter: Option<InitialAdapter>,
    /// Longest text in tokens.
    pub context: usize,
}

/// What a data file holds, as far as the plan is concerned.
#[derive(Debug, Clone, Copy)]
pub(super) struct DataTotals {
    /// Examples that fit into the context.
    pub examples: u64,
    /// Their tokens.
    pub tokens: u64,
    /// Examples that do not fit.
    pub left_out: u64,
}

/// The memory that a run needs, beside what its device has.
#[derive(Debug, Clone, Copy)]
pub(super) struct RunMemory {
    /// What it needs at its peak.
    pub need: MemoryEstimate,
    /// Most tokens of a pass.
    pass_tokens: usize,
    /// Where its tensors lie.
    device: Device,
    /// What is there; `None` where the device does not tell, or was not asked.
    available: Option<DeviceMemory>,
    /// Bytes of the machine's memory that it needs beside a device of its own.
    host: Option<u64>,
    /// What the machine has.
    host_available: Option<DeviceMemory>,
}

impl From<&EncodedFile> for DataTotals {
    fn from(file: &EncodedFile) -> Self {
        Self {
            examples: file.examples.len() as u64,
            tokens: file.tokens() as u64,
            left_out: file.too_long.len() as u64,
        }
    }
}

impl BaseSetup {
    /// Opens the base model of `spec` and the adapter that the run begins with.
    pub(super) fn open(spec: &RunSpec, sink: &mut Sink<'_>) -> Result<Self, RunError> {
        let mut base = BaseModel::open(&spec.base_model).map_err(invalid_model)?;
        chat_template::prepare(&mut base, spec, sink)?;
        let model = ModelConfig::read(&base.config).map_err(invalid_model)?;
        let size = ModelSize { context: model.context_length, layers: model.layers as u32 };
        let mut requested = spec.hyperparameters.clone();
        let initial_adapter =
            spec.continue_from.as_deref().map(InitialAdapter::read).transpose()?;
        if let Some(adapter) = &initial_adapter {
            adapter.complete(&mut requested)?;
        }
        if let Some(message) = plan::unknown_layer(&requested, size.layers) {
            return Err(no_such_target(message));
        }
        let context = plan::context_length(&requested, size.context) as usize;
        Ok(Self { base, model, size, requested, initial_adapter, context })
    }

    /// Plans the run over these files.
    ///
    /// # Errors
    /// Too few training examples; no validation example that fits into the context.
    pub(super) fn plan(
        &self,
        training: DataTotals,
        validation: Option<DataTotals>,
    ) -> Result<Plan, RunError> {
        if validation.is_some_and(|file| file.examples == 0) {
            return Err(no_validation_example(self.context));
        }
        if training.examples < MIN_EXAMPLES {
            return Err(too_few(training.examples, training.left_out, self.context));
        }
        let share = validation.map(|file| file.tokens as f64 / training.tokens as f64);
        let data = DataSize { examples: training.examples, validation_share: share };
        Ok(plan::resolve(&self.requested, &data, &self.size))
    }

    /// What the run needs in memory on `backend`, and what is free where it is `open`. `longest` is the longest
    /// example in tokens; `shared` computes the longest beginning that two of them share.
    pub(super) fn memory(
        &self,
        plan: &Plan,
        backend: BackendKind,
        open: Option<&OpenBackend>,
        longest: usize,
        shared: impl FnOnce() -> usize,
    ) -> Result<RunMemory, RunError> {
        let trainable = trainable(&plan.hyperparameters);
        let workload = Workload {
            model: &self.model,
            tuning: &trainable,
            backend,
            longest,
            // Under dropout no sequence shares its beginning.
            shared: if trainable.dropout() > 0.0 { 0 } else { shared() },
            batch_size: plan.hyperparameters.batch_size as usize,
        };
        let found = open.map(OpenBackend::memory).transpose().map_err(cannot_open)?.flatten();
        let pass_tokens = memory::pass_tokens(&workload, found).map_err(engine_failed)?;
        let need = memory::estimate::estimate_for(&workload, pass_tokens).map_err(engine_failed)?;
        let device = backend.device();
        let host = match device {
            Device::Cpu => None,
            Device::Cuda(_) => {
                let (config, weights) = (&self.base.config, self.base.weights.as_ref());
                let read_back = InferenceEngine::needed_bytes(config, weights);
                Some(memory::estimate::host_bytes(&workload, read_back))
            }
        };
        let host_available = device::memory::of_machine();
        Ok(RunMemory { need, pass_tokens, device, available: found, host, host_available })
    }
}

impl RunMemory {
    /// Refuses a run that does not fit, with the numbers.
    pub(super) fn check(&self) -> Result<(), RunError> {
        memory::check(&self.need, self.device, self.available).map_err(memory_refused)?;
        if let Some(host) = self.host {
            memory::check_host(self.device, host, self.host_available).map_err(memory_refused)?;
        }
        Ok(())
    }

    /// Bytes that are free on the device; `None` where it does not tell, or was not asked.
    pub(super) fn free(&self) -> Option<u64> {
        self.available.map(|memory| memory.free)
    }

    /// Bytes that the run may use for what only makes it faster.
    pub(super) fn spare(&self) -> u64 {
        memory::spare(&self.need, self.free())
    }
}

/// Prepares the run of `spec`; the engine holds the adapter that the run begins with.
pub(super) fn prepare(
    spec: &RunSpec,
    backend: BackendKind,
    sink: &mut Sink<'_>,
) -> Result<(RunSetup, Box<dyn Engine>), RunError> {
    let setup = BaseSetup::open(spec, sink)?;
    chat_template::keep(&setup.base, spec)?;
    let (training, validation) = tokenize(spec, &setup, sink)?;
    let plan = setup.plan((&training).into(), validation.as_ref().map(DataTotals::from))?;
    sink(plan.progress());
    let trainable = trainable(&plan.hyperparameters);
    let backend = notices::backend(&trainable, backend, sink);
    let files = || [Some(&training), validation.as_ref()].into_iter().flatten();
    let longest = files().map(EncodedFile::longest).max().unwrap_or(0);
    let shared = || files().map(|file| longest_shared_prefix(file.all())).max().unwrap_or(0);
    let open = OpenBackend::open(backend).map_err(cannot_open)?;
    let memory = setup.memory(&plan, backend, Some(&open), longest, shared)?;
    memory.check()?;
    let open = open.with_pass_tokens(memory.pass_tokens);

    let BaseSetup { base, model, initial_adapter, context, .. } = setup;
    let weights = base.weights.as_ref();
    let mut engine = load_on(open, &base.config, weights, &trainable, u64::from(spec.seed))
        .map_err(cannot_load)?;
    // Candle's products round by what stands beside a row: a resumed run, whose cache is empty, would
    // come to other bytes.
    if matches!(backend, BackendKind::Cpu | BackendKind::CpuF32) {
        engine.set_frozen_cache_budget(memory.spare());
    }
    notices::tied_head(&trainable, model.tied, sink);
    if !matches!(trainable, Trainable::Lora(_)) {
        let files = ModelFiles::of(&base, WEIGHT_TYPE).map_err(invalid_model)?;
        notices::omissions(&files.omissions, sink);
    }
    if let Some(adapter) = &initial_adapter {
        engine.set_trainable_tensors(&adapter.tensors).map_err(engine_failed)?;
    }
    notices::statistics(&training, engine.as_ref(), sink);
    notices::frozen(engine.as_ref(), files().map(EncodedFile::tokens).sum(), sink);

    let identity = Identity {
        model: base.digest.clone(),
        initial_adapter: initial_adapter.as_ref().map(|adapter| adapter.digest.clone()),
        training_file: training.digest.clone(),
        validation_file: validation.as_ref().map(|file| file.digest.clone()),
        seed: spec.seed,
        hyperparameters: plan.hyperparameters.clone(),
        chat_template: chat_template::identity(&base, spec),
    };
    let mut adapter = None;
    if let Trainable::Lora(lora) = &trainable {
        let is_gpt2 = base.config["model_type"] == "gpt2";
        let modules = engine.adapted_modules();
        // By the Hub's name PEFT finds the base on any machine.
        let hub_name = hub_name(&spec.base_model_id, &spec.base_model);
        let base_name = hub_name.unwrap_or_else(|| spec.base_model_id.clone());
        adapter = Some(AdapterConfig {
            lora_dropout: lora.dropout,
            layers_to_transform: lora.target.layers.clone(),
            use_rslora: lora.is_rank_stabilised,
            modules_to_save: plan.hyperparameters.modules_to_save.clone(),
            ..AdapterConfig::new(&base_name, lora.rank, lora.alpha, &modules, is_gpt2)
        });
    }
    let setup = RunSetup {
        base,
        training,
        validation,
        plan,
        identity,
        adapter,
        is_continued: initial_adapter.is_some(),
        vocabulary: model.vocabulary,
        context,
        backend,
    };
    Ok((setup, engine))
}

/// Tokenises the training file and the validation file; says what is left out of them.
fn tokenize(
    spec: &RunSpec,
    setup: &BaseSetup,
    sink: &mut Sink<'_>,
) -> Result<(EncodedFile, Option<EncodedFile>), RunError> {
    let BaseSetup { base, context, .. } = setup;
    let training = encode_file(&spec.training_file, base, *context)
        .map_err(|error| invalid_file(error, DataFile::Training))?;
    notices::too_long(&training, "training", *context, sink);
    notices::data_warnings(&training.warnings, DataFile::Training, sink);
    let mut validation = None;
    if let Some(path) = &spec.validation_file {
        let file = encode_file(path, base, *context)
            .map_err(|error| invalid_file(error, DataFile::Validation))?;
        notices::too_long(&file, "validation", *context, sink);
        notices::data_warnings(&file.warnings, DataFile::Validation, sink);
        validation = Some(file);
    }
    Ok((training, validation))
}

/// What a run with these values trains.
pub(super) fn trainable(values: &ResolvedHyperparameters) -> Trainable {
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

impl RunSetup {
    /// What the checkpoints of the run hold for use.
    pub(super) fn trained_model(&self) -> TrainedModel<'_> {
        match &self.adapter {
            Some(config) => TrainedModel::Adapter(config, &self.base),
            None => TrainedModel::Whole(&self.base),
        }
    }

    /// Prompts for the model to answer: the beginnings of `most` examples up to their first supervised
    /// token, spread over the file. No prompt comes twice.
    pub(super) fn prompts(&self, most: usize) -> Vec<&[u32]> {
        let examples = &self.training.examples;
        let indexes: BTreeSet<usize> =
            (0..most).map(|number| number * examples.len() / most.max(1)).collect();
        let mut prompts: BTreeSet<&[u32]> = BTreeSet::new();
        let first = |index: usize| examples.get(index)?.views.first();
        for sequence in indexes.into_iter().filter_map(first) {
            let supervised = sequence.loss_mask.iter().skip(1).position(|counts| *counts);
            if let Some(index) = supervised {
                prompts.insert(&sequence.input_ids[..=index]);
            }
        }
        prompts.into_iter().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::chat_template::ChatTemplateSettings;
    use crate::domain::error_code::ErrorCode;
    use crate::train::run::errors::Shortage;
    use std::path::Path;

    /// The memory of a run over tiny-llama on `backend`.
    fn memory(backend: BackendKind) -> RunMemory {
        let folder = tempfile::tempdir().expect("a folder");
        let spec = RunSpec {
            base_model: Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/tiny-llama"),
            base_model_id: "tiny-llama".to_owned(),
            continue_from: None,
            training_file: folder.path().join("train.jsonl"),
            validation_file: None,
            work_dir: folder.path().to_owned(),
            seed: 1,
            hyperparameters: Hyperparameters::default(),
            chat_template: ChatTemplateSettings::default(),
            training_date: None,
        };
        let setup = BaseSetup::open(&spec, &mut |_| {}).expect("opens");
        let data = DataTotals { examples: 20, tokens: 2000, left_out: 0 };
        let plan = setup.plan(data, None).expect("plans");
        setup.memory(&plan, backend, None, 100, || 0).expect("estimates")
    }

    #[test]
    fn a_run_on_a_gpu_is_refused_where_the_machine_cannot_check_the_trained_model() {
        let memory = memory(BackendKind::Cuda(3));
        let need = memory.host.expect("it reads back");
        let of = |free, total| Some(DeviceMemory { free, total });
        let with = |available, host_available| RunMemory { available, host_available, ..memory };
        let large = of(1 << 40, 1 << 40);
        for enough in [of(need, need), None] {
            with(large, enough).check().expect("it fits");
        }
        let RunError { error, shortage } =
            with(large, of(need - 1, need - 1)).check().expect_err("the machine is too small");
        assert_eq!((error.code, shortage), (ErrorCode::OutOfMemory, None));
        assert!(error.message.contains("cuda:3 needs about"), "{}", error.message);
        assert!(error.message.contains("machine's own memory"), "{}", error.message);
        // The device is asked as well.
        let error = with(of(1, 1), large).check().expect_err("the device is too small").error;
        assert!(!error.message.contains("machine's own memory"), "{}", error.message);
    }

    #[test]
    fn memory_that_others_hold_is_a_shortage_that_passes_and_too_small_a_machine_is_not() {
        let memory = memory(BackendKind::Cpu);
        let need = memory.need.total();
        let with = |free, total| {
            let available = Some(DeviceMemory { free, total });
            RunMemory { available, ..memory }.check()
        };
        with(need, need).expect("it fits");
        let held = with(need - 1, need).expect_err("others hold it");
        assert_eq!(held.shortage, Some(Shortage { memory: Some(need) }));
        assert!(held.error.message.contains("are free (held: "), "{}", held.error.message);
        let lasting = with(need - 1, need - 1).expect_err("there is not as much");
        assert_eq!((lasting.error.code, lasting.shortage), (ErrorCode::OutOfMemory, None));
        assert!(lasting.error.message.contains("MiB in all"), "{}", lasting.error.message);
    }

    #[test]
    fn a_run_on_the_cpu_is_weighed_once() {
        assert_eq!(memory(BackendKind::Cpu).host, None);
    }
}
