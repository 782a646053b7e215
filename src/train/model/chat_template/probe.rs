//! What is found out about a template by trying it on a short conversation.

use std::sync::Arc;

use super::ChatTemplate;
use super::jinja::{self, Limits};
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
        let mut probe =
            vec![Message::text(Role::User, "a"), Message::text(Role::Assistant, STAND_IN)];
        let render =
            |probe: &[Message]| jinja::within(Limits::PROMPT, || self.try_render(probe, false));
        let last = render(&probe)?;
        let last = last.rsplit_once(STAND_IN)?.1;
        let tokens: Vec<&str> = tokens.filter(|token| !token.is_empty()).collect();
        // What follows an answer both at the end of a conversation and within it belongs to the turn. What ends it
        // may stand behind other tokens, which close a part of the turn.
        probe.push(Message::text(Role::User, "b"));
        let within = render(&probe);
        let within = within.as_deref().and_then(|text| Some(text.rsplit_once(STAND_IN)?.1));
        let shared = within.map_or("", |within| shared_beginning(last, within));
        let ends = tokens
            .iter()
            .filter_map(|token| Some((shared.rfind(token)? + token.len(), token.len(), *token)));
        if let Some((_, _, token)) = ends.max() {
            return Some(token);
        }
        // Some templates put spaces before it.
        let after = last.trim_start();
        tokens.into_iter().filter(|token| after.starts_with(token)).max_by_key(|token| token.len())
    }
}

/// What two texts begin with alike.
fn shared_beginning<'a>(text: &'a str, other: &str) -> &'a str {
    let pairs = text.chars().zip(other.chars()).take_while(|(a, b)| a == b);
    &text[..pairs.map(|(a, _)| a.len_utf8()).sum()]
}
