//! What a model's tokenizer says to templates.

use serde_json::Value;

/// Names under which templates know special tokens: those that transformers gives to every template.
const NAMES: [&str; 7] =
    ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

/// Keys of `tokenizer_config.json` with tokens that have names of the model's own, such as `image_token`.
const OWN_NAMES: [&str; 2] = ["model_specific_special_tokens", "extra_special_tokens"];

/// What a model's tokenizer says to templates.
#[derive(Debug, Clone, Default)]
pub struct TemplateTokens {
    /// Texts of the control tokens.
    pub control: Vec<String>,
    /// Special tokens by the names under which templates know them. What a model does not have is undefined, as in
    /// transformers.
    pub named: Vec<(String, String)>,
}

impl TemplateTokens {
    /// With the first and the last token of a text; an empty one is none.
    pub fn new(control: &[String], beginning: &str, end: &str) -> Self {
        let named = [("bos_token", beginning), ("eos_token", end)];
        let named = named.into_iter().filter(|(_, token)| !token.is_empty());
        let named = named.map(|(name, token)| (name.to_owned(), token.to_owned())).collect();
        Self { control: control.to_vec(), named }
    }

    /// Those that a `tokenizer_config.json` names.
    pub fn of_config(control: Vec<String>, config: &Value) -> Self {
        let mut named = Vec::new();
        for name in NAMES {
            named.extend(token_text(&config[name]).map(|text| (name.to_owned(), text.to_owned())));
        }
        for (name, token) in OWN_NAMES.iter().filter_map(|key| config[key].as_object()).flatten() {
            named.extend(token_text(token).map(|text| (name.clone(), text.to_owned())));
        }
        Self { control, named }
    }

    /// `eos_token`.
    pub(super) fn end(&self) -> Option<&str> {
        self.named.iter().find(|(name, _)| name == "eos_token").map(|(_, text)| text.as_str())
    }
}

/// The text of a token as configurations write it: bare, or in an object with its properties.
pub fn token_text(token: &Value) -> Option<&str> {
    token.as_str().or_else(|| token["content"].as_str())
}
