//! What the interpreter does for filters that apply others.

use super::arguments::Arguments;
use super::error::Error;
use super::value::Value;

/// What the interpreter does for filters that apply others.
pub(crate) trait Runtime {
    /// Applies a filter by its name.
    fn apply_filter(
        &mut self,
        name: &str,
        value: Value,
        arguments: Arguments,
    ) -> Result<Value, Error>;

    /// Applies a test by its name.
    fn apply_test(&mut self, name: &str, value: Value, arguments: Arguments)
    -> Result<bool, Error>;

    /// Whether texts are escaped for HTML.
    fn escapes(&self) -> bool;
}
