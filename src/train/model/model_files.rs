//! The files beside the weights of a model that is made of a base: configuration, generation settings, tokenizer
//! and chat template. Whoever loads the folder generates and stops as hone does, and needs no code of the base's.

use serde_json::{Map, Value, json};

use super::base_model::BaseModel;
use super::config;
use super::error::LoadError;
use crate::artifacts::model::{CONFIG_FILE, WeightType};

const GENERATION_FILE: &str = "generation_config.json";
const TOKENIZER_CONFIG_FILE: &str = "tokenizer_config.json";

/// A tokenizer class that reads any `tokenizer.json`.
const TOKENIZER_CLASS: &str = "PreTrainedTokenizerFast";

/// Keys of `config.json` that describe how the base's weights are packed. Those that are written are floats.
const PACKING_KEYS: [&str; 2] = ["quantization_config", "compression_config"];

/// The files of a model beside its weights.
pub struct ModelFiles {
    /// Names and bytes, the configuration first.
    pub files: Vec<(String, Vec<u8>)>,
    /// What is left out of the base's files and why, a sentence each.
    pub omissions: Vec<String>,
}

impl ModelFiles {
    /// The files of a model with weights of this type, made of this base.
    ///
    /// # Errors
    /// A file of the base that cannot be read.
    pub fn of(base: &BaseModel, weights: WeightType) -> Result<Self, LoadError> {
        let mut made = Self { files: Vec::new(), omissions: Vec::new() };
        let config = made.config(base, weights);
        made.push(base, CONFIG_FILE, &config)?;
        let companions = base.companions()?;
        let mut has_generation = false;
        for (name, bytes) in &companions {
            let is_changed = [GENERATION_FILE, TOKENIZER_CONFIG_FILE].contains(&name.as_str());
            let read = if is_changed { serde_json::from_slice(bytes).ok() } else { None };
            let Some(Value::Object(keys)) = read else {
                made.files.push((name.clone(), bytes.clone()));
                continue;
            };
            let mut changed = keys.clone();
            if name == GENERATION_FILE {
                has_generation = true;
                made.omit_code(&mut changed, name);
                set_ends(&mut changed, base);
            } else {
                made.tokenizer_config(&mut changed);
            }
            match changed == keys {
                true => made.files.push((name.clone(), bytes.clone())),
                false => made.push(base, name, &Value::Object(changed))?,
            }
        }
        if !has_generation {
            let mut keys = Map::new();
            if let Some(id) = base.config.get("bos_token_id").filter(|id| !id.is_null()) {
                keys.insert("bos_token_id".to_owned(), id.clone());
            }
            set_ends(&mut keys, base);
            if !keys.is_empty() {
                made.push(base, GENERATION_FILE, &Value::Object(keys))?;
            }
        }
        Ok(made)
    }

    /// Adds a JSON file.
    fn push(&mut self, base: &BaseModel, name: &str, value: &Value) -> Result<(), LoadError> {
        let mut bytes = serde_json::to_vec_pretty(value)
            .map_err(|error| LoadError::malformed(&base.path.join(name), error.to_string()))?;
        bytes.push(b'\n');
        self.files.push((name.to_owned(), bytes));
        Ok(())
    }

    /// The base's configuration with the type of the weights that are written, so that whoever loads them in the
    /// type that it names computes what was trained; with the name of the class, which a GGUF file does not have
    /// and vLLM asks for; and with every token at which hone stops.
    fn config(&mut self, base: &BaseModel, weights: WeightType) -> Value {
        let mut config = base.config.clone();
        let Some(keys) = config.as_object_mut() else { return config };
        let has_type = ["dtype", "torch_dtype"].map(|key| {
            let value = keys.get_mut(key);
            value.map(|value| *value = weights.as_str().into()).is_some()
        });
        if has_type == [false, false] {
            keys.insert("dtype".to_owned(), weights.as_str().into());
        }
        let has_code = self.omit_code(keys, CONFIG_FILE);
        for key in PACKING_KEYS {
            if let Some(packing) = keys.shift_remove(key) {
                let method = packing["quant_method"].as_str().unwrap_or("unknown");
                self.omissions.push(format!(
                    "{CONFIG_FILE}: {key:?} (method {method:?}) is left out, because the weights are \
                     plain {} floats",
                    weights.as_str()
                ));
            }
        }
        if has_code || !keys.contains_key("architectures") {
            let kind = keys.get("model_type").and_then(Value::as_str);
            if let Some(class) = kind.and_then(config::class_of) {
                keys.insert("architectures".to_owned(), json!([class]));
            }
        }
        set_ends(keys, base);
        config
    }

    fn tokenizer_config(&mut self, keys: &mut Map<String, Value>) {
        if self.omit_code(keys, TOKENIZER_CONFIG_FILE) {
            keys.insert("tokenizer_class".to_owned(), TOKENIZER_CLASS.into());
        }
    }

    /// Leaves out the names of Python classes in files that the base brings and the model does not.
    fn omit_code(&mut self, keys: &mut Map<String, Value>, file: &str) -> bool {
        let Some(code) = keys.shift_remove("auto_map") else { return false };
        self.omissions.push(format!(
            "{file}: \"auto_map\" ({code}) is left out, because the Python files that it names are not \
             part of the model: the class that the library has itself loads it"
        ));
        true
    }
}

/// Completes `eos_token_id` by every token at which hone stops: the base's own come first.
fn set_ends(keys: &mut Map<String, Value>, base: &BaseModel) {
    let own = keys.get("eos_token_id").cloned().unwrap_or_default();
    let mut ids: Vec<u64> = match &own {
        Value::Array(list) => list.iter().filter_map(Value::as_u64).collect(),
        one => one.as_u64().into_iter().collect(),
    };
    let before = ids.len();
    for id in base.tokenizer.stop_ids() {
        if !ids.contains(&u64::from(*id)) {
            ids.push(u64::from(*id));
        }
    }
    if ids.len() == before {
        return;
    }
    let value = if let [one] = ids[..] { json!(one) } else { json!(ids) };
    keys.insert("eos_token_id".to_owned(), value);
}
