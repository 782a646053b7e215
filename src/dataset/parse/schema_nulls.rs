//! Nulls in the schemas of tools that mean nothing: tables with one column for every key (Arrow, Parquet, pandas)
//! write a null where a row has no such key. In a prompt they would be properties that nobody declared.

use crate::util::exact_json::ExactJson;

/// Keys of a schema whose value is data: a null in it is a value like others.
const DATA_KEYS: [&str; 5] = ["default", "const", "enum", "example", "examples"];

/// Keys of a schema whose value maps names to schemas. A name may be spelled like a key.
const MAP_KEYS: [&str; 5] =
    ["properties", "patternProperties", "dependentSchemas", "$defs", "definitions"];

/// Removes the nulls of a tool (or a function) to which JSON Schema gives no meaning; their paths, each after
/// `path`.
pub fn drop_schema_nulls(tool: &mut ExactJson, path: &str) -> Vec<String> {
    let mut dropped = Vec::new();
    of_schema(tool, path, &mut dropped);
    dropped
}

/// A tool, its function and its parameters are alike here: objects whose keys are known.
fn of_schema(schema: &mut ExactJson, path: &str, dropped: &mut Vec<String>) {
    match schema {
        ExactJson::Object(keys) => {
            keys.retain(|(key, value)| {
                let is_meaningless = value.is_null() && !DATA_KEYS.contains(&key.as_str());
                if is_meaningless {
                    dropped.push(format!("{path}.{key}"));
                }
                !is_meaningless
            });
            for (key, value) in keys {
                let path = format!("{path}.{key}");
                match key.as_str() {
                    key if DATA_KEYS.contains(&key) => {}
                    key if MAP_KEYS.contains(&key) => of_map(value, &path, dropped),
                    _ => of_schema(value, &path, dropped),
                }
            }
        }
        ExactJson::List(members) => {
            for (index, member) in members.iter_mut().enumerate() {
                of_schema(member, &format!("{path}[{index}]"), dropped);
            }
        }
        _ => {}
    }
}

/// A map of names to schemas.
fn of_map(map: &mut ExactJson, path: &str, dropped: &mut Vec<String>) {
    let ExactJson::Object(schemas) = map else { return };
    schemas.retain(|(name, schema)| {
        if schema.is_null() {
            dropped.push(format!("{path}.{name}"));
        }
        !schema.is_null()
    });
    for (name, schema) in schemas {
        of_schema(schema, &format!("{path}.{name}"), dropped);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn nulls_without_a_meaning_are_dropped_and_the_others_stay() {
        let tool = json!({"type": "function", "function": {
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
        }});
        let mut tool = ExactJson::read(&tool.to_string()).expect("it is JSON");
        let dropped = drop_schema_nulls(&mut tool, "tools[0]");
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
        let parameters = "tools[0].function.parameters";
        let mut wanted = vec!["tools[0].function.description".to_owned()];
        wanted.push("tools[0].function.strict".to_owned());
        for path in [
            "properties.b",
            "properties.default",
            "properties.a.items",
            "properties.a.description",
            "properties.enum.properties.c",
            "properties.d.anyOf[0].title",
            "$defs.g",
        ] {
            wanted.push(format!("{parameters}.{path}"));
        }
        assert_eq!(dropped, wanted);
        assert!(drop_schema_nulls(&mut tool, "tools[0]").is_empty());
    }
}
