//! Filters by their names.

use super::super::arguments::Arguments;
use super::super::error::Error;
use super::super::runtime::Runtime;
use super::super::tojson;
use super::super::value::Value;
use super::{html, number, sequence, text};

const NAMES: &[&str] = &[
    "abs",
    "attr",
    "batch",
    "capitalize",
    "center",
    "count",
    "d",
    "default",
    "dictsort",
    "e",
    "escape",
    "filesizeformat",
    "first",
    "float",
    "forceescape",
    "format",
    "groupby",
    "indent",
    "int",
    "items",
    "join",
    "last",
    "length",
    "list",
    "lower",
    "map",
    "max",
    "min",
    "pprint",
    "random",
    "reject",
    "rejectattr",
    "replace",
    "reverse",
    "round",
    "safe",
    "select",
    "selectattr",
    "slice",
    "sort",
    "string",
    "striptags",
    "sum",
    "title",
    "tojson",
    "trim",
    "truncate",
    "unique",
    "upper",
    "urlencode",
    "urlize",
    "wordcount",
    "wordwrap",
    "xmlattr",
];

/// Whether there is a filter of that name.
pub(crate) fn is_known(name: &str) -> bool {
    NAMES.contains(&name)
}

/// What a filter makes of a value.
pub(crate) fn apply(
    runtime: &mut dyn Runtime,
    name: &str,
    value: Value,
    arguments: Arguments,
) -> Result<Value, Error> {
    match name {
        "tojson" => tojson::to_json(&value, arguments),
        "d" | "default" => {
            let [default, boolean] = arguments.bind(name, ["default_value", "boolean"], 0)?;
            let is_missing = value.is_undefined()
                || (boolean.is_some_and(|boolean| boolean.is_true()) && !value.is_true());
            Ok(if is_missing { default.unwrap_or_else(|| Value::from("")) } else { value })
        }
        "capitalize" | "center" | "format" | "indent" | "lower" | "replace" | "string"
        | "title" | "trim" | "truncate" | "upper" | "wordcount" | "wordwrap" | "pprint" => {
            text::apply(name, &value, arguments, runtime.escapes())
        }
        "e" | "escape" | "forceescape" | "safe" | "striptags" | "urlencode" | "xmlattr" => {
            html::apply(name, &value, arguments, runtime.escapes())
        }
        "abs" | "filesizeformat" | "float" | "int" | "round" => {
            number::apply(name, &value, arguments)
        }
        "random" | "urlize" => {
            Err(Error::new(format!("the filter '{name}' is not supported in chat templates")))
        }
        _ => sequence::apply(runtime, name, value, arguments),
    }
}
