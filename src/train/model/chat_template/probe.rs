//! What is found out about a template by trying it on a short conversation.

use std::sync::Arc;

use super::ChatTemplate;
use super::markers::STAND_IN;
use crate::dataset::{Message, Role};
use crate::util::exact_json::ExactJson;

/// A tool for trying what a template makes of one.
pub const PROBE_TOOL: &str = r#"{"type": "function", "function": {"name": "probe", "description": "Probes.",
    "parameters": {"type": "object", "properties": {"key": {"type": "string", "description": "A key."}}}}}"#;

/// A key of a text part, as Python and JSON print it.
const PRINTED_KEYS: [&str; 2] = ["'type'", "\"type\""];

impl ChatTemplate {
    /// Tries which contents each template takes.
    pub(super) fn find_reads(&mut self) {
        for name in self.names().into_iter().map(str::to_owned).collect::<Vec<_>>() {
            let takes_parts = self.writes_content(&name, true);
            let takes_texts = !takes_parts || self.writes_content(&name, false);
            self.set_takes(&name, takes_texts, takes_parts);
        }
    }

    /// Whether a template writes the content of a message, as a list of parts or as a text.
    fn writes_content(&mut self, name: &str, as_parts: bool) -> bool {
        let mut message = Message::text(Role::User, STAND_IN);
        if as_parts {
            message.content_parts = vec![STAND_IN.to_owned()];
        }
        self.set_takes(name, true, as_parts);
        let written =
            self.named(name).ok().and_then(|template| template.try_render(&[message], true));
        // A list that is printed as it is was not read.
        let is_printed = |text: &str| PRINTED_KEYS.iter().any(|key| text.contains(key));
        written.is_some_and(|text| text.contains(STAND_IN) && !is_printed(&text))
    }

    fn set_takes(&mut self, name: &str, texts: bool, parts: bool) {
        if let Some(named) = Arc::get_mut(&mut self.named).and_then(|all| all.get_mut(name)) {
            named.takes.texts = texts;
            named.takes.parts = parts;
        }
    }

    /// What the template writes of a conversation; with a tool where it takes none without.
    fn try_render(&self, messages: &[Message], add_generation_prompt: bool) -> Option<String> {
        let without = self.render(messages, &[], add_generation_prompt);
        without.ok().or_else(|| {
            let tool = ExactJson::read(PROBE_TOOL).ok()?;
            self.render(messages, &[tool], add_generation_prompt).ok()
        })
    }

    /// The token of `tokens` that ends the assistant's turn, if the template writes one.
    pub fn end_of_turn<'a>(&self, tokens: impl Iterator<Item = &'a str>) -> Option<&'a str> {
        let probe = [Message::text(Role::User, "a"), Message::text(Role::Assistant, STAND_IN)];
        let text = self.try_render(&probe, false)?;
        // Some templates (Llama 2's) put a space before it.
        let after = text.rsplit_once(STAND_IN)?.1.trim_start_matches(' ');
        let ends = tokens.filter(|token| !token.is_empty() && after.starts_with(token));
        ends.max_by_key(|token| token.len())
    }
}
