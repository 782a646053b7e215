//! The formula of a `multi` grader: numbers, grades by name, `+ - * / ^`, brackets, and `min`, `max`,
//! `abs`, `floor`, `ceil`, `exp`, `sqrt`, `log`.
//!
//! hone has its own parser: it accepts exactly OpenAI's grammar, and an error names the character.

use crate::util::excerpt::excerpt;
use std::collections::BTreeSet;
use std::iter::Peekable;
use std::str::CharIndices;

/// Deepest nesting of brackets, functions and signs.
const MAX_DEPTH: usize = 64;

/// Longest formula, in bytes.
const MAX_BYTES: usize = 4096;

/// A parsed formula.
#[derive(Debug, Clone, PartialEq)]
pub struct Formula(Node);

/// What is wrong with a formula, and where.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the formula is wrong at character {at}: {message}")]
pub struct FormulaError {
    /// Character, from 1.
    pub at: usize,
    /// What is wrong there.
    pub message: String,
}

#[derive(Debug, Clone, PartialEq)]
enum Node {
    Number(f64),
    Variable(String),
    Negative(Box<Node>),
    Binary(Operator, Box<Node>, Box<Node>),
    Call(Function, Vec<Node>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Operator {
    Add,
    Subtract,
    Multiply,
    Divide,
    Power,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Function {
    Min,
    Max,
    Abs,
    Floor,
    Ceil,
    Exp,
    Sqrt,
    Log,
}

impl Function {
    const ALL: &'static [(&'static str, Function)] = &[
        ("min", Self::Min),
        ("max", Self::Max),
        ("abs", Self::Abs),
        ("floor", Self::Floor),
        ("ceil", Self::Ceil),
        ("exp", Self::Exp),
        ("sqrt", Self::Sqrt),
        ("log", Self::Log),
    ];

    fn parse(name: &str) -> Option<Self> {
        Self::ALL.iter().find(|(known, _)| *known == name).map(|(_, function)| *function)
    }

    /// Whether it takes any number of arguments, from one on.
    fn is_variadic(self) -> bool {
        matches!(self, Self::Min | Self::Max)
    }
}

impl Formula {
    /// Parses a formula.
    pub fn parse(text: &str) -> Result<Self, FormulaError> {
        if text.len() > MAX_BYTES {
            let message = format!("it is longer than {MAX_BYTES} bytes");
            return Err(FormulaError { at: 1, message });
        }
        let mut parser = FormulaParser { text, rest: text.char_indices().peekable(), depth: 0 };
        let node = parser.sum()?;
        match parser.peek() {
            None => Ok(Self(node)),
            Some(found) => Err(parser.wrong(format!("{found:?} cannot stand here"))),
        }
    }

    /// The names of the graders that it uses.
    pub fn variables(&self) -> BTreeSet<&str> {
        let mut names = BTreeSet::new();
        collect(&self.0, &mut names);
        names
    }

    /// The result; `grade` returns a grade by its name. Not finite after a division by zero, for example, or
    /// the logarithm of a negative number.
    pub fn value(&self, grade: &dyn Fn(&str) -> f64) -> f64 {
        value(&self.0, grade)
    }
}

fn collect<'a>(node: &'a Node, names: &mut BTreeSet<&'a str>) {
    match node {
        Node::Number(_) => {}
        Node::Variable(name) => {
            names.insert(name);
        }
        Node::Negative(inner) => collect(inner, names),
        Node::Binary(_, left, right) => {
            collect(left, names);
            collect(right, names);
        }
        Node::Call(_, arguments) => {
            for argument in arguments {
                collect(argument, names);
            }
        }
    }
}

fn value(node: &Node, grade: &dyn Fn(&str) -> f64) -> f64 {
    match node {
        Node::Number(number) => *number,
        Node::Variable(name) => grade(name),
        Node::Negative(inner) => -value(inner, grade),
        Node::Binary(operator, left, right) => {
            let (left, right) = (value(left, grade), value(right, grade));
            match operator {
                Operator::Add => left + right,
                Operator::Subtract => left - right,
                Operator::Multiply => left * right,
                Operator::Divide => left / right,
                Operator::Power => left.powf(right),
            }
        }
        Node::Call(function, arguments) => {
            let mut values = arguments.iter().map(|argument| value(argument, grade));
            // The parser guarantees that there is one.
            let first = values.next().unwrap_or(f64::NAN);
            match function {
                Function::Min => values.fold(first, f64::min),
                Function::Max => values.fold(first, f64::max),
                Function::Abs => first.abs(),
                Function::Floor => first.floor(),
                Function::Ceil => first.ceil(),
                Function::Exp => first.exp(),
                Function::Sqrt => first.sqrt(),
                Function::Log => first.ln(),
            }
        }
    }
}

