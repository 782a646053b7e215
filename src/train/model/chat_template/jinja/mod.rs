//! Jinja as transformers has it: a renderer of its own, since chat templates are written for Python's Jinja
//! and use what Python does: its numbers, texts, methods and how it prints them.
//!
//! It stands for `ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)` with the loop controls,
//! `{% generation %}`, and the functions that transformers adds. `tests/data/jinja_idioms.json` holds what
//! transformers renders of each idiom.
//!
//! From the text to what it writes: `lexer` → `parser` → `ast` → `interpreter`, which works on `value`s.
//! What it costs is counted by `budget`, since anybody may have written a template.

mod arguments;
mod ast;
mod brace_format;
mod budget;
mod bytes;
mod character_classes;
mod dict;
mod dict_methods;
mod equality;
mod error;
mod escapes;
mod filters;
mod float;
mod format_spec;
mod free_names;
mod globals;
#[cfg(test)]
mod hostile_tests;
mod integer;
mod interpreter;
mod items;
mod json;
mod lexer;
mod list;
mod list_methods;
mod markup;
mod markup_methods;
mod object;
mod operators;
mod padding;
mod parser;
mod percent_format;
mod range;
mod repr;
mod runtime;
mod slice;
mod sort;
mod string_methods;
mod string_parts;
mod subscripts;
mod template;
mod text;
mod tojson;
mod type_tests;
mod unicode;
mod value;

pub(super) use self::budget::{Limits, within};
pub(super) use self::error::Error;
pub(super) use self::globals::Function;
pub(super) use self::json::{from_exact, from_json};
pub(super) use self::template::Template;
pub(super) use self::value::Value;
