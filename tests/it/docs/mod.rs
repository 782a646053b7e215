//! The pages are true: `README.md` and `docs/`. Their links, names and tables are checked against the
//! source and the binary, and their code runs.

pub mod commands;
pub mod links;
pub mod names;
pub mod pages;
pub mod reader;
pub mod tables;