/// A recursive-descent parser, one method for each level of precedence.
struct FormulaParser<'a> {
    text: &'a str,
    rest: Peekable<CharIndices<'a>>,
    depth: usize,
}

impl FormulaParser<'_> {
    /// The next character that is no space.
    fn peek(&mut self) -> Option<char> {
        while self.rest.next_if(|(_, c)| c.is_whitespace()).is_some() {}
        self.rest.peek().map(|(_, c)| *c)
    }

    /// Takes the next character if it is this one.
    fn take(&mut self, wanted: char) -> bool {
        let is_there = self.peek() == Some(wanted);
        if is_there {
            self.rest.next();
        }
        is_there
    }

    /// Byte at which the rest begins.
    fn position(&mut self) -> usize {
        self.rest.peek().map_or(self.text.len(), |(at, _)| *at)
    }

    fn wrong(&mut self, message: impl Into<String>) -> FormulaError {
        let position = self.position();
        let at = self.text[..position].chars().count() + 1;
        FormulaError { at, message: message.into() }
    }

    fn deeper(&mut self) -> Result<(), FormulaError> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(self.wrong(format!("it nests deeper than {MAX_DEPTH}")));
        }
        Ok(())
    }

    /// Terms with `+` and `-` between them.
    fn sum(&mut self) -> Result<Node, FormulaError> {
        let mut left = self.product()?;
        loop {
            let operator = match self.peek() {
                Some('+') => Operator::Add,
                Some('-') => Operator::Subtract,
                _ => return Ok(left),
            };
            self.rest.next();
            let right = self.product()?;
            left = Node::Binary(operator, Box::new(left), Box::new(right));
        }
    }

    /// Factors with `*` and `/` between them.
    fn product(&mut self) -> Result<Node, FormulaError> {
        let mut left = self.signed()?;
        loop {
            let operator = match self.peek() {
                Some('*') => Operator::Multiply,
                Some('/') => Operator::Divide,
                _ => return Ok(left),
            };
            self.rest.next();
            let right = self.signed()?;
            left = Node::Binary(operator, Box::new(left), Box::new(right));
        }
    }

    /// A power with signs before it: `-2 ^ 2` is `-(2 ^ 2)`.
    fn signed(&mut self) -> Result<Node, FormulaError> {
        self.deeper()?;
        let node = if self.take('-') {
            Node::Negative(Box::new(self.signed()?))
        } else if self.take('+') {
            self.signed()?
        } else {
            self.power()?
        };
        self.depth -= 1;
        Ok(node)
    }

    /// `2 ^ 3 ^ 2` is `2 ^ (3 ^ 2)`.
    fn power(&mut self) -> Result<Node, FormulaError> {
        let base = self.single()?;
        if !self.take('^') {
            return Ok(base);
        }
        let exponent = self.signed()?;
        Ok(Node::Binary(Operator::Power, Box::new(base), Box::new(exponent)))
    }

    fn single(&mut self) -> Result<Node, FormulaError> {
        match self.peek() {
            Some('(') => {
                self.rest.next();
                let inner = self.sum()?;
                self.close()?;
                Ok(inner)
            }
            Some(c) if c.is_ascii_digit() || c == '.' => self.number(),
            Some(c) if is_name_start(c) => self.name(),
            Some(found) => Err(self.wrong(format!("{found:?} cannot stand here"))),
            None => Err(self.wrong("a number, a grader's name or a bracket is missing")),
        }
    }

    fn close(&mut self) -> Result<(), FormulaError> {
        if self.take(')') {
            return Ok(());
        }
        Err(self.wrong("a closing bracket is missing"))
    }

    fn number(&mut self) -> Result<Node, FormulaError> {
        let start = self.position();
        let mut before = ' ';
        while let Some((_, c)) = self.rest.next_if(|(_, c)| {
            c.is_ascii_digit()
                || matches!(c, '.' | 'e' | 'E')
                || (matches!(c, '+' | '-') && matches!(before, 'e' | 'E'))
        }) {
            before = c;
        }
        let end = self.position();
        let text = &self.text[start..end];
        match text.parse::<f64>() {
            Ok(number) if number.is_finite() => Ok(Node::Number(number)),
            _ => Err(self.wrong(format!("{:?} is no number", excerpt(text)))),
        }
    }

    fn name(&mut self) -> Result<Node, FormulaError> {
        let start = self.position();
        while self.rest.next_if(|(_, c)| is_name_start(*c) || c.is_ascii_digit()).is_some() {}
        let end = self.position();
        let name = &self.text[start..end];
        if !self.take('(') {
            return Ok(Node::Variable(name.to_owned()));
        }
        let Some(function) = Function::parse(name) else {
            let known: Vec<&str> = Function::ALL.iter().map(|(name, _)| *name).collect();
            let name = excerpt(name);
            let message = format!("there is no function {name:?}; there are {}", known.join(", "));
            return Err(self.wrong(message));
        };
        let mut arguments = vec![self.sum()?];
        while self.take(',') {
            arguments.push(self.sum()?);
        }
        self.close()?;
        if arguments.len() > 1 && !function.is_variadic() {
            let message = format!("{name} takes one argument, not {}", arguments.len());
            return Err(self.wrong(message));
        }
        Ok(Node::Call(function, arguments))
    }
}

