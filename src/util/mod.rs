//! Small tools that know nothing of hone: files, time, text, errors.

pub mod atomic_file;
pub mod clock;
pub mod disk_space;
pub mod duplicate_key;
pub mod error_source;
pub mod exact_json;
pub mod excerpt;
pub mod fail_point;
pub mod file_digest;
pub mod hex;
pub mod regular_file;
pub mod shortage;
pub mod strftime;
