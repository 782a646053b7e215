//! The certificate of a job: what its files are, what they were made of, and numbers that they compute,
//! so that anybody can check later and elsewhere that they still do.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// The file's name among the result files.
pub const FILE_NAME: &str = "certificate.json";

/// What `certificate` says in files of this form.
pub const FORM: u32 = 1;

/// One certificate. It holds token ids of the data and no times: the same job always has the same.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Certificate {
    /// [`FORM`].
    pub certificate: u32,
    /// Version of the program that trained.
    pub hone: String,
    /// The base model.
    pub base_model: Base,
    /// What was trained on.
    pub data: Data,
    /// SHA-256 of the chat template's text; null without one.
    pub template_sha256: Option<String>,
    /// SHA-256 of the weights of the model that the job went on from, if it did.
    pub continued_from_sha256: Option<String>,
    /// Seed of everything random.
    pub seed: u32,
    /// SHA-256 of each file that the job handed out, by name.
    pub files: BTreeMap<String, String>,
    /// What reading them back came to.
    pub compared: Compared,
    /// Numbers to compute again.
    pub rows: Vec<Row>,
}

/// A base model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Base {
    /// Its id where the job ran.
    pub id: String,
    /// SHA-256 over names and contents of its files.
    pub sha256: String,
}

/// Training and validation files.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Data {
    /// SHA-256 of the training file.
    pub training_sha256: String,
    /// SHA-256 of the validation file, if there was one.
    pub validation_sha256: Option<String>,
}

/// How far what was read back lies from what was trained.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Compared {
    /// The file that the rows are from: `validation`, or `training` without one.
    pub rows_of: String,
    /// Number of tokens at which all logits were compared.
    pub tokens: usize,
    /// Largest difference of a logit.
    pub largest_difference: f32,
    /// Largest absolute logit.
    pub largest_logit: f32,
    /// Largest difference that passes.
    pub allowed_difference: f32,
    /// Precision of the products with the frozen weights, `bf16` or `f32`.
    pub precision: String,
}

/// The beginning of an example and what the files make of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// The tokens.
    pub token_ids: Vec<u32>,
    /// At each token, which one is the likeliest to come next.
    pub likeliest: Vec<u32>,
    /// Its logit.
    pub logits: Vec<f32>,
    /// Log-probability of each token but the first, in nats.
    pub log_probabilities: Vec<f32>,
}
