//! A model's files from the Hugging Face Hub, resumed where an earlier download stopped.

use std::io::IsTerminal;
use std::path::Path;
use std::time::Duration;

use hf_hub::api::tokio::{ApiBuilder, ApiError};

use crate::util::error_source;

/// Time in which the Hub must answer a first question; behind a closed network it never does.
const PATIENCE: Duration = Duration::from_secs(5);

/// Files beside the weights.
const SMALL_FILES: &[&str] = &[
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "model.safetensors.index.json",
    "LICENSE",
];

/// What the Hub said.
#[derive(Debug, thiserror::Error)]
pub enum HubError {
    /// No answer.
    #[error("the Hugging Face Hub did not answer within {} seconds", PATIENCE.as_secs())]
    Silent,
    /// An answer that does not help.
    #[error("the Hugging Face Hub could not be used: {}", with_reason(.0))]
    Api(#[from] ApiError),
    /// A local file.
    #[error("a file from the Hugging Face Hub could not be put in place: {0}")]
    Io(#[from] std::io::Error),
    /// A repository without what hone reads.
    #[error(
        "the repository {0:?} has no safetensors weights with a config.json and tokenizer.json"
    )]
    Incomplete(String),
}

/// What went wrong and where, and the reason, which the HTTP client leaves out.
fn with_reason(error: &ApiError) -> String {
    let (whole, reason) = (error.to_string(), error_source::innermost(error).to_string());
    if whole.contains(&reason) { whole } else { format!("{whole}: {reason}") }
}

/// Downloads what hone reads of `repository` into `made`; finished files are kept in `downloads`
/// until everything is there. `HF_ENDPOINT` and `HF_TOKEN` are respected.
pub(super) async fn fetch(repository: &str, downloads: &Path, made: &Path) -> Result<(), HubError> {
    let api = ApiBuilder::from_env()
        .with_cache_dir(downloads.join("hub"))
        .with_progress(std::io::stderr().is_terminal())
        .build()?;
    let model = api.model(repository.to_owned());
    let info =
        tokio::time::timeout(PATIENCE, model.info()).await.map_err(|_| HubError::Silent)??;
    let names: Vec<String> = info.siblings.into_iter().map(|file| file.rfilename).collect();
    let wanted: Vec<&String> = names
        .iter()
        .filter(|name| {
            let is_weights = name.ends_with(".safetensors") && !name.contains('/');
            is_weights || SMALL_FILES.contains(&name.as_str())
        })
        .collect();
    let has = |end: &str| wanted.iter().any(|name| name.ends_with(end));
    if !has("config.json") || !has("tokenizer.json") || !has(".safetensors") {
        return Err(HubError::Incomplete(repository.to_owned()));
    }
    for name in wanted {
        let cached = model.get(name).await?;
        let target = made.join(name);
        tokio::fs::copy(&cached, &target).await?;
        tokio::fs::File::open(&target).await?.sync_all().await?;
    }
    Ok(())
}
