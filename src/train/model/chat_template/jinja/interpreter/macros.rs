//! Macros, the bodies of `{% call %}`, and calls of everything else.

use std::any::Any;
use std::rc::Rc;
use std::sync::Arc;

use indexmap::IndexMap;

use super::super::arguments::Arguments;
use super::super::ast::Macro;
use super::super::dict::{Dict, Key};
use super::super::error::Error;
use super::super::object::Object;
use super::super::value::Value;
use super::loops::Loop;
use super::scope::Scope;
use super::state::Interpreter;

/// A macro, with the scope that it was defined in.
pub(super) struct MacroValue {
    definition: Arc<Macro>,
    scope: Rc<Scope>,
}

impl Object for MacroValue {
    fn type_name(&self) -> &'static str {
        "Macro"
    }

    fn repr(&self) -> Result<String, Error> {
        Ok(match &self.definition.name {
            Some(name) => format!("<Macro '{name}'>"),
            None => "<Macro anonymous>".to_owned(),
        })
    }

    fn attribute(&self, name: &str) -> Option<Value> {
        let Macro { name: own_name, parameters, uses, .. } = &*self.definition;
        match name {
            "name" => Some(own_name.clone().map_or(Value::None, Value::from)),
            "arguments" => {
                let names = parameters.iter().map(|(name, _)| Value::from(name.clone()));
                Some(Value::tuple(names.collect()))
            }
            "caller" => Some(uses.caller.into()),
            "catch_kwargs" => Some(uses.kwargs.into()),
            "catch_varargs" => Some(uses.varargs.into()),
            _ => None,
        }
    }

    fn is_callable(&self) -> bool {
        true
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

impl Interpreter {
    /// A macro that sees the current scope.
    pub(super) fn define_macro(&mut self, definition: &Arc<Macro>) -> Value {
        let scope = self.scope.clone();
        self.register_scope(&scope);
        Value::object(MacroValue { definition: definition.clone(), scope })
    }

    /// Calls a value.
    pub(super) fn call(&mut self, callee: &Value, arguments: Arguments) -> Result<Value, Error> {
        if let Some(called) = callee.downcast::<MacroValue>() {
            let (definition, scope) = (called.definition.clone(), called.scope.clone());
            return self
                .nested(|interpreter| interpreter.call_macro(&definition, scope, arguments));
        }
        if let Some(called) = callee.downcast::<Loop>() {
            let state = called.0.clone();
            if !state.definition.is_recursive {
                return Err(Error::new(
                    "The loop must have the 'recursive' marker to be called recursively.",
                ));
            }
            let [iterable] = arguments.bind("loop", ["iterable"], 1)?;
            let iterable = iterable.unwrap_or(Value::None);
            let scope = state.scope.clone();
            return self.nested(|interpreter| {
                interpreter.capture(|interpreter| {
                    interpreter.run_loop(&state.definition, &iterable, scope, state.depth + 1)
                })
            });
        }
        match callee {
            Value::Undefined(reason) => Err(Error::new(reason.as_ref())),
            Value::Object(object) => object.call(arguments),
            other => Err(Error::new(format!("'{}' object is not callable", other.type_name()))),
        }
    }

    fn call_macro(
        &mut self,
        definition: &Macro,
        outer: Rc<Scope>,
        arguments: Arguments,
    ) -> Result<Value, Error> {
        let name = definition.name.as_deref().unwrap_or("caller");
        let Arguments { positional, keywords } = arguments;
        let mut keywords: Keywords =
            keywords.into_iter().map(|(name, value)| (name, Some(value))).collect();
        let mut positional = positional.into_iter();
        let scope = Scope::new(Some(outer));
        let mut missing = Vec::new();
        let mut takes_caller = definition.uses.caller;
        for (parameter, default) in &definition.parameters {
            let given = positional.next().or_else(|| take(&mut keywords, parameter));
            takes_caller &= &**parameter != "caller";
            match given {
                Some(value) => scope.set(parameter.clone(), value),
                None => {
                    // Until its turn comes, a parameter hides what has its name further out.
                    let reason = format!("parameter '{parameter}' was not provided");
                    scope.set(parameter.clone(), Value::undefined(reason));
                    missing.push((parameter.clone(), default));
                }
            }
        }
        if takes_caller {
            let caller = take(&mut keywords, "caller").filter(|it| !matches!(it, Value::None));
            let caller = caller.unwrap_or_else(|| Value::undefined("No caller defined"));
            scope.set(Arc::from("caller"), caller);
        }
        if definition.uses.kwargs {
            let mut dict = Dict::default();
            for (name, value) in keywords {
                value.into_iter().for_each(|value| dict.insert(Key::text(&name), value));
            }
            scope.set(Arc::from("kwargs"), Value::dict(dict));
        } else if let Some((keyword, _)) = keywords.iter().find(|(_, value)| value.is_some()) {
            return Err(Error::new(format!(
                "macro '{name}' takes no keyword argument '{keyword}'"
            )));
        }
        if definition.uses.varargs {
            scope.set(Arc::from("varargs"), Value::tuple(positional.collect()));
        } else if positional.len() > 0 {
            let count = definition.parameters.len();
            let message = format!("macro '{name}' takes not more than {count} argument(s)");
            return Err(Error::new(message));
        }
        self.in_scope(scope, |interpreter| {
            for (parameter, default) in missing {
                if let Some(default) = default {
                    let value = interpreter.evaluate(default)?;
                    interpreter.scope.set(parameter, value);
                }
            }
            interpreter.capture(|interpreter| interpreter.execute_all(&definition.body))
        })
    }
}

/// Arguments with names, in their order; those that were taken are gone.
type Keywords = IndexMap<Arc<str>, Option<Value>>;

fn take(keywords: &mut Keywords, name: &str) -> Option<Value> {
    keywords.get_mut(name)?.take()
}