fn is_name_start(c: char) -> bool {
    c.is_alphabetic() || c == '_'
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn result(text: &str) -> f64 {
        let formula = Formula::parse(text).unwrap_or_else(|error| panic!("{text}: {error}"));
        formula.value(&|name| if name == "a" { 0.5 } else { 3.0 })
    }

    #[test]
    fn formulas_bind_as_in_school() {
        for (text, wanted) in [
            ("1 + 2 * 3", 7.0),
            ("(1 + 2) * 3", 9.0),
            ("10 - 4 - 3", 3.0),
            ("16 / 4 / 2", 2.0),
            ("2 ^ 3 ^ 2", 512.0),
            ("-2 ^ 2", -4.0),
            ("2 ^ -1", 0.5),
            ("2 * -3", -6.0),
            ("--1 + +1", 2.0),
            ("0.5*a + 0.5*b", 1.75),
            ("min(a, b, 2) + max(1, 2)", 2.5),
            ("abs(-3) + floor(2.7) + ceil(2.1) + sqrt(16)", 12.0),
            ("exp(0) + log(1)", 1.0),
            ("1e2 + .5 + 2.5E-1", 100.75),
            ("  a  ", 0.5),
            ("long_name_2", 3.0),
        ] {
            assert!((result(text) - wanted).abs() < 1e-12, "{text}: {}", result(text));
        }
        assert!(!result("1 / 0").is_finite() && !result("log(-1)").is_finite());
        let formula = Formula::parse("max(style, 2 * truth) - style").expect("a formula");
        assert_eq!(formula.variables().into_iter().collect::<Vec<_>>(), ["style", "truth"]);
    }

    #[test]
    fn what_is_wrong_is_named_with_its_place() {
        for (text, at) in [
            ("", 1),
            ("1 +", 4),
            ("1 + * 2", 5),
            ("(1 + 2", 7),
            ("1 2", 3),
            ("a b", 3),
            ("min()", 5),
            ("sin(1)", 5),
            ("abs(1, 2)", 10),
            ("1..2", 5),
            ("1e400", 6),
            ("a; b", 2),
            ("a ** 2", 4),
            ("\"text\"", 1),
        ] {
            let error = Formula::parse(text).expect_err(text);
            assert_eq!(error.at, at, "{text}: {error}");
        }
        assert!(Formula::parse(&"(".repeat(1000)).is_err());
        assert!(Formula::parse(&"-".repeat(1000)).is_err());
        assert!(Formula::parse(&"2^".repeat(1000)).is_err());
        assert!(Formula::parse(&format!("{}1", "1+".repeat(1000))).is_ok(), "long is not deep");
        assert!(Formula::parse(&"1+".repeat(MAX_BYTES)).is_err());
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parser_panic(text in "[-+*/^()., a-c0-9e]{0,40}|.{0,40}") {
            if let Ok(formula) = Formula::parse(&text) {
                let _number = formula.value(&|_| 1.0);
                let _names = formula.variables();
            }
        }
    }
}
