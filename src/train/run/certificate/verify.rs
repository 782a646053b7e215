//! Checks a model's files against the certificate beside them: their bytes, and the numbers that they compute.

use std::path::Path;

use super::{LoadedExport, OTHER_ARITHMETIC, SAME_ARITHMETIC, row};
use crate::artifacts::certificate::{Certificate, FILE_NAME, FORMAT_VERSION};
use crate::train::engine::{BackendKind, precision};
use crate::train::model::base_model::BaseModel;
use crate::train::model::kept_template::KeptTemplate;
use crate::train::run::checkpoint::sha256_of;

/// What checking a certificate came to.
#[derive(Debug, Clone, PartialEq)]
pub struct Verified {
    /// What was certified.
    pub certificate: Certificate,
    /// Largest difference from the numbers in the certificate.
    pub largest_difference: f32,
    /// Largest difference that passes here.
    pub allowed_difference: f32,
    /// Tokens that were computed again.
    pub tokens: usize,
}

/// Why a certificate does not hold.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// A file cannot be read.
    #[error("{path}: {source}")]
    Io {
        /// Which.
        path: String,
        /// Why.
        source: std::io::Error,
    },
    /// The certificate is none that this version reads.
    #[error("{path}: {reason}")]
    Form {
        /// Which.
        path: String,
        /// Why.
        reason: String,
    },
    /// Bytes are not those that were certified.
    #[error("{what} has the SHA-256 {found}, and {wanted} was certified: it is another one")]
    Digest {
        /// What.
        what: String,
        /// Of the bytes at hand.
        found: String,
        /// In the certificate.
        wanted: String,
    },
    /// The files are those that were certified, and come to other numbers.
    #[error("the files come to other numbers than were certified: {0}")]
    Numbers(String),
    /// The files cannot be loaded.
    #[error("{0}")]
    Load(String),
}

/// Reads the certificate in `folder`.
pub fn read(folder: &Path) -> Result<Certificate, VerifyError> {
    let path = folder.join(FILE_NAME);
    let shown = path.display().to_string();
    let bytes =
        std::fs::read(&path).map_err(|source| VerifyError::Io { path: shown.clone(), source })?;
    let certificate: Certificate = serde_json::from_slice(&bytes)
        .map_err(|error| VerifyError::Form { path: shown.clone(), reason: error.to_string() })?;
    if certificate.certificate != FORMAT_VERSION {
        let reason = format!("it is of form {}, and this version reads {FORMAT_VERSION}", {
            certificate.certificate
        });
        return Err(VerifyError::Form { path: shown, reason });
    }
    Ok(certificate)
}

/// Checks the files in `folder` against the certificate beside them: their digests, that of the base
/// model at `base` (which an adapter needs), and the numbers, computed again.
pub fn verify(folder: &Path, base: Option<&Path>) -> Result<Verified, VerifyError> {
    let certificate = read(folder)?;
    for (name, wanted) in &certificate.files {
        // Names lead nowhere but into the folder.
        if name.contains(['/', '\\']) {
            let reason = format!("{name:?} is not the name of a file");
            return Err(VerifyError::Form { path: FILE_NAME.to_owned(), reason });
        }
        let found =
            sha256_of(&folder.join(name)).map_err(|error| VerifyError::Load(error.to_string()))?;
        same(name, &found, wanted)?;
    }
    let load = |error: &dyn std::fmt::Display| VerifyError::Load(error.to_string());
    let base = match base {
        Some(path) => Some(BaseModel::open(path).map_err(|error| load(&error))?),
        None => None,
    };
    if let Some(base) = &base {
        let what = format!("the base model {:?}", certificate.base_model.id);
        same(&what, &base.digest, &certificate.base_model.sha256)?;
    }
    let kept = KeptTemplate::of_adapter(folder).map_err(|error| load(&error))?;
    if let (Some(kept), true) = (kept, base.is_some()) {
        let found = kept.templates.digest().unwrap_or_default();
        let wanted = certificate.template_sha256.as_deref().unwrap_or_default();
        same("the chat template", &found, wanted)?;
    }
    let here = precision(BackendKind::Cpu).map_err(|error| load(&error))?;
    let is_same = certificate.compared.precision == here;
    let kind = if is_same { BackendKind::Cpu } else { BackendKind::CpuF32 };
    let is_f32 = certificate.compared.precision == "f32";
    let relative = if is_same || is_f32 { SAME_ARITHMETIC } else { OTHER_ARITHMETIC };
    let allowed = relative * certificate.compared.largest_logit.max(1.0);
    let loaded = LoadedExport::read(folder, base.as_ref(), kind).map_err(|error| load(&error))?;
    if certificate.rows.is_empty() {
        return Err(VerifyError::Numbers("the certificate has no row of numbers".to_owned()));
    }
    let (mut difference, mut tokens) = (0.0f32, 0);
    for certified in &certificate.rows {
        let logits = loaded.logits(&certified.token_ids).map_err(|error| load(&error))?;
        let vocabulary = logits.len() / certified.token_ids.len().max(1);
        let made = row(&certified.token_ids, &logits);
        let counts = [&certified.logits, &certified.log_probabilities].map(Vec::len);
        if certified.likeliest.len() != made.likeliest.len()
            || counts != [&made.logits, &made.log_probabilities].map(Vec::len)
        {
            let text = "a row of the certificate has numbers for more or fewer tokens than it has";
            return Err(VerifyError::Numbers(text.to_owned()));
        }
        // The logit of the token that was the likeliest then: another may lead by a hair now.
        let then = certified.likeliest.iter().enumerate().map(|(place, id)| {
            logits.get(place * vocabulary + *id as usize).copied().unwrap_or(f32::NAN)
        });
        let pairs = then.zip(&certified.logits).map(|(now, then)| (now, *then));
        let more = made.log_probabilities.iter().zip(&certified.log_probabilities);
        for (now, then) in pairs.chain(more.map(|(now, then)| (*now, *then))) {
            let apart = (now - then).abs();
            difference = if apart.is_nan() { f32::INFINITY } else { difference.max(apart) };
        }
        tokens += certified.token_ids.len();
    }
    if difference.is_nan() || allowed.is_nan() || difference > allowed {
        return Err(VerifyError::Numbers(format!(
            "they differ by up to {difference:.3e}, and {allowed:.3e} is allowed"
        )));
    }
    Ok(Verified {
        certificate,
        largest_difference: difference,
        allowed_difference: allowed,
        tokens,
    })
}

fn same(what: &str, found: &str, wanted: &str) -> Result<(), VerifyError> {
    if found == wanted {
        return Ok(());
    }
    let (what, found, wanted) = (what.to_owned(), found.to_owned(), wanted.to_owned());
    Err(VerifyError::Digest { what, found, wanted })
}
