//! What is found out about a template by trying it on a short conversation.

use super::ChatTemplate;
use super::markers::STAND_IN;
use crate::dataset::{Message, Role};

/// A key of a text part, as Python and JSON print it.
const PRINTED_KEYS: [&str; 2] = ["'type'", "\"type\""];

impl ChatTemplate {
    /// Tries which contents the template takes.
    pub(super) fn find_reads(&mut self) {
        let text = [Message::text(Role::User, STAND_IN)];
        let mut part = text.clone();
        part[0].content_parts = vec![STAND_IN.to_owned()];
        let writes = |template: &Self, messages: &[Message]| {
            let written = template.render(messages, &[], true);
            // A list that is printed as it is was not read.
            let is_printed = |text: &str| PRINTED_KEYS.iter().any(|key| text.contains(key));
            written.is_ok_and(|text| text.contains(STAND_IN) && !is_printed(&text))
        };
        self.reads.parts = true;
        self.reads.parts = writes(self, &part);
        self.reads.texts = !self.reads.parts || writes(self, &text);
    }

    /// The token of `tokens` that ends the assistant's turn, if the template writes one.
    pub fn end_of_turn<'a>(&self, tokens: impl Iterator<Item = &'a str>) -> Option<&'a str> {
        let probe = [Message::text(Role::User, "a"), Message::text(Role::Assistant, STAND_IN)];
        let text = self.render(&probe, &[], false).ok()?;
        // Some templates (Llama 2's) put a space before it.
        let after = text.rsplit_once(STAND_IN)?.1.trim_start_matches(' ');
        let ends = tokens.filter(|token| !token.is_empty() && after.starts_with(token));
        ends.max_by_key(|token| token.len())
    }
}
