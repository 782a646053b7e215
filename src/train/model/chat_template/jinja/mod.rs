//! Jinja as transformers has it: a renderer of its own, since chat templates are written for Python's Jinja
//! and use what Python does: its numbers, texts, methods and how it prints them.
//!
//! It stands for `ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)` with the loop controls,
//! `{% generation %}`, and the functions that transformers adds. `tests/data/jinja_idioms.json` holds what
//! transformers renders of each idiom.
//!
//! From the text to what it writes: `lexer` → `parser` → `ast` → `interpreter`, which works on `value`s.

mod arguments;
mod ast;
mod brace_format;
mod character_classes;
mod dict_methods;
mod error;
mod escapes;
mod filters;
mod float;
mod format_spec;
mod free_names;
mod globals;
mod integer;
mod interpreter;
mod json;
mod lexer;
mod list_methods;
mod operators;
mod parser;
mod percent_format;
mod range;
mod repr;
mod slice;
mod string_methods;
mod string_parts;
mod subscripts;
mod template;
mod tojson;
mod type_tests;
mod unicode;
mod value;

pub(super) use self::error::Error;
pub(super) use self::globals::Function;
pub(super) use self::json::{from_exact, from_json};
pub(super) use self::template::Template;
pub(super) use self::value::Value;
