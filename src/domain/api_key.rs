//! API keys: what a client shows to be let in, and what is remembered of it.

use secrecy::{ExposeSecret, SecretString};
use sha2::{Digest, Sha256};

use crate::domain::project::Project;
use crate::util::hex::hex;

/// How keys begin, so that people and scanners for leaked secrets know one when they see it.
const PREFIX: &str = "sk-hone-";

/// How many random bytes a key has.
const KEY_BYTES: usize = 32;

/// The key itself. It is shown when it is made and kept nowhere: neither the store nor a log has it.
pub struct ApiKeySecret(SecretString);

impl ApiKeySecret {
    /// A key of the system's random bytes; fails when the system has none.
    pub fn random() -> Result<Self, getrandom::Error> {
        let mut bytes = [0; KEY_BYTES];
        getrandom::fill(&mut bytes)?;
        Ok(Self(format!("{PREFIX}{}", hex(&bytes)).into()))
    }

    /// The key itself.
    pub fn expose(&self) -> &str {
        self.0.expose_secret()
    }

    /// What may be shown at any time.
    pub fn last_four(&self) -> &str {
        self.expose().get(self.expose().len().saturating_sub(4)..).unwrap_or_default()
    }

    /// What the store keeps.
    pub fn digest(&self) -> KeyDigest {
        KeyDigest::of(self.expose())
    }
}

impl std::fmt::Debug for ApiKeySecret {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "ApiKeySecret({PREFIX}...{})", self.last_four())
    }
}

/// SHA-256 of a key, lower-case hex. No slow hash: 256 random bits cannot be guessed from it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct KeyDigest(String);

impl KeyDigest {
    /// The digest of what a client shows as its key.
    pub fn of(shown: &str) -> Self {
        Self(hex(&Sha256::digest(shown.as_bytes())))
    }

    /// The hex digits.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// What is remembered of a key beside its digest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiKey {
    /// `key_…`.
    pub id: String,
    /// What its requests are about.
    pub project: Project,
    /// For people.
    pub name: Option<String>,
    /// Its last four characters, by which its holder knows it again.
    pub last_four: String,
    /// Unix seconds.
    pub created_at: i64,
    /// Unix seconds since which it is refused; `None` while it is valid.
    pub revoked_at: Option<i64>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_256_random_bits_and_never_shown_by_accident() {
        let key = ApiKeySecret::random().expect("random bytes");
        let random = key.expose().strip_prefix(PREFIX).expect("the prefix");
        assert_eq!(random.len(), 64);
        assert!(random.bytes().all(|byte| byte.is_ascii_hexdigit()));
        assert_ne!(key.expose(), ApiKeySecret::random().expect("random bytes").expose());
        assert!(key.expose().ends_with(key.last_four()) && key.last_four().len() == 4);
        assert!(!format!("{key:?}").contains(&random[..60]));
        assert_eq!(key.digest(), KeyDigest::of(key.expose()));
        assert!(!key.digest().as_str().contains(random));
    }
}
