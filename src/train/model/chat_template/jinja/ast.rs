//! A template as a tree of statements and expressions.

use std::sync::Arc;

use super::integer::Integer;

/// How deep expressions may be nested, and how deep expressions, blocks and calls of macros while they run.
pub(crate) const MAX_DEPTH: usize = 300;

/// A statement, or a piece of text between statements.
pub(crate) enum Statement {
    /// Text that is written as it stands.
    Text(String),
    /// `{{ … }}`.
    Print(Expression),
    /// `{% if %}` with its `elif` branches, and what `else` holds.
    If(Vec<(Expression, Vec<Self>)>, Vec<Self>),
    /// `{% for %}`.
    For(Arc<For>),
    /// `{% set target = … %}`, with its line.
    Set(Target, Expression, usize),
    /// `{% set target | filter %}…{% endset %}`.
    SetBlock(Target, Option<Expression>, Vec<Self>, usize),
    /// `{% with %}`: targets and values, and the body that sees them.
    With(Vec<(Target, Expression)>, Vec<Self>),
    /// `{% macro %}`.
    Macro(Arc<Macro>),
    /// `{% call %}`: the body as a macro, and the call that gets it.
    Call(Arc<Macro>, Box<Call>),
    /// `{% filter %}`.
    Filter(Expression, Vec<Self>),
    /// `{% generation %}`: what the assistant wrote.
    Generation(Arc<Macro>),
    /// `{% autoescape %}`.
    Autoescape(Expression, Vec<Self>),
    /// `{% block %}`.
    Block(Vec<Self>),
    /// `{% break %}`.
    Break,
    /// `{% continue %}`.
    Continue,
    /// What fails when it is reached, with the reason and the line.
    Fail(String, usize),
}

/// A `{% for %}` loop.
pub(crate) struct For {
    pub(crate) target: Target,
    pub(crate) iterable: Expression,
    pub(crate) condition: Option<Expression>,
    pub(crate) is_recursive: bool,
    pub(crate) body: Vec<Statement>,
    pub(crate) otherwise: Vec<Statement>,
    pub(crate) line: usize,
}

/// Names of a macro's parameters, with their defaults.
pub(crate) type Parameters = Vec<(Arc<str>, Option<Expression>)>;

/// A macro, or the body of a `{% call %}`.
pub(crate) struct Macro {
    pub(crate) name: Option<Arc<str>>,
    pub(crate) parameters: Parameters,
    pub(crate) body: Vec<Statement>,
    pub(crate) uses: SpecialNames,
}

/// Which special names a macro reads; it takes those arguments then.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct SpecialNames {
    pub(crate) caller: bool,
    pub(crate) kwargs: bool,
    pub(crate) varargs: bool,
}

/// What a value is assigned to.
pub(crate) enum Target {
    Name(Arc<str>),
    /// Several targets for the items of one value.
    Tuple(Vec<Self>),
    /// An attribute of a namespace.
    Namespace(Arc<str>, Arc<str>),
}

/// An expression; numbers behind are lines.
pub(crate) enum Expression {
    Constant(Constant),
    Name(Arc<str>),
    List(Vec<Self>),
    Tuple(Vec<Self>),
    Dict(Vec<(Self, Self)>),
    /// `value.name`.
    Attribute(Box<Self>, Arc<str>, usize),
    /// `value[key]`.
    Item(Box<Self>, Box<Self>, usize),
    /// `value[start:stop:step]`.
    Slice(Box<Self>, Box<[Option<Self>; 3]>, usize),
    Call(Box<Call>),
    /// A filter; the value is missing where a block is filtered.
    Filter(Option<Box<Self>>, Arc<str>, Box<CallArguments>, usize),
    Test(Box<Self>, Arc<str>, Box<CallArguments>, usize),
    Binary(Binary, Box<Self>, Box<Self>, usize),
    /// `a ~ b ~ c`.
    Concat(Vec<Self>),
    Negate(Box<Self>, usize),
    Plus(Box<Self>, usize),
    Not(Box<Self>),
    And(Box<Self>, Box<Self>),
    Or(Box<Self>, Box<Self>),
    /// `a < b < c`.
    Compare(Box<Self>, Vec<(Comparison, Self)>, usize),
    /// `then if test else otherwise`.
    Conditional(Box<[Self; 2]>, Option<Box<Self>>),
}

/// A call of a value.
pub(crate) struct Call {
    pub(crate) callee: Expression,
    pub(crate) arguments: CallArguments,
    pub(crate) line: usize,
}

/// Arguments as they are written.
#[derive(Default)]
pub(crate) struct CallArguments {
    pub(crate) positional: Vec<Expression>,
    pub(crate) keywords: Vec<(Arc<str>, Expression)>,
    /// `*values`.
    pub(crate) more_positional: Option<Expression>,
    /// `**values`.
    pub(crate) more_keywords: Option<Expression>,
}

/// A value that stands in the template.
pub(crate) enum Constant {
    None,
    Bool(bool),
    Int(Integer),
    Float(f64),
    Text(Arc<str>),
}

/// An operator between two values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Binary {
    Add,
    Subtract,
    Multiply,
    Divide,
    FloorDivide,
    Modulo,
    Power,
}

impl Binary {
    /// How it is written.
    pub(crate) fn symbol(self) -> &'static str {
        match self {
            Self::Add => "+",
            Self::Subtract => "-",
            Self::Multiply => "*",
            Self::Divide => "/",
            Self::FloorDivide => "//",
            Self::Modulo => "%",
            Self::Power => "** or pow()",
        }
    }
}

/// A comparison of two values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Comparison {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
    In,
    NotIn,
}
