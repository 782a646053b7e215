//! Downloads the files of a model from the Hugging Face Hub; an interrupted download is resumed.

use std::io::IsTerminal;
use std::path::Path;
use std::time::Duration;

use hf_hub::api::tokio::{ApiBuilder, ApiError};

use crate::util::error_source;

/// Timeout of the first request to the Hub. In a closed network there is never a response.
const FIRST_RESPONSE_TIMEOUT: Duration = Duration::from_secs(5);

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

/// Why the Hub cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum HubError {
    /// No response in time.
    #[error("the Hugging Face Hub did not answer within {} seconds", FIRST_RESPONSE_TIMEOUT.as_secs())]
    Timeout,
    /// A failed request.
    #[error("the Hugging Face Hub could not be used: {}", with_reason(.0))]
    Api(#[from] ApiError),
    /// A local file.
    #[error("a file from the Hugging Face Hub could not be put in place: {0}")]
    Io(#[from] std::io::Error),
    /// The repository lacks files that hone reads.
    #[error(
        "the repository {0:?} has no safetensors weights with a config.json and tokenizer.json"
    )]
    Incomplete(String),
}

/// The message of an error with its innermost cause, which the HTTP client leaves out.
fn with_reason(error: &ApiError) -> String {
    let (whole, reason) = (error.to_string(), error_source::innermost(error).to_string());
    if whole.contains(&reason) { whole } else { format!("{whole}: {reason}") }
}

/// Downloads the files of `repository` that hone reads into `staging`. Finished files stay in `downloads` until
/// all are there. `HF_ENDPOINT` and `HF_TOKEN` are respected. Returns the commit of the files.
pub(super) async fn fetch(
    repository: &str,
    downloads: &Path,
    staging: &Path,
) -> Result<String, HubError> {
    let api = ApiBuilder::from_env()
        .with_cache_dir(downloads.join("hub"))
        .with_progress(std::io::stderr().is_terminal())
        .build()?;
    let model = api.model(repository.to_owned());
    let info = tokio::time::timeout(FIRST_RESPONSE_TIMEOUT, model.info())
        .await
        .map_err(|_| HubError::Timeout)??;
    let revision = info.sha;
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
        let target = staging.join(name);
        tokio::fs::copy(&cached, &target).await?;
        tokio::fs::File::open(&target).await?.sync_all().await?;
    }
    Ok(revision)
}
