//! What a job or a chat request says of the chat template: its text or name, its variables, its date.

use chrono::NaiveDate;
use serde_json::{Map, Value};

use super::Refusal;
use super::fields::BodyFields;
use crate::domain::chat_template::{
    ChatTemplateSettings, ControlTokens, RESERVED_KWARGS, TemplateDefaults,
};
use crate::train::model::chat_template::ChatTemplate;
use crate::train::model::template_sources::is_jinja;
use crate::util::excerpt::{excerpt, excerpt_of};

const KWARGS: &str = "chat_template_kwargs";
const TEMPLATE: &str = "chat_template";
const DATE: &str = "chat_template_date";
const CONTROL_TOKENS: &str = "control_tokens";

/// Longest JSON text of `chat_template_kwargs`.
const MAX_KWARGS_BYTES: usize = 64 * 1024;

/// Longest text of a template.
const MAX_TEMPLATE_BYTES: usize = 256 * 1024;

/// The word for the day of the request.
const TODAY: &str = "today";

/// What a job says of the chat template. Whether the base model has a template of a given name is found
/// out later.
pub(super) fn of_job(fields: &BodyFields<'_>) -> Result<ChatTemplateSettings, Refusal> {
    let chat_template = fields.text(TEMPLATE)?;
    if let Some(text) = &chat_template {
        check_template(text)?;
    }
    let date = match fields.text(DATE)? {
        Some(text) => Some(day(&text).ok_or_else(|| wrong_date(&text, "a day"))?),
        None => None,
    };
    let kwargs = kwargs(fields)?;
    let control_tokens = control_tokens(fields)?;
    let defaults = TemplateDefaults { kwargs, date };
    Ok(ChatTemplateSettings { chat_template, defaults, control_tokens })
}

fn control_tokens(fields: &BodyFields<'_>) -> Result<ControlTokens, Refusal> {
    let Some(text) = fields.text(CONTROL_TOKENS)? else {
        return Ok(ControlTokens::default());
    };
    match ControlTokens::WORDS.into_iter().find(|(word, _)| *word == text) {
        Some((_, choice)) => Ok(choice),
        None => {
            let text = excerpt(&text);
            let message = format!(
                "{CONTROL_TOKENS} is {text:?}; it can be \"text\" (the letters are trained, and a warning names \
                 the line) or \"refuse\""
            );
            Err(Refusal::new(CONTROL_TOKENS, message))
        }
    }
}

/// The variables that a job or a chat request gives to the template.
pub fn kwargs(fields: &BodyFields<'_>) -> Result<Map<String, Value>, Refusal> {
    let Some(value) = fields.get(KWARGS) else {
        return Ok(Map::new());
    };
    let Some(object) = value.as_object() else {
        let value = excerpt_of(value);
        let message =
            format!("{KWARGS} is {value}; it must be an object of variables of the template");
        return Err(Refusal::new(KWARGS, message));
    };
    if let Some(name) = object.keys().find(|name| RESERVED_KWARGS.contains(&name.as_str())) {
        let message = format!(
            "{name:?} is no setting of a chat template: hone gives it its value itself. Leave it out"
        );
        return Err(Refusal::new(format!("{KWARGS}.{name}"), message));
    }
    let bytes = value.to_string().len();
    if bytes > MAX_KWARGS_BYTES {
        let message = format!("{KWARGS} has {bytes} bytes; {MAX_KWARGS_BYTES} at most");
        return Err(Refusal::new(KWARGS, message));
    }
    Ok(object.clone())
}

/// The day that a chat request sets: `Some(None)` is that of the request, whatever the model's is.
pub fn date_of_request(fields: &BodyFields<'_>) -> Result<Option<Option<NaiveDate>>, Refusal> {
    match fields.text(DATE)? {
        None => Ok(None),
        Some(text) if text == TODAY => Ok(Some(None)),
        Some(text) => match day(&text) {
            Some(day) => Ok(Some(Some(day))),
            None => Err(wrong_date(&text, "\"today\" or a day")),
        },
    }
}

fn check_template(text: &str) -> Result<(), Refusal> {
    if text.is_empty() || text.len() > MAX_TEMPLATE_BYTES {
        let message =
            format!("{TEMPLATE} has {} bytes; it must have 1 to {MAX_TEMPLATE_BYTES}", text.len());
        return Err(Refusal::new(TEMPLATE, message));
    }
    if is_jinja(text) {
        ChatTemplate::check_syntax(text)
            .map_err(|error| Refusal::new(TEMPLATE, error.to_string()))?;
    }
    Ok(())
}

/// A day in the form `YYYY-MM-DD`.
fn day(text: &str) -> Option<NaiveDate> {
    let day = NaiveDate::parse_from_str(text, "%Y-%m-%d").ok()?;
    // The crate takes other spellings too.
    (day.to_string() == text).then_some(day)
}

fn wrong_date(text: &str, wanted: &str) -> Refusal {
    let text = excerpt(text);
    let message = format!("{DATE} is {text:?}; it must be {wanted} such as \"2024-07-26\"");
    Refusal::new(DATE, message)
}
