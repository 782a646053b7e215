//! Examples to token sequences with loss masks.

use std::path::Path;

use super::base_model::BaseModel;
use super::engine::Sequence;
use crate::dataset::Problems;

/// A file of examples, tokenised.
#[derive(Debug, Clone)]
pub struct EncodedFile {
    /// The sequences, in file order.
    pub sequences: Vec<Sequence>,
    /// Line number of each sequence.
    pub lines: Vec<u64>,
    /// Lines left out because they are longer than the context, with their token counts.
    pub too_long: Vec<(u64, usize)>,
    /// SHA-256 of the file, lower-case hex.
    pub digest: String,
}

/// Why a file cannot be encoded.
#[derive(Debug, thiserror::Error)]
pub enum EncodeError {
    /// The file cannot be read.
    #[error("{path}: {source}")]
    Io {
        /// Which file.
        path: String,
        /// Why.
        source: std::io::Error,
    },
    /// Lines that cannot be used: format, control tokens in content, template.
    #[error("{}", .0.listed.first().map(ToString::to_string).unwrap_or_default())]
    Problems(Problems),
}

/// Reads, checks, renders and tokenises every example of `path`.
pub fn encode_file(
    _path: &Path,
    _base: &BaseModel,
    _context_length: usize,
) -> Result<EncodedFile, EncodeError> {
    todo!()
}
