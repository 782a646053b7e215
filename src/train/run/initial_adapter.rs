//! The initial adapter of a run that continues an earlier job (warm start).

use std::path::Path;

use super::checkpoint::sha256_of;
use super::errors::{RunError, checkpoint_failed, file_failed, internal, no_such_target};
use crate::artifacts::peft::{self, AdapterConfig};
use crate::domain::job::{FineTuneMode, Hyperparameters, LoraLayers};
use crate::train::model::tensors::NamedTensors;

/// An adapter in PEFT layout, read.
pub(super) struct InitialAdapter {
    config: AdapterConfig,
    /// Its tensors.
    pub tensors: NamedTensors,
    /// SHA-256 of its weights' file.
    pub digest: String,
}

impl InitialAdapter {
    /// Reads the adapter that lies in `folder`.
    pub(super) fn read(folder: &Path) -> Result<Self, RunError> {
        let read = |name: &str| {
            let path = folder.join(name);
            std::fs::read(&path).map_err(|error| file_failed(&path, &error))
        };
        let (config, tensors) = peft::read(&read(peft::CONFIG_FILE)?, &read(peft::WEIGHTS_FILE)?)
            .map_err(|error| internal(error.to_string()))?;
        let digest = sha256_of(&folder.join(peft::WEIGHTS_FILE)).map_err(checkpoint_failed)?;
        Ok(Self { config, tensors, digest })
    }

    /// Completes `requested` by what the adapter itself decides.
    ///
    /// # Errors
    /// A stated value that the adapter does not have: its shape cannot change on the way.
    pub(super) fn complete(&self, requested: &mut Hyperparameters) -> Result<(), RunError> {
        let config = &self.config;
        complete(&mut requested.tuning, FineTuneMode::Lora, "tuning")?;
        let rank = u32::try_from(config.r).unwrap_or(u32::MAX);
        complete(&mut requested.lora_r, rank, "lora_r")?;
        complete(&mut requested.lora_alpha, config.lora_alpha, "lora_alpha")?;
        complete(&mut requested.use_rslora, config.use_rslora, "use_rslora")?;
        if let Some(modules) = &mut requested.lora_target_modules {
            modules.sort_unstable();
        }
        complete(
            &mut requested.lora_target_modules,
            config.target_modules.clone(),
            "lora_target_modules",
        )?;
        match &config.modules_to_save {
            Some(names) => {
                complete(&mut requested.modules_to_save, names.clone(), "modules_to_save")?;
            }
            None if requested.modules_to_save.is_some() => {
                return Err(no_such_target(
                    "modules_to_save is stated, and the model that the job continues from has \
                     none: leave it out"
                        .to_owned(),
                ));
            }
            None => {}
        }
        match &config.layers_to_transform {
            Some(layers) => {
                let layers = LoraLayers::These(layers.clone());
                complete(&mut requested.lora_layers, layers, "lora_layers")
            }
            None if requested.lora_layers.is_some() => Err(no_such_target(
                "lora_layers is stated, and the model that the job continues from is adapted in all \
                 blocks: leave it out"
                    .to_owned(),
            )),
            None => Ok(()),
        }
    }
}

/// Takes the adapter's value where none is requested; a requested one must be the same.
fn complete<T: PartialEq + serde::Serialize>(
    requested: &mut Option<T>,
    value: T,
    name: &str,
) -> Result<(), RunError> {
    let json = |value: &T| serde_json::to_string(value).unwrap_or_default();
    match requested {
        Some(stated) if *stated != value => Err(no_such_target(format!(
            "{name} is {}, and the model that the job continues from has {}: leave it out",
            json(stated),
            json(&value)
        ))),
        _ => {
            *requested = Some(value);
            Ok(())
        }
    }
}
