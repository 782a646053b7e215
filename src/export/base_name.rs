//! The name of the base model in an adapter's configuration, by which PEFT finds the base.

use std::path::Path;

use serde_json::Value;
use sha2::{Digest, Sha256};

use super::error::ExportError;
use crate::artifacts::{certificate, peft};
use crate::util::atomic_file;
use crate::util::hex::hex;

/// The key of the configuration.
const KEY: &str = "base_model_name_or_path";

/// Writes `name` into the configuration of the adapter in `folder`, and the configuration's digest into the
/// certificate beside it: the weights that it certifies stay as they are. Without a name the one that is there
/// stays. Returns what whoever takes the adapter should know.
pub(super) fn write(folder: &Path, name: Option<&str>) -> Result<Vec<String>, ExportError> {
    let path = folder.join(peft::CONFIG_FILE);
    let mut config = read(&path)?;
    let published = config[KEY].as_str().unwrap_or_default().to_owned();
    let name = name.unwrap_or(&published);
    if name != published {
        config[KEY] = name.into();
        let bytes = to_bytes(&config)?;
        atomic_file::write(&path, &bytes)?;
        let path = folder.join(certificate::FILE_NAME);
        if path.is_file() {
            let mut certificate = read(&path)?;
            certificate["files"][peft::CONFIG_FILE] = hex(&Sha256::digest(&bytes)).into();
            atomic_file::write(&path, &to_bytes(&certificate)?)?;
        }
    }
    if name.contains('/') {
        return Ok(Vec::new());
    }
    Ok(vec![format!(
        "{}: {KEY:?} is {name:?}, the base model's name here, because hone knows no repository of it: PEFT \
         finds the base by itself only where a folder of that name lies. Give the name of its repository on \
         the Hugging Face Hub (--base-model-name owner/name), or write it into the file hub.json in the \
         base's folder",
        peft::CONFIG_FILE
    )])
}

fn read(path: &Path) -> Result<Value, ExportError> {
    Ok(serde_json::from_slice(&std::fs::read(path)?).map_err(std::io::Error::other)?)
}

/// As the files of a job are written.
fn to_bytes(value: &Value) -> Result<Vec<u8>, ExportError> {
    let mut bytes = serde_json::to_vec_pretty(value).map_err(std::io::Error::other)?;
    bytes.push(b'\n');
    Ok(bytes)
}
