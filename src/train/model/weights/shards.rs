//! The index of weights that are spread over several files, as Hugging Face writes it beside them:
//! a `weight_map` from each tensor's name to the file that holds it.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::path::{Path, PathBuf};

use super::listed;
use crate::train::model::error::LoadError;
use crate::util::regular_file;

/// Longest index that is read into memory.
const MAX_INDEX_BYTES: u64 = 16 * 1024 * 1024;

/// What an index says.
pub(super) struct Shards {
    /// The files, each once, in the order of their names.
    pub files: Vec<PathBuf>,
    index: PathBuf,
    /// Each tensor's file, by its entry in `files`.
    file_of: BTreeMap<String, usize>,
}

/// Reads an index whose shards have names that end in `ending`, and looks that each of them is there.
pub(super) fn read(index: &Path, ending: &str) -> Result<Shards, LoadError> {
    let file = regular_file::open(index).map_err(|error| LoadError::io(index, error))?;
    let mut bytes = Vec::new();
    let mut limited = file.take(MAX_INDEX_BYTES + 1);
    limited.read_to_end(&mut bytes).map_err(|error| LoadError::io(index, error))?;
    if bytes.len() as u64 > MAX_INDEX_BYTES {
        let limit = MAX_INDEX_BYTES >> 20;
        return Err(LoadError::malformed(index, format!("it is longer than {limit} MiB")));
    }
    let parsed: serde_json::Value = serde_json::from_slice(&bytes)
        .map_err(|error| LoadError::malformed(index, format!("not JSON: {error}")))?;
    let Some(map) = parsed["weight_map"].as_object() else {
        return Err(LoadError::malformed(index, "it has no \"weight_map\""));
    };
    let mut name_of = BTreeMap::new();
    for (tensor, name) in map {
        let Some(name) = name.as_str() else {
            let reason = format!("the shard of {tensor:?} is not a file name");
            return Err(LoadError::malformed(index, reason));
        };
        // A shard lies beside its index; a path that leads elsewhere is not followed.
        if name.contains(['/', '\\']) || !name.ends_with(ending) {
            let reason = format!("{name:?} is not the name of a shard");
            return Err(LoadError::malformed(index, reason));
        }
        name_of.insert(tensor.clone(), name);
    }
    let names: Vec<&str> =
        name_of.values().copied().collect::<BTreeSet<&str>>().into_iter().collect();
    let folder = index.parent().unwrap_or(Path::new(""));
    let missing: Vec<String> = names
        .iter()
        .filter(|name| !folder.join(name).is_file())
        .map(|name| format!("{name:?}"))
        .collect();
    if !missing.is_empty() {
        return Err(LoadError::malformed(
            index,
            format!(
                "{} of {} shards that it names are missing: {}; download them again",
                missing.len(),
                names.len(),
                listed(&missing, ", ")
            ),
        ));
    }
    let file_of = name_of
        .into_iter()
        .map(|(tensor, name)| (tensor, names.partition_point(|other| *other < name)))
        .collect();
    let files = names.iter().map(|name| folder.join(name)).collect();
    Ok(Shards { files, index: index.to_owned(), file_of })
}

impl Shards {
    /// Looks that every tensor that the index names lies in the shard that it names; `found` gives
    /// the entry in `files` where a tensor was found.
    pub(super) fn check(&self, found: impl Fn(&str) -> Option<usize>) -> Result<(), LoadError> {
        let mut problems = Vec::new();
        for (tensor, file) in &self.file_of {
            let entry = found(tensor);
            if entry == Some(*file) {
                continue;
            }
            let name = |file: usize| self.files[file].file_name().unwrap_or_default().to_owned();
            problems.push(match entry {
                None => format!("{tensor:?} is not in {:?}", name(*file)),
                Some(other) => {
                    format!("{tensor:?} is not in {:?} but in {:?}", name(*file), name(other))
                }
            });
        }
        if problems.is_empty() {
            return Ok(());
        }
        let reason = format!(
            "{} of {} tensors are not where it says: {}",
            problems.len(),
            self.file_of.len(),
            listed(&problems, "; ")
        );
        Err(LoadError::malformed(&self.index, reason))
    }
}
