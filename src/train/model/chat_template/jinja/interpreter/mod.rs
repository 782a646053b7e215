//! Rendering: statements write, expressions have values.

mod expressions;
mod loops;
mod macros;
mod scope;
mod state;
mod statements;

pub(super) use self::state::Interpreter;
