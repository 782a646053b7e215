//! Texts with `{{ item.x }}` and `{{ sample.output_text }}` in them.

use std::fmt::Write;

use crate::util::excerpt::excerpt;
use serde_json::Value;

/// Longest rendered text in bytes: the cost of some similarity metrics grows with the product of both
/// lengths.
pub(super) const MAX_TEXT_BYTES: usize = 128 * 1024;

/// A text with variables.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template(Vec<TemplatePart>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum TemplatePart {
    Text(String),
    Variable(Variable),
}

/// A path such as `item.answers[0].text`.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Variable {
    /// Its text, for messages.
    written: String,
    namespace: Namespace,
    steps: Vec<PathStep>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Namespace {
    Item,
    Sample,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum PathStep {
    Key(String),
    Index(usize),
}

/// The values of variables.
pub(super) struct TemplateValues<'a> {
    /// `item`: the row of the dataset.
    pub(super) item: &'a Value,
    /// `sample`: the answer, as text and as JSON.
    pub(super) sample: &'a Value,
}

/// Why a template cannot be rendered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum RenderError {
    /// A variable has no value.
    Missing(String),
    /// The answer is not JSON, and the template refers to a part of it.
    SampleIsNotJson(String),
    /// The text would be longer than [`MAX_TEXT_BYTES`].
    TooLong,
}

impl Template {
    /// Parses a template; the error says what is wrong with it.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let mut parts = Vec::new();
        let mut rest = text;
        while let Some((before, after)) = rest.split_once("{{") {
            if !before.is_empty() {
                parts.push(TemplatePart::Text(before.to_owned()));
            }
            let Some((inside, after)) = after.split_once("}}") else {
                return Err(format!("a {{{{ is not closed: {:?}", excerpt(after)));
            };
            parts.push(TemplatePart::Variable(Variable::parse(inside.trim())?));
            rest = after;
        }
        if !rest.is_empty() {
            parts.push(TemplatePart::Text(rest.to_owned()));
        }
        Ok(Self(parts))
    }

    /// Renders the template with these values.
    pub(super) fn render(&self, values: &TemplateValues<'_>) -> Result<String, RenderError> {
        let mut text = String::new();
        for part in &self.0 {
            match part {
                TemplatePart::Text(plain) => text.push_str(plain),
                TemplatePart::Variable(variable) => match variable.find(values)? {
                    Value::String(plain) => text.push_str(plain),
                    // Writing into a String cannot fail.
                    other => drop(write!(text, "{other}")),
                },
            }
            if text.len() > MAX_TEXT_BYTES {
                return Err(RenderError::TooLong);
            }
        }
        Ok(text)
    }
}

impl Variable {
    fn parse(written: &str) -> Result<Self, String> {
        let wrong = |why: &str| {
            format!(
                "{{{{ {} }}}} is no variable: {why}; write item.KEY, sample.output_text or \
                 sample.output_json.KEY",
                excerpt(written)
            )
        };
        let (namespace, mut rest) = match written.split_at(written.find(['.', '[']).unwrap_or(0)) {
            ("item", rest) => (Namespace::Item, rest),
            ("sample", rest) => (Namespace::Sample, rest),
            _ => return Err(wrong("it begins with neither item nor sample")),
        };
        let mut steps = Vec::new();
        while !rest.is_empty() {
            if let Some(after) = rest.strip_prefix('.') {
                let (key, after) = after.split_at(after.find(['.', '[']).unwrap_or(after.len()));
                if key.is_empty() || key.contains(char::is_whitespace) {
                    return Err(wrong("a key is empty or holds a space"));
                }
                steps.push(PathStep::Key(key.to_owned()));
                rest = after;
            } else {
                let inside = rest.strip_prefix('[').and_then(|after| after.split_once(']'));
                let Some((inside, after)) = inside else {
                    return Err(wrong("a [ is not closed"));
                };
                steps.push(match inside.parse() {
                    Ok(index) => PathStep::Index(index),
                    Err(_) => PathStep::Key(inside.trim_matches(['"', '\'']).to_owned()),
                });
                rest = after;
            }
        }
        let known = ["output_text", "output_json"];
        if namespace == Namespace::Sample
            && !matches!(steps.first(), Some(PathStep::Key(key)) if known.contains(&key.as_str()))
        {
            return Err(wrong("the sample has output_text and output_json"));
        }
        Ok(Self { written: written.to_owned(), namespace, steps })
    }

