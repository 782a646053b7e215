//! A project: whose files, jobs, models and webhook endpoints things are. Projects do not see each
//! other's.

use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Longest name.
const MAX_LENGTH: usize = 64;

/// The name of a project. `Project::default()` holds everything that was made without a key.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Project(String);

impl Project {
    /// A project from the store.
    pub fn stored(name: String) -> Self {
        Self(name)
    }

    /// Its name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for Project {
    fn default() -> Self {
        Self("default".to_owned())
    }
}

impl std::fmt::Display for Project {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl FromStr for Project {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
        if (1..=MAX_LENGTH).contains(&text.len()) && text.bytes().all(is_plain) {
            return Ok(Self(text.to_owned()));
        }
        Err(format!(
            "a project's name has 1 to {MAX_LENGTH} characters: ASCII letters, digits, '-', '_' \
             and '.'"
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_could_be_misread_is_refused() {
        for good in ["default", "team-a", "A_1.x", &"x".repeat(64)] {
            assert_eq!(good.parse::<Project>().expect(good).as_str(), good);
        }
        for bad in ["", "two words", "a/b", "é", "a\n", &"x".repeat(65)] {
            assert!(bad.parse::<Project>().is_err(), "{bad:?}");
        }
    }
}
