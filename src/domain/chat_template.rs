//! What a job says of the chat template, and what a tuned model keeps of it for its answers.

use chrono::NaiveDate;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// Variables and functions of templates that hone itself provides, and parameters of transformers'
/// `apply_chat_template` that are no variables: `chat_template_kwargs` may not name them.
pub const RESERVED_KWARGS: &[&str] = &[
    "messages",
    "tools",
    "add_generation_prompt",
    "continue_final_message",
    "chat_template",
    "tokenize",
    "padding",
    "truncation",
    "max_length",
    "return_tensors",
    "return_dict",
    "return_assistant_tokens_mask",
    "tokenizer_kwargs",
    "conversation",
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
    "additional_special_tokens",
    "raise_exception",
    "strftime_now",
];

/// How a job's conversations are rendered, where its request says so.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ChatTemplateSettings {
    /// A template in Jinja, or the name of one of the base model's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub chat_template: Option<String>,
    /// Variables of the template, in training and for answers.
    #[serde(flatten)]
    pub defaults: TemplateDefaults,
    /// What becomes of texts that are spelled like control tokens.
    #[serde(skip_serializing_if = "ControlTokens::is_default")]
    pub control_tokens: ControlTokens,
}

/// What a job makes of texts of its data that are spelled like control tokens of the model, such as `<s>`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ControlTokens {
    /// A message holds their letters: the chat template alone begins and ends turns. A warning names the line.
    #[default]
    Text,
    /// They are problems of their lines.
    Refuse,
}

impl ControlTokens {
    /// The words for them, in requests.
    pub const WORDS: [(&str, Self); 2] = [("text", Self::Text), ("refuse", Self::Refuse)];

    /// The word of a choice that a request has made; `None` for the default.
    pub fn word(self) -> Option<&'static str> {
        let (word, _) = Self::WORDS.into_iter().find(|(_, choice)| *choice == self)?;
        (!self.is_default()).then_some(word)
    }

    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// What the answers of a tuned model are rendered with where a request says nothing else.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct TemplateDefaults {
    /// Variables of the template, by name.
    #[serde(rename = "chat_template_kwargs", skip_serializing_if = "Map::is_empty")]
    pub kwargs: Map<String, Value>,
    /// The day that `strftime_now` writes. In training that is the day on which the job was created where
    /// none is set, for answers the day of the request.
    #[serde(rename = "chat_template_date", skip_serializing_if = "Option::is_none")]
    pub date: Option<NaiveDate>,
}

impl ChatTemplateSettings {
    /// Whether the request says nothing of the template.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

impl TemplateDefaults {
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}
