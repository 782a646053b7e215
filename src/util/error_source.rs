//! The reason of an error.

use std::error::Error;

/// The innermost source of an error, or itself. Errors of the HTTP client name the address, and only
/// what lies within them says what happened.
pub fn innermost<'a>(error: &'a (dyn Error + 'static)) -> &'a (dyn Error + 'static) {
    let mut innermost = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    innermost
}
