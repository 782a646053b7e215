//! Small tools that know nothing of hone: files, time, text, errors.

pub mod atomic_file;
pub mod clock;
pub mod error_source;
pub mod fail_point;
pub mod hex;
pub mod repeated_key;
pub mod sha256;
