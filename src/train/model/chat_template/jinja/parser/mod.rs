//! The grammar of templates, with Jinja's precedences.

mod expressions;
mod height;
mod statements;
mod tokens;

pub(super) use self::statements::parse;
