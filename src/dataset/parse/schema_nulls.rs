//! Nulls in the schemas of tools that mean nothing: tables with one column for every key (Arrow, Parquet, pandas)
//! write a null where a row has no such key. In a prompt they would be properties that nobody declared.

use crate::util::exact_json::ExactJson;

/// Keys of a schema whose value is data: a null in it is a value like others.
const DATA_KEYS: [&str; 5] = ["default", "const", "enum", "example", "examples"];

/// Keys of a schema whose value maps names to schemas. A name may be spelled like a key.
const MAP_KEYS: [&str; 5] =
    ["properties", "patternProperties", "dependentSchemas", "$defs", "definitions"];

/// Longest path that is told, in characters.
const MAX_PATH_CHARS: usize = 200;

/// The nulls that were removed from a tool.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct DroppedNulls {
    /// The path of the first one.
    pub first: Option<String>,
    /// How many there were.
    pub count: usize,
}

impl DroppedNulls {
    fn add(&mut self, place: &Place<'_>) {
        self.count += 1;
        if self.first.is_none() {
            self.first = Some(place.path().chars().take(MAX_PATH_CHARS).collect());
        }
    }
}

/// Where a value stands.
enum Place<'a> {
    /// The tool itself, under this path.
    Tool(&'a str),
    /// Under a key of an object.
    Key(&'a Place<'a>, &'a str),
    /// An item of a list.
    Item(&'a Place<'a>, usize),
}

impl Place<'_> {
    fn path(&self) -> String {
        match self {
            Self::Tool(path) => (*path).to_owned(),
            Self::Key(parent, key) => format!("{}.{key}", parent.path()),
            Self::Item(parent, index) => format!("{}[{index}]", parent.path()),
        }
    }
}

/// Removes the nulls of a tool (or a function), which stands at `path`, to which JSON Schema gives no meaning.
pub fn drop_schema_nulls(tool: &mut ExactJson, path: &str) -> DroppedNulls {
    let mut dropped = DroppedNulls::default();
    of_schema(tool, &Place::Tool(path), &mut dropped);
    dropped
}

/// A tool, its function and its parameters are alike here: objects whose keys are known.
fn of_schema(schema: &mut ExactJson, place: &Place<'_>, dropped: &mut DroppedNulls) {
    match schema {
        ExactJson::Object(members) => {
            members.retain(|(key, value)| {
                let is_meaningless = value.is_null() && !DATA_KEYS.contains(&key.as_str());
                if is_meaningless {
                    dropped.add(&Place::Key(place, key));
                }
                !is_meaningless
            });
            for (key, value) in members {
                let place = Place::Key(place, key);
                match key.as_str() {
                    key if DATA_KEYS.contains(&key) => {}
                    key if MAP_KEYS.contains(&key) => of_map(value, &place, dropped),
                    _ => of_schema(value, &place, dropped),
                }
            }
        }
        ExactJson::List(items) => {
            for (index, item) in items.iter_mut().enumerate() {
                of_schema(item, &Place::Item(place, index), dropped);
            }
        }
        _ => {}
    }
}

/// A map of names to schemas.
fn of_map(map: &mut ExactJson, place: &Place<'_>, dropped: &mut DroppedNulls) {
    let ExactJson::Object(schemas) = map else { return };
    schemas.retain(|(name, schema)| {
        if schema.is_null() {
            dropped.add(&Place::Key(place, name));
        }
        !schema.is_null()
    });
    for (name, schema) in schemas {
        of_schema(schema, &Place::Key(place, name), dropped);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn dropped_from(tool: &serde_json::Value) -> (ExactJson, DroppedNulls) {
        let mut tool = ExactJson::read(&tool.to_string()).expect("it is JSON");
        let dropped = drop_schema_nulls(&mut tool, "tools[0]");
        (tool, dropped)
    }

    #[test]
    fn nulls_without_a_meaning_are_dropped_and_the_others_stay() {
        let (tool, dropped) = dropped_from(&json!({"type": "function", "function": {
            "name": "f", "description": null, "strict": null,
            "parameters": {"type": "object", "required": ["a"], "properties": {
                "a": {"type": ["string", "null"], "default": null, "enum": ["x", null], "const": null,
                      "items": null, "description": null, "examples": [null]},
                "b": null,
                "default": null,
                "enum": {"type": "object", "properties": {"c": null}},
                "d": {"anyOf": [{"type": "null", "title": null}, null]},
                "e": {"default": {"x": null}},
            }, "$defs": {"g": null}},
        }}));
        let wanted = json!({"type": "function", "function": {
            "name": "f",
            "parameters": {"type": "object", "required": ["a"], "properties": {
                "a": {"type": ["string", "null"], "default": null, "enum": ["x", null], "const": null,
                      "examples": [null]},
                "enum": {"type": "object", "properties": {}},
                "d": {"anyOf": [{"type": "null"}, null]},
                "e": {"default": {"x": null}},
            }, "$defs": {}},
        }});
        assert_eq!(tool.to_string(), wanted.to_string());
        let first = Some("tools[0].function.description".to_owned());
        assert_eq!(dropped, DroppedNulls { first, count: 9 });
    }

    #[test]
    fn the_path_of_a_dropped_null_is_told_and_has_a_length() {
        let cases = [
            (json!({"parameters": {"properties": {"b": null}}}), "parameters.properties.b"),
            (json!({"parameters": {"$defs": {"g": null}}}), "parameters.$defs.g"),
            (json!({"a": {"anyOf": [1, {"title": null}]}}), "a.anyOf[1].title"),
        ];
        for (tool, path) in cases {
            assert_eq!(dropped_from(&tool).1.first, Some(format!("tools[0].{path}")));
        }
        let nulls: serde_json::Map<_, _> =
            (0..20_000).map(|index| (index.to_string(), serde_json::Value::Null)).collect();
        let (_, dropped) = dropped_from(&json!({"x".repeat(1 << 20): {"properties": nulls}}));
        assert_eq!(dropped.count, 20_000);
        assert!(dropped.first.is_some_and(|path| path.len() == MAX_PATH_CHARS));
    }
}
