//! The trained model as a checkpoint holds it: a LoRA adapter, or the whole model where its own weights
//! train.

use std::path::Path;

use super::checkpoint_error::CheckpointError;
use crate::artifacts::model::{self, CONFIG_FILE, FOLDER, WEIGHTS_FILE};
use crate::artifacts::peft::{self, AdapterConfig};
use crate::train::engine::Engine;
use crate::train::model::base_model::BaseModel;
use crate::train::model::config;
use crate::train::model::error::LoadError;
use crate::train::model::tensors::NamedTensors;
use crate::train::model::weights;
use crate::util::atomic_file;

/// What a run trains, ready for use.
pub enum TrainedModel<'a> {
    /// An adapter, in PEFT's layout.
    Adapter(&'a AdapterConfig),
    /// A model in Hugging Face's layout, made of this base: a folder of its own below the
    /// checkpoint's.
    Whole(&'a BaseModel),
}

impl TrainedModel<'_> {
    /// Writes what is in the engine into `folder`; the paths of the files below it.
    pub fn write(
        &self,
        folder: &Path,
        engine: &dyn Engine,
    ) -> Result<Vec<String>, CheckpointError> {
        match self {
            Self::Adapter(config) => {
                peft::write(folder, config, &engine.trainable_tensors()?)?;
                Ok([peft::CONFIG_FILE, peft::WEIGHTS_FILE].map(str::to_owned).to_vec())
            }
            Self::Whole(base) => write_model(&folder.join(FOLDER), base, engine),
        }
    }
}

/// Writes configuration, companions and every tensor, those that did not train as the base has them.
fn write_model(
    folder: &Path,
    base: &BaseModel,
    engine: &dyn Engine,
) -> Result<Vec<String>, CheckpointError> {
    let io_error = |path: &Path| {
        let path = path.display().to_string();
        move |source| CheckpointError::Io { path, source }
    };
    std::fs::create_dir(folder).map_err(io_error(folder))?;
    let mut names = Vec::new();
    for (name, bytes) in base.companions()? {
        let path = folder.join(&name);
        atomic_file::write(&path, &bytes).map_err(io_error(&path))?;
        names.push(name);
    }
    let path = folder.join(CONFIG_FILE);
    let mut config = serde_json::to_vec_pretty(&config_of(base))
        .map_err(|error| CheckpointError::Damaged(error.to_string()))?;
    config.push(b'\n');
    atomic_file::write(&path, &config).map_err(io_error(&path))?;

    let mut trained = engine.trainable_tensors()?;
    let tensors = engine.tensors();
    let shapes: Vec<_> =
        tensors.iter().map(|tensor| (tensor.name.clone(), tensor.shape())).collect();
    let mut stored = tensors.iter().map(|tensor| &tensor.stored);
    let path = folder.join(WEIGHTS_FILE);
    model::write_weights(&path, &shapes, |name| {
        let stored = stored.next().map_or(name, |stored| stored);
        match trained.remove(name) {
            Some((_, values)) => Ok(values),
            None => Ok::<_, WriteError>(base.weights.tensor(stored)?.into_f32()),
        }
    })
    .map_err(|error| match error {
        WriteError::Io(source) => io_error(&path)(source),
        WriteError::Load(error) => error.into(),
    })?;
    names.extend([CONFIG_FILE, WEIGHTS_FILE].map(str::to_owned));
    Ok(names.into_iter().map(|name| format!("{FOLDER}/{name}")).collect())
}

/// Why weights cannot be written.
enum WriteError {
    Io(std::io::Error),
    Load(LoadError),
}

impl From<std::io::Error> for WriteError {
    fn from(error: std::io::Error) -> Self {
        Self::Io(error)
    }
}

impl From<LoadError> for WriteError {
    fn from(error: LoadError) -> Self {
        Self::Load(error)
    }
}

/// The base's configuration with the type of the weights that are written, so that whoever loads
/// them in the type that it names computes what was trained; and with the name of the class, which a
/// GGUF file does not have and vLLM asks for.
pub fn config_of(base: &BaseModel) -> serde_json::Value {
    let mut config = base.config.clone();
    let Some(keys) = config.as_object_mut() else { return config };
    for key in ["dtype", "torch_dtype"] {
        if let Some(value) = keys.get_mut(key) {
            *value = "float32".into();
        }
    }
    if !keys.contains_key("dtype") && !keys.contains_key("torch_dtype") {
        keys.insert("dtype".to_owned(), "float32".into());
    }
    if !keys.contains_key("architectures") {
        let kind = keys.get("model_type").and_then(serde_json::Value::as_str);
        if let Some(class) = kind.and_then(config::class_of) {
            keys.insert("architectures".to_owned(), serde_json::json!([class]));
        }
    }
    config
}

/// The tensors of a checkpoint that train, which are those that its moments name.
pub fn read(folder: &Path, moments: &NamedTensors) -> Result<NamedTensors, CheckpointError> {
    let model = folder.join(FOLDER);
    if !model.is_dir() {
        let read = |name: &str| {
            let path = folder.join(name);
            std::fs::read(&path)
                .map_err(|source| CheckpointError::Io { path: path.display().to_string(), source })
        };
        return Ok(peft::read(&read(peft::CONFIG_FILE)?, &read(peft::WEIGHTS_FILE)?)?.1);
    }
    let weights = weights::safetensors::open(&model)?;
    let mut tensors = NamedTensors::new();
    for name in moments.keys() {
        let tensor = weights.tensor(name)?;
        tensors.insert(name.clone(), (tensor.shape.clone(), tensor.into_f32()));
    }
    Ok(tensors)
}
