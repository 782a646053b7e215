//! The arguments of calls, and their types as functions and methods take them.

use std::sync::Arc;

use super::error::Error;
use super::value::Value;

/// The arguments of a call.
#[derive(Clone, Default)]
pub(crate) struct Arguments {
    pub(crate) positional: Vec<Value>,
    pub(crate) keywords: Vec<(Arc<str>, Value)>,
}

impl Arguments {
    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.positional.len() + self.keywords.len()
    }

    /// The arguments by the names of parameters, of which the first `required` must be there.
    ///
    /// # Errors
    /// Arguments that are missing, too many, unknown or given twice.
    pub(crate) fn bind<const N: usize>(
        self,
        function: &str,
        names: [&str; N],
        required: usize,
    ) -> Result<[Option<Value>; N], Error> {
        let given = self.positional.len();
        if given > N {
            return Err(Error::new(format!(
                "{function}() takes at most {N} arguments ({given} given)"
            )));
        }
        let mut positional = self.positional.into_iter();
        let mut bound: [Option<Value>; N] = std::array::from_fn(|_| positional.next());
        for (name, value) in self.keywords {
            let Some(index) = names.iter().position(|known| **known == *name) else {
                return Err(Error::new(format!(
                    "{function}() got an unexpected keyword argument '{name}'"
                )));
            };
            if bound[index].replace(value).is_some() {
                return Err(Error::new(format!(
                    "{function}() got multiple values for argument '{name}'"
                )));
            }
        }
        if let Some(missing) = (0..required).find(|index| bound[*index].is_none()) {
            return Err(Error::new(format!(
                "{function}() missing required argument: '{}'",
                names[missing]
            )));
        }
        Ok(bound)
    }

    /// Arguments of a function that takes no keywords.
    pub(crate) fn positional<const N: usize>(
        self,
        function: &str,
        required: usize,
    ) -> Result<[Option<Value>; N], Error> {
        if !self.keywords.is_empty() {
            return Err(Error::new(format!("{function}() takes no keyword arguments")));
        }
        self.bind(function, [""; N], 0).and_then(|bound| {
            let given = bound.iter().flatten().count();
            if given >= required {
                return Ok(bound);
            }
            Err(Error::new(format!(
                "{function}() takes at least {required} arguments ({given} given)"
            )))
        })
    }
}

/// The text of an argument that must be one.
pub(crate) fn required_text(value: &Value) -> Result<&str, Error> {
    value.as_text().ok_or_else(|| Error::new(format!("must be str, not {}", value.type_name())))
}

/// The text of an argument that may be missing or `None`.
pub(crate) fn optional_text(value: Option<&Value>) -> Result<Option<&str>, Error> {
    match value {
        None | Some(Value::None) => Ok(None),
        Some(value) => required_text(value).map(Some),
    }
}

/// A whole number that may be missing.
pub(crate) fn whole(value: Option<&Value>, default: i64) -> Result<i64, Error> {
    let Some(value) = value else { return Ok(default) };
    value.as_integer().map(|value| value.saturating()).ok_or_else(|| {
        Error::new(format!("'{}' object cannot be interpreted as an integer", value.type_name()))
    })
}
