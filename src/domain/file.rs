//! A file as the product sees it: what a client uploaded or a job produced.

use serde::{Deserialize, Serialize};

use crate::dataset::ValidationReport;
use crate::domain::project::Project;

/// What a file is for. The spelling on the wire is OpenAI's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum FilePurpose {
    /// Training or validation data.
    FineTune,
    /// What a job left behind: metrics, adapter, report.
    FineTuneResults,
    /// Anything else a client wants to keep.
    #[serde(rename = "user_data")]
    UserData,
    /// Data for evaluations.
    Evals,
}

impl FilePurpose {
    /// The purposes that an upload may state, as they are written on the wire.
    pub const UPLOADABLE: &'static [FilePurpose] = &[Self::FineTune, Self::UserData, Self::Evals];

    /// Every purpose.
    pub const ALL: &'static [FilePurpose] =
        &[Self::FineTune, Self::FineTuneResults, Self::UserData, Self::Evals];

    /// Purposes of OpenAI's that hone has no files of.
    pub const ELSEWHERE: &'static [&'static str] =
        &["assistants", "assistants_output", "batch", "batch_output", "vision"];

    /// The spelling on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::FineTune => "fine-tune",
            Self::FineTuneResults => "fine-tune-results",
            Self::UserData => "user_data",
            Self::Evals => "evals",
        }
    }

    /// The purpose that `text` spells, if any.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|purpose| purpose.as_str() == text)
    }
}

/// One stored file. Its bytes lie in the blob store under [`FileRecord::blob_key`].
#[derive(Debug, Clone, PartialEq)]
pub struct FileRecord {
    /// `file-…`.
    pub id: String,
    /// Whose it is.
    pub project: Project,
    /// Size in bytes.
    pub bytes: i64,
    /// Unix seconds.
    pub created_at: i64,
    /// Unix seconds after which the file may be removed; `None` keeps it.
    pub expires_at: Option<i64>,
    /// Base name that the client gave; never used as a path.
    pub filename: String,
    /// What it is for.
    pub purpose: FilePurpose,
    /// SHA-256 of the bytes, lower-case hex.
    pub sha256: String,
    /// Where the bytes lie in the blob store.
    pub blob_key: String,
    /// What the check of the upload found; only for purpose `fine-tune`, and not in lists.
    pub report: Option<ValidationReport>,
}
