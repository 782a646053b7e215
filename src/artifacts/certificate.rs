//! The certificate of a job: digests of its files and of what they were trained from, and logits that they
//! compute, so that anybody can verify the files later and elsewhere.

use std::collections::BTreeMap;

use chrono::NaiveDate;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// The file's name among the result files.
pub const FILE_NAME: &str = "certificate.json";

/// Version of the file format, the value of `certificate`.
pub const FORMAT_VERSION: u32 = 1;

/// A certificate. It contains token ids of the data but no times: the same job always has the same one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Certificate {
    /// [`FORMAT_VERSION`].
    pub certificate: u32,
    /// Version of the program that trained.
    pub hone: String,
    /// The base model.
    pub base_model: CertifiedBaseModel,
    /// The training data.
    pub data: CertifiedData,
    /// SHA-256 of the chat template's text or, of several, of a JSON object of them by name; null without one.
    pub template_sha256: Option<String>,
    /// Variables that the job gave to the chat template.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub template_kwargs: Option<Map<String, Value>>,
    /// The day that the chat template wrote in training, if it writes one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub template_date: Option<NaiveDate>,
    /// SHA-256 of the weights of the initial model, if the job continued one.
    pub continued_from_sha256: Option<String>,
    /// Seed of everything random.
    pub seed: u32,
    /// SHA-256 of each result file, by name.
    pub files: BTreeMap<String, String>,
    /// The comparison of the files, read back, with the trained model.
    pub compared: ReadBackComparison,
    /// Logits to compute again.
    pub rows: Vec<CertifiedRow>,
}

/// The base model of a job.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CertifiedBaseModel {
    /// Its id where the job ran.
    pub id: String,
    /// SHA-256 over names and contents of its files.
    pub sha256: String,
}

/// The training and validation files of a job.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CertifiedData {
    /// SHA-256 of the training file.
    pub training_sha256: String,
    /// SHA-256 of the validation file, if there was one.
    pub validation_sha256: Option<String>,
}

/// How far the files, read back, differ from the trained model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ReadBackComparison {
    /// The file of the rows: `validation`, or `training` without one.
    pub rows_of: String,
    /// Number of tokens at which all logits were compared.
    pub tokens: usize,
    /// Largest difference of a logit.
    pub largest_difference: f32,
    /// Largest absolute logit.
    pub largest_logit: f32,
    /// Largest difference that is accepted.
    pub allowed_difference: f32,
    /// Precision of the products with the frozen weights, `bf16` or `f32`.
    pub precision: String,
}

/// The first tokens of an example, and what the files compute for them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CertifiedRow {
    /// The tokens.
    pub token_ids: Vec<u32>,
    /// At each token, the likeliest next token.
    pub likeliest: Vec<u32>,
    /// Its logit.
    pub logits: Vec<f32>,
    /// Log-probability of each token but the first, in nats.
    pub log_probabilities: Vec<f32>,
}
