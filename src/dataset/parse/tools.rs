//! The tools of a line, in OpenAI's two spellings: `tools`, and bare `functions`.

use serde_json_borrow::{ObjectAsVec as Object, Value};

use super::schema_nulls::drop_schema_nulls;
use super::{ExampleParser, kind};
use crate::util::exact_json::ExactJson;

impl ExampleParser<'_> {
    /// The tools of an object that stands in the line under the key `parent`, or is the line.
    pub(super) fn tools(&mut self, object: &Object<'_>, parent: Option<&str>) -> Vec<ExactJson> {
        let mut tools = self.list(object, parent, "tools");
        let functions = self.list(object, parent, "functions");
        tools.extend(functions.into_iter().map(tool_of_function));
        tools
    }

    /// The tools under one spelling.
    fn list(&mut self, object: &Object<'_>, parent: Option<&str>, key: &str) -> Vec<ExactJson> {
        let list = match object.get(key) {
            None | Some(Value::Null) => return Vec::new(),
            Some(Value::Array(list)) => list,
            Some(other) => {
                let message = format!("expected a list, found {}", kind(other));
                self.problem(None, Some(key.to_owned()), message);
                return Vec::new();
            }
        };
        for (index, tool) in list.iter().enumerate() {
            let is_named = match key {
                "tools" => tool.get("function").get("name").is_string(),
                _ => tool.get("name").is_string(),
            };
            if !is_named {
                let message = match key {
                    "tools" => {
                        "a tool needs \"type\": \"function\" and a \"function\" with a \"name\""
                    }
                    _ => "a function needs a \"name\"",
                };
                self.problem(None, Some(format!("{key}[{index}]")), message.to_owned());
            }
        }
        if list.is_empty() {
            return Vec::new();
        }
        // Read again: the numbers of schemas stay as they are written.
        let line = match ExactJson::read(self.text) {
            Ok(line) => line,
            Err(error) => {
                self.problem(None, Some(key.to_owned()), error.to_string());
                return Vec::new();
            }
        };
        let object = parent.map_or(Some(&line), |parent| line.get(parent));
        let list = object.and_then(|object| object.get(key)).map_or(&[][..], ExactJson::items);
        let numbered = list.iter().enumerate();
        numbered.map(|(index, tool)| self.tool(tool, &format!("{key}[{index}]"))).collect()
    }

    /// A tool without the nulls that mean nothing, which one warning names.
    fn tool(&mut self, tool: &ExactJson, path: &str) -> ExactJson {
        let mut tool = tool.clone();
        let dropped = drop_schema_nulls(&mut tool, path);
        if let Some(first) = dropped.first {
            let all = match dropped.count {
                1 => String::new(),
                count => format!(", as {count} nulls of this tool are"),
            };
            let message = format!("the null means nothing in a schema and is left out{all}");
            self.warning(None, Some(first), message);
        }
        tool
    }
}

/// A function of the older spelling as a tool.
pub fn tool_of_function(function: ExactJson) -> ExactJson {
    let kind = ExactJson::Text("function".to_owned());
    ExactJson::Object(vec![("type".to_owned(), kind), ("function".to_owned(), function)])
}
