//! The trained model as a checkpoint holds it: a LoRA adapter, or the whole model where its own weights
//! train.

use std::path::Path;

use super::checkpoint_error::CheckpointError;
use crate::artifacts::model::{self, FOLDER, WEIGHTS_FILE, WeightType};
use crate::artifacts::peft::{self, AdapterConfig};
use crate::train::engine::Engine;
use crate::train::model::base_model::BaseModel;
use crate::train::model::error::LoadError;
use crate::train::model::model_files::ModelFiles;
use crate::train::model::tensors::NamedTensors;
use crate::train::model::weights;
use crate::util::atomic_file;

/// The type of the weights of a model that was trained itself: the one in which it trains.
pub const WEIGHT_TYPE: WeightType = WeightType::Float32;

/// What a run trains, ready for use.
pub enum TrainedModel<'a> {
    /// An adapter, in PEFT's layout, with the chat template of the model that it was trained beside.
    Adapter(&'a AdapterConfig, &'a BaseModel),
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
            Self::Adapter(config, base) => {
                peft::write(folder, config, &engine.trainable_tensors()?)?;
                let mut names = vec![peft::CONFIG_FILE.to_owned(), peft::WEIGHTS_FILE.to_owned()];
                for (name, bytes) in base.kept_template().adapter_files()? {
                    let path = folder.join(name);
                    atomic_file::write(&path, &bytes).map_err(|source| CheckpointError::Io {
                        path: path.display().to_string(),
                        source,
                    })?;
                    names.push(name.to_owned());
                }
                Ok(names)
            }
            Self::Whole(base) => write_model(&folder.join(FOLDER), base, engine),
        }
    }
}

/// Writes the files beside the weights and every tensor, those that did not train as the base has them.
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
    for (name, bytes) in ModelFiles::of(base, WEIGHT_TYPE)?.files {
        let path = folder.join(&name);
        atomic_file::write(&path, &bytes).map_err(io_error(&path))?;
        names.push(name);
    }

    let mut trained = engine.trainable_tensors()?;
    let tensors = engine.tensors();
    let shapes: Vec<_> =
        tensors.iter().map(|tensor| (tensor.name.clone(), tensor.shape())).collect();
    let mut stored = tensors.iter().map(|tensor| &tensor.stored);
    let path = folder.join(WEIGHTS_FILE);
    model::write_weights(&path, &shapes, WEIGHT_TYPE, |name| {
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
    names.push(WEIGHTS_FILE.to_owned());
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
