//! Settings of a chat template: the variables that a job or a request gives it beside the conversation, and
//! the time that `strftime_now` writes.

use chrono::{NaiveDateTime, Utc};
use serde_json::Map;

use super::jinja::{self, Error, Function, Value};
use super::values;
use crate::util::exact_json::ExactJson;
use crate::util::strftime::strftime;

/// The function by which templates write today's date.
pub const STRFTIME_NOW: &str = "strftime_now";

/// The variable for texts that an answer may draw on.
const DOCUMENTS: &str = "documents";

/// What a template is rendered with beside the conversation.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct TemplateSettings {
    /// Variables by name, such as `enable_thinking` and `documents`.
    pub kwargs: Map<String, serde_json::Value>,
    /// The time, in UTC, that `strftime_now` writes; `None`: the time at which it is called.
    pub date: Option<NaiveDateTime>,
}

impl TemplateSettings {
    /// The variables of a template that come from here, with the defaults that transformers has.
    /// Documents are what users write, as messages are: what is spelled like one of `control` in them carries a mark.
    pub(super) fn variables(&self, control: &[String]) -> Vec<(&str, Value)> {
        let date = self.date;
        let strftime_now = Function::value(STRFTIME_NOW, move |arguments| {
            let [format] = arguments.bind(STRFTIME_NOW, ["format"], 1)?;
            let format = format.as_ref().and_then(Value::as_text);
            let format = format.ok_or_else(|| Error::new("the format of a time must be a text"))?;
            let time = date.unwrap_or_else(|| Utc::now().naive_utc());
            Ok(strftime(format, &time).into())
        });
        let mut variables = vec![(DOCUMENTS, Value::None)];
        for (name, value) in &self.kwargs {
            let value = match name.as_str() {
                DOCUMENTS => match ExactJson::read(&value.to_string()) {
                    Ok(documents) => values::escaped(&documents, control),
                    Err(_) => jinja::from_json(value),
                },
                _ => jinja::from_json(value),
            };
            variables.push((name.as_str(), value));
        }
        variables.push((STRFTIME_NOW, strftime_now));
        variables
    }
}

#[cfg(test)]
mod tests {
    use chrono::NaiveDate;
    use serde_json::json;

    use crate::train::model::chat_template::{ChatTemplate, TemplateSettings};

    fn template(source: &str) -> ChatTemplate {
        ChatTemplate::new(source, &[], "<s>", "</s>").expect("it compiles")
    }

    fn settings(kwargs: serde_json::Value) -> TemplateSettings {
        let date = NaiveDate::from_ymd_opt(2024, 7, 6).and_then(|day| day.and_hms_opt(0, 0, 0));
        TemplateSettings { kwargs: kwargs.as_object().cloned().expect("an object"), date }
    }

    #[test]
    fn variables_and_the_date_come_from_the_settings() {
        let source = "{{ a is defined }} {{ a }} {{ documents is none }} {{ strftime_now('%d %b') }} \
                      {{ strftime_now(format='%Y') }} {{ strftime_now is defined }}";
        let template = template(source);
        let render = |template: &ChatTemplate| template.render_prompt(&[], &[]).expect("renders");
        let set = template.with_settings(settings(json!({"a": [1, {"b": null}]})));
        assert_eq!(render(&set), "True [1, {'b': None}] True 06 Jul 2024 True");
        let set = template.with_settings(settings(json!({"documents": [], "a": null})));
        assert_eq!(render(&set), "True None False 06 Jul 2024 True");
        assert!(render(&template).starts_with("False  True "));
    }

    #[test]
    fn what_a_template_reads_is_known() {
        for (source, name, reads) in [
            ("{% if a %}{% endif %}", "a", true),
            ("{% if a is defined and not a %}x{% endif %}", "a", true),
            ("{% if a is not defined %}{% set a = 1 %}{% endif %}{{ a }}", "a", true),
            ("{% set a = a | default(true) %}{{ a }}", "a", true),
            ("{% for m in messages %}{{ m.x if a else '' }}{% endfor %}", "a", true),
            ("{% macro f(b) %}{{ a }}{% endmacro %}{{ f(1) }}", "a", true),
            ("{{ messages[0].a }}", "a", false),
            ("{% for a in messages %}{{ a }}{% endfor %}", "a", false),
            ("{{ strftime_now('%d') }}", "strftime_now", true),
            ("{% if strftime_now is defined %}{% endif %}", "strftime_now", true),
            ("strftime_now", "strftime_now", false),
        ] {
            assert_eq!(template(source).reads(name), reads, "{source}");
        }
    }
}
