//! Whose request it is.

use crate::domain::project::Project;

/// Whose request it is. Requests of different tenants share no computed prefix: who gets an answer
/// sooner because another one asked before, or reads how many of its tokens were cached, learns what the
/// other one asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tenant {
    /// The project of the API key.
    pub project: Project,
    /// Id of the API key, where the keys of a project share no prefixes either.
    pub api_key: Option<String>,
    /// The `prompt_cache_key` of the request.
    pub cache_key: Option<String>,
}
