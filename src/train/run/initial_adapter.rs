//! The adapter of an earlier job that a run begins with.

use std::path::Path;

use super::checkpoint::sha256_of;
use super::errors::{checkpoint_failed, internal, no_such_target};
use crate::artifacts::peft::{self, AdapterConfig};
use crate::domain::job::{FineTuneMode, Hyperparameters, JobError, LoraLayers};
use crate::train::model::tensors::NamedTensors;

/// An adapter in PEFT layout, read.
pub(super) struct Start {
    config: AdapterConfig,
    /// Its tensors.
    pub tensors: NamedTensors,
    /// SHA-256 of its weights' file.
    pub digest: String,
}

impl Start {
    /// Reads the adapter that lies in `folder`.
    pub(super) fn read(folder: &Path) -> Result<Self, JobError> {
        let read = |name: &str| {
            let path = folder.join(name);
            std::fs::read(&path).map_err(|error| internal(format!("{}: {error}", path.display())))
        };
        let (config, tensors) = peft::read(&read(peft::CONFIG_FILE)?, &read(peft::WEIGHTS_FILE)?)
            .map_err(|error| internal(error.to_string()))?;
        let digest = sha256_of(&folder.join(peft::WEIGHTS_FILE)).map_err(checkpoint_failed)?;
        Ok(Self { config, tensors, digest })
    }

    /// Fills what the adapter itself decides into `asked`.
    ///
    /// # Errors
    /// A stated value that the adapter does not have: its shape cannot change on the way.
    pub(super) fn settle(&self, asked: &mut Hyperparameters) -> Result<(), JobError> {
        let config = &self.config;
        settle(&mut asked.tuning, FineTuneMode::Lora, "tuning")?;
        let rank = u32::try_from(config.r).unwrap_or(u32::MAX);
        settle(&mut asked.lora_r, rank, "lora_r")?;
        settle(&mut asked.lora_alpha, config.lora_alpha, "lora_alpha")?;
        settle(&mut asked.use_rslora, config.use_rslora, "use_rslora")?;
        if let Some(modules) = &mut asked.lora_target_modules {
            modules.sort_unstable();
        }
        settle(
            &mut asked.lora_target_modules,
            config.target_modules.clone(),
            "lora_target_modules",
        )?;
        match &config.modules_to_save {
            Some(names) => {
                settle(&mut asked.modules_to_save, names.clone(), "modules_to_save")?;
            }
            None if asked.modules_to_save.is_some() => {
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
                settle(&mut asked.lora_layers, layers, "lora_layers")
            }
            None if asked.lora_layers.is_some() => Err(no_such_target(
                "lora_layers is stated, and the model that the job continues from is adapted in all \
                 blocks: leave it out"
                    .to_owned(),
            )),
            None => Ok(()),
        }
    }
}

/// Takes `held` where nothing is asked; what is asked must be what is held.
fn settle<T: PartialEq + serde::Serialize>(
    asked: &mut Option<T>,
    held: T,
    name: &str,
) -> Result<(), JobError> {
    let json = |value: &T| serde_json::to_string(value).unwrap_or_default();
    match asked {
        Some(stated) if *stated != held => Err(no_such_target(format!(
            "{name} is {}, and the model that the job continues from has {}: leave it out",
            json(stated),
            json(&held)
        ))),
        _ => {
            *asked = Some(held);
            Ok(())
        }
    }
}
