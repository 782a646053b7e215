//! Where the tensors of safetensors and of PyTorch's files lie: known since the files were opened,
//! read when they are asked for.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::{FloatType, HostTensor, WeightSource, read_range};
use crate::train::model::error::LoadError;

/// What a tensor's elements are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum ElementKind {
    Floats(FloatType),
    /// Masks and the like, which are never read, by the type's name in the file.
    Other(String),
}

/// One tensor's entry, which lies inside of its file.
#[derive(Debug)]
pub(super) struct TensorEntry {
    /// From the start of the file.
    pub start: u64,
    pub bytes: usize,
    pub elements: ElementKind,
    /// Outermost first.
    pub shape: Vec<usize>,
}

/// The tensors of one model, in one file or several.
pub(super) struct TensorIndex {
    files: Vec<PathBuf>,
    /// By name: which file, and where in it.
    entries: BTreeMap<String, (usize, TensorEntry)>,
}

impl TensorIndex {
    /// The tensors of all `files`, each file's as `read` finds them.
    pub(super) fn gather(
        files: Vec<PathBuf>,
        read: impl Fn(&Path) -> Result<Vec<(String, TensorEntry)>, LoadError>,
    ) -> Result<Self, LoadError> {
        let mut entries: BTreeMap<String, (usize, TensorEntry)> = BTreeMap::new();
        for (number, path) in files.iter().enumerate() {
            for (name, entry) in read(path)? {
                if let Some((other, _)) = entries.get(&name) {
                    let reason = match *other == number {
                        true => format!("tensor {name:?} stands in it twice"),
                        false => {
                            format!("tensor {name:?} stands in {} too", files[*other].display())
                        }
                    };
                    return Err(LoadError::malformed(path, reason));
                }
                entries.insert(name, (number, entry));
            }
        }
        Ok(Self { files, entries })
    }

    /// The number of the file that a tensor lies in.
    pub(super) fn file_of(&self, name: &str) -> Option<usize> {
        self.entries.get(name).map(|(file, _)| *file)
    }
}

impl WeightSource for TensorIndex {
    fn shapes(&self) -> Vec<(String, Vec<usize>)> {
        self.entries.iter().map(|(name, (_, entry))| (name.clone(), entry.shape.clone())).collect()
    }

    fn tensor(&self, name: &str) -> Result<HostTensor, LoadError> {
        let Some((file, entry)) = self.entries.get(name) else {
            return Err(LoadError::no_tensor(name));
        };
        let path = &self.files[*file];
        match &entry.elements {
            ElementKind::Floats(kind) => {
                let bytes = read_range(path, entry.start, entry.bytes)?;
                Ok(HostTensor { shape: entry.shape.clone(), data: kind.read(&bytes) })
            }
            ElementKind::Other(kind) => {
                let reason = format!(
                    "tensor {name:?} is of type {kind}; hone reads F32, F16 and BF16: convert the \
                     weights"
                );
                Err(LoadError::malformed(path, reason))
            }
        }
    }
}
