//! What every template can use: `range`, `dict`, `namespace`, `cycler`, `joiner`, `raise_exception`.

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::rc::Rc;

use super::arguments::Arguments;
use super::dict::{Dict, Key};
use super::error::Error;
use super::list::List;
use super::object::Object;
use super::value::Value;
use super::{dict_methods, range, repr};

/// A function that templates can call.
pub(crate) struct Function {
    name: &'static str,
    /// How deep values are nested that it holds.
    nesting: usize,
    function: Box<dyn Fn(Arguments) -> Result<Value, Error>>,
}

impl Function {
    /// A function as a value.
    pub(crate) fn value(
        name: &'static str,
        function: impl Fn(Arguments) -> Result<Value, Error> + 'static,
    ) -> Value {
        Self::holding(name, 0, function)
    }

    /// A function that holds values.
    pub(crate) fn holding(
        name: &'static str,
        nesting: usize,
        function: impl Fn(Arguments) -> Result<Value, Error> + 'static,
    ) -> Value {
        Value::object(Self { name, nesting, function: Box::new(function) })
    }
}

impl Object for Function {
    fn type_name(&self) -> &'static str {
        "function"
    }

    fn depth(&self) -> usize {
        self.nesting + 1
    }

    fn repr(&self) -> Result<String, Error> {
        Err(Error::new(format!("the template prints the function '{}'", self.name)))
    }

    fn is_callable(&self) -> bool {
        true
    }

    fn call(&self, arguments: Arguments) -> Result<Value, Error> {
        (self.function)(arguments)
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// The names that every template knows, and their values.
pub(crate) fn all() -> Vec<(&'static str, Value)> {
    vec![
        ("range", Function::value("range", range::make)),
        ("dict", Value::object(DictType)),
        ("namespace", Function::value("namespace", namespace)),
        ("cycler", Function::value("cycler", cycler)),
        ("joiner", Function::value("joiner", joiner)),
        ("raise_exception", Function::value("raise_exception", raise_exception)),
        (
            "lipsum",
            Function::value("lipsum", |_| {
                Err(Error::new("lipsum() writes another text each time"))
            }),
        ),
    ]
}

fn raise_exception(arguments: Arguments) -> Result<Value, Error> {
    let [message] = arguments.bind("raise_exception", ["message"], 1)?;
    Err(Error::raised(repr::to_text(&message.unwrap_or(Value::None))?))
}

/// `dict`, which makes dictionaries.
struct DictType;

impl Object for DictType {
    fn type_name(&self) -> &'static str {
        "type"
    }

    fn repr(&self) -> Result<String, Error> {
        Ok("<class 'dict'>".to_owned())
    }

    fn attribute(&self, name: &str) -> Option<Value> {
        (name == "fromkeys").then(|| Function::value("fromkeys", dict_methods::from_keys))
    }

    fn is_callable(&self) -> bool {
        true
    }

    fn call(&self, arguments: Arguments) -> Result<Value, Error> {
        dict_methods::make(arguments).map(Value::dict)
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// An object whose attributes a template sets.
#[derive(Default)]
pub(crate) struct Namespace {
    attributes: RefCell<Dict>,
    /// How deep values were nested in it at most.
    depth: Cell<usize>,
    /// Whether the interpreter knows of it.
    pub(crate) is_registered: Cell<bool>,
}

fn namespace(arguments: Arguments) -> Result<Value, Error> {
    let attributes = dict_methods::make(arguments)?;
    for (name, _) in attributes.iter() {
        check_attribute_name(name)?;
    }
    let depth = Cell::new(attributes.depth());
    let attributes = RefCell::new(attributes);
    Ok(Value::object(Namespace { attributes, depth, is_registered: Cell::new(false) }))
}

fn check_attribute_name(name: &Value) -> Result<(), Error> {
    match name.as_text().filter(|name| name.starts_with('_')) {
        None => Ok(()),
        Some(name) => Err(Error::new(format!(
            "a namespace takes no attributes that begin with an underscore, but got '{name}'"
        ))),
    }
}

impl Namespace {
    /// Sets an attribute.
    ///
    /// # Errors
    /// Names that begin with an underscore.
    pub(crate) fn set(&self, name: &str, value: Value) -> Result<(), Error> {
        check_attribute_name(&Value::from(name))?;
        self.depth.set(self.depth.get().max(value.depth()));
        self.attributes.borrow_mut().insert(Key::text(name), value);
        Ok(())
    }

    /// Lets go of all values.
    pub(crate) fn clear(&self) {
        self.attributes.take();
    }
}

impl Object for Namespace {
    fn type_name(&self) -> &'static str {
        "TemplateNamespace"
    }

    fn depth(&self) -> usize {
        self.depth.get() + 1
    }

    fn repr(&self) -> Result<String, Error> {
        // One that holds itself has no end.
        let Ok(attributes) = self.attributes.try_borrow_mut() else {
            return Err(Error::new("the template prints a namespace that holds itself"));
        };
        Ok(format!("<Namespace {}>", repr::repr(&Value::dict(attributes.copied()?))?))
    }

    fn attribute(&self, name: &str) -> Option<Value> {
        self.attributes.borrow().get_text(name).cloned()
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// Values that come one after the other, again and again, and the position of the next one.
struct Cycler {
    items: Rc<List>,
    position: Rc<Cell<usize>>,
}

fn cycler(arguments: Arguments) -> Result<Value, Error> {
    if arguments.positional.is_empty() {
        return Err(Error::new("at least one item has to be provided"));
    }
    if let Some((name, _)) = arguments.keywords.first() {
        return Err(Error::new(format!("cycler() got an unexpected keyword argument '{name}'")));
    }
    let items = List::new(arguments.positional);
    Ok(Value::object(Cycler { items: Rc::new(items), position: Rc::default() }))
}

impl Object for Cycler {
    fn type_name(&self) -> &'static str {
        "Cycler"
    }

    fn depth(&self) -> usize {
        self.items.depth() + 1
    }

    fn attribute(&self, name: &str) -> Option<Value> {
        let (items, position) = (self.items.clone(), self.position.clone());
        match name {
            "current" => Some(items[position.get()].clone()),
            "items" => Some(Value::Tuple(items)),
            "pos" => Some(position.get().into()),
            "next" => Some(Function::holding("next", self.depth(), move |arguments| {
                let [] = arguments.positional("next", 0)?;
                let item = items[position.get()].clone();
                position.set((position.get() + 1) % items.len());
                Ok(item)
            })),
            "reset" => Some(Function::value("reset", move |arguments| {
                let [] = arguments.positional("reset", 0)?;
                position.set(0);
                Ok(Value::None)
            })),
            _ => None,
        }
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// A separator that is nothing the first time.
struct Joiner {
    separator: Value,
    is_used: Cell<bool>,
}

fn joiner(arguments: Arguments) -> Result<Value, Error> {
    let [separator] = arguments.bind("joiner", ["sep"], 0)?;
    let separator = separator.unwrap_or_else(|| Value::from(", "));
    Ok(Value::object(Joiner { separator, is_used: Cell::new(false) }))
}

impl Object for Joiner {
    fn type_name(&self) -> &'static str {
        "Joiner"
    }

    fn depth(&self) -> usize {
        self.separator.depth() + 1
    }

    fn attribute(&self, name: &str) -> Option<Value> {
        match name {
            "sep" => Some(self.separator.clone()),
            "used" => Some(self.is_used.get().into()),
            _ => None,
        }
    }

    fn is_callable(&self) -> bool {
        true
    }

    fn call(&self, arguments: Arguments) -> Result<Value, Error> {
        let [] = arguments.positional("joiner", 0)?;
        let is_first = !self.is_used.replace(true);
        Ok(if is_first { Value::from("") } else { self.separator.clone() })
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
