//! The grammar of templates, with Jinja's precedences.

mod expressions;
mod height;
mod postfix;
mod statements;
mod targets;
mod tokens;

pub(super) use self::statements::parse;