    fn find<'a>(&self, values: &TemplateValues<'a>) -> Result<&'a Value, RenderError> {
        let (mut value, is_sample) = match self.namespace {
            Namespace::Item => (values.item, false),
            Namespace::Sample => (values.sample, true),
        };
        for step in &self.steps {
            let next = match step {
                PathStep::Key(key) => value.get(key),
                PathStep::Index(index) => value.get(index),
            };
            let Some(next) = next else {
                let is_output_json = matches!(step, PathStep::Key(key) if key == "output_json");
                return Err(if is_sample && is_output_json {
                    RenderError::SampleIsNotJson(self.written.clone())
                } else {
                    RenderError::Missing(self.written.clone())
                });
            };
            value = next;
        }
        Ok(value)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn render(text: &str) -> Result<String, RenderError> {
        let item = json!({"x": "X", "n": 1.5, "list": [{"a b": true}, null], "output_json": 1});
        let sample = json!({"output_text": "said", "output_json": {"k": ["v"]}});
        let template = Template::parse(text).expect("a template");
        template.render(&TemplateValues { item: &item, sample: &sample })
    }

    #[test]
    fn variables_become_their_values() {
        for (text, wanted) in [
            ("plain", "plain"),
            ("", ""),
            ("{{item.x}}", "X"),
            ("a {{ item.x }}{{item.n}} b", "a X1.5 b"),
            ("{{ sample.output_text }}", "said"),
            ("{{sample.output_json.k[0]}}", "v"),
            ("{{sample.output_json}}", r#"{"k":["v"]}"#),
            ("{{item.list[0][\"a b\"]}} {{item.list[1]}}", "true null"),
            ("{ {{item['x']}} }} {", "{ X }} {"),
        ] {
            assert_eq!(render(text).as_deref(), Ok(wanted), "{text}");
        }
    }

    #[test]
    fn what_has_no_value_is_said() {
        let missing = |written: &str| Err(RenderError::Missing(written.to_owned()));
        assert_eq!(render("{{item.y}}"), missing("item.y"));
        assert_eq!(render("{{item.x.y}}"), missing("item.x.y"));
        assert_eq!(render("{{item.list[2]}}"), missing("item.list[2]"));
        assert_eq!(render("{{sample.output_json.z}}"), missing("sample.output_json.z"));
        let template = Template::parse("{{sample.output_json.k}}").expect("a template");
        let (item, sample) = (json!({}), json!({"output_text": "no json"}));
        let rendered = template.render(&TemplateValues { item: &item, sample: &sample });
        assert!(matches!(rendered, Err(RenderError::SampleIsNotJson(_))));
        let long = json!({"x": "x".repeat(MAX_TEXT_BYTES)});
        let template = Template::parse(&"{{item.x}}".repeat(1000)).expect("a template");
        let rendered = template.render(&TemplateValues { item: &long, sample: &sample });
        assert_eq!(rendered, Err(RenderError::TooLong));
    }

    #[test]
    fn what_is_no_variable_is_refused() {
        for text in [
            "{{",
            "{{item.x",
            "{{}}",
            "{{ }}",
            "{{item}}x{{",
            "{{x}}",
            "{{items.x}}",
            "{{item..x}}",
            "{{item.x y}}",
            "{{item[}}",
            "{{sample}}",
            "{{sample.output}}",
            "{{sample[0]}}",
        ] {
            assert!(Template::parse(text).is_err(), "{text}");
        }
    }
}
