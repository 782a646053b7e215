//! The records that every stage speaks of, and the table of public error codes. They know no stage.

pub mod api_key;
pub mod chat_template;
pub mod error_code;
pub mod file;
pub mod ids;
pub mod job;
pub mod model;
pub mod project;
pub mod upload;
pub mod webhook;
