//! The filter `tojson`, with the defaults that transformers gives `json.dumps`.

use super::super::markers::RESERVED;
use super::arguments::Arguments;
use super::budget::{self, check_text_bytes};
use super::dict::Dict;
use super::error::Error;
use super::float;
use super::sort;
use super::value::Value;

/// `tojson(ensure_ascii=False, indent=None, separators=None, sort_keys=False)`.
pub(crate) fn to_json(value: &Value, arguments: Arguments) -> Result<Value, Error> {
    let names = ["ensure_ascii", "indent", "separators", "sort_keys"];
    let [ensure_ascii, indent, separators, sort_keys] = arguments.bind("tojson", names, 0)?;
    let is_set = |option: Option<Value>| option.is_some_and(|option| option.is_true());
    let indent = match indent.unwrap_or(Value::None) {
        Value::None => None,
        Value::Text(text) => Some(text.to_string()),
        other => {
            let width = other.as_integer().ok_or_else(|| Error::new("indent must be a number"))?;
            let width = usize::try_from(width.saturating()).unwrap_or(0);
            check_text_bytes(width)?;
            Some(" ".repeat(width))
        }
    };
    let [between_items, after_key] = match separators.unwrap_or(Value::None) {
        Value::None if indent.is_some() => [",".to_owned(), ": ".to_owned()],
        Value::None => [", ".to_owned(), ": ".to_owned()],
        other => {
            let both = other.to_vec()?;
            let [Some(item), Some(key)] = [0, 1].map(|index| both.get(index)?.as_text()) else {
                return Err(Error::new("separators must be two texts"));
            };
            if both.len() > 2 {
                return Err(Error::new("too many values to unpack (expected 2)"));
            }
            [item.to_owned(), key.to_owned()]
        }
    };
    let mut writer = Writer {
        ensure_ascii: is_set(ensure_ascii),
        sort_keys: is_set(sort_keys),
        indent,
        between_items,
        after_key,
        out: String::new(),
    };
    writer.write(value, 1)?;
    Ok(writer.out.into())
}

struct Writer {
    ensure_ascii: bool,
    sort_keys: bool,
    indent: Option<String>,
    between_items: String,
    after_key: String,
    out: String,
}

impl Writer {
    fn write(&mut self, value: &Value, depth: usize) -> Result<(), Error> {
        check_text_bytes(self.out.len())?;
        budget::charge_text(self.between_items.len() + self.after_key.len())?;
        match value {
            Value::None => self.out.push_str("null"),
            Value::Bool(true) => self.out.push_str("true"),
            Value::Bool(false) => self.out.push_str("false"),
            Value::Int(value) => self.out.push_str(&value.to_text(10)?),
            Value::Float(value) => self.out.push_str(&number(*value)),
            Value::Text(text) | Value::Markup(text) => self.write_text(text)?,
            Value::List(items) | Value::Tuple(items) if items.is_empty() => self.out.push_str("[]"),
            Value::List(items) | Value::Tuple(items) => self.write_items(items, depth)?,
            Value::Dict(dict) if dict.len() == 0 => self.out.push_str("{}"),
            Value::Dict(dict) => self.write_dict(dict, depth)?,
            other => {
                return Err(Error::new(format!(
                    "Object of type {} is not JSON serializable",
                    other.type_name()
                )));
            }
        }
        Ok(())
    }

    fn write_items(&mut self, items: &[Value], depth: usize) -> Result<(), Error> {
        self.out.push('[');
        for (index, item) in items.iter().enumerate() {
            self.separate(index, depth)?;
            self.write(item, depth + 1)?;
        }
        self.close(depth)?;
        self.out.push(']');
        Ok(())
    }

    fn write_dict(&mut self, dict: &Dict, depth: usize) -> Result<(), Error> {
        let mut items: Vec<(&Value, &Value)> = dict.iter().collect();
        if self.sort_keys {
            items = sorted(items)?;
        }
        self.out.push('{');
        for (index, (key, value)) in items.into_iter().enumerate() {
            self.separate(index, depth)?;
            self.write_key(key)?;
            self.out.push_str(&self.after_key);
            self.write(value, depth + 1)?;
        }
        self.close(depth)?;
        self.out.push('}');
        Ok(())
    }

    /// What stands before an item.
    fn separate(&mut self, index: usize, depth: usize) -> Result<(), Error> {
        if index > 0 {
            self.out.push_str(&self.between_items);
        }
        self.new_line(depth)
    }

    /// What stands before a closing bracket.
    fn close(&mut self, depth: usize) -> Result<(), Error> {
        self.new_line(depth - 1)
    }

    fn new_line(&mut self, depth: usize) -> Result<(), Error> {
        if let Some(indent) = &self.indent {
            check_text_bytes(self.out.len().saturating_add(indent.len().saturating_mul(depth)))?;
            budget::charge_text(indent.len() * depth)?;
            self.out.push('\n');
            self.out.extend(std::iter::repeat_n(indent.as_str(), depth));
        }
        Ok(())
    }

    fn write_key(&mut self, key: &Value) -> Result<(), Error> {
        let text = match key {
            Value::Text(text) | Value::Markup(text) => text.to_string(),
            Value::None => "null".to_owned(),
            Value::Bool(value) => value.to_string(),
            Value::Int(value) => value.to_text(10)?,
            Value::Float(value) => number(*value),
            other => {
                return Err(Error::new(format!(
                    "keys must be str, int, float, bool or None, not {}",
                    other.type_name()
                )));
            }
        };
        self.write_text(&text)
    }

    /// Characters that stand for something while a template renders stay as they are: they are found
    /// again in what it writes.
    fn write_text(&mut self, text: &str) -> Result<(), Error> {
        budget::charge_text(text.len().saturating_mul(4))?;
        check_text_bytes(self.out.len() + text.len())?;
        self.out.push('"');
        for character in text.chars() {
            match character {
                '"' => self.out.push_str("\\\""),
                '\\' => self.out.push_str("\\\\"),
                '\n' => self.out.push_str("\\n"),
                '\r' => self.out.push_str("\\r"),
                '\t' => self.out.push_str("\\t"),
                '\u{8}' => self.out.push_str("\\b"),
                '\u{c}' => self.out.push_str("\\f"),
                '\0'..='\u{1f}' => self.write_code(character),
                '\u{7f}'.. if self.ensure_ascii && !RESERVED.contains(&character) => {
                    self.write_code(character);
                }
                other => self.out.push(other),
            }
        }
        self.out.push('"');
        check_text_bytes(self.out.len())
    }

    fn write_code(&mut self, character: char) {
        for unit in character.encode_utf16(&mut [0; 2]) {
            self.out.push_str(&format!("\\u{unit:04x}"));
        }
    }
}

fn number(value: f64) -> String {
    match value {
        value if value.is_nan() => "NaN".to_owned(),
        f64::INFINITY => "Infinity".to_owned(),
        f64::NEG_INFINITY => "-Infinity".to_owned(),
        value => float::repr(value),
    }
}

fn sorted<'a>(items: Vec<(&'a Value, &'a Value)>) -> Result<Vec<(&'a Value, &'a Value)>, Error> {
    let keys = items.iter().enumerate();
    let keys = keys.map(|(index, (key, _))| ((*key).clone(), Value::from(index))).collect();
    let order = sort::by_key(keys, false)?;
    let index = |value: Value| value.as_integer().and_then(|index| index.to_i64());
    Ok(order
        .into_iter()
        .filter_map(|at| items.get(usize::try_from(index(at)?).ok()?).copied())
        .collect())
}
