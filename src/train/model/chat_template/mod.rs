//! Chat templates: a conversation to text, for serving and for training, whose texts are what serving would see.

pub mod error;
mod jinja;
mod markers;
mod omissions;
mod probe;
mod reads;
mod reasoning;
mod render;
mod settings;
mod tokens;
mod training_views;
mod values;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

pub use self::error::TemplateError;
use self::jinja::{Limits, Template};
pub use self::probe::PROBE_TOOL;
use self::reads::TemplateReads;
pub use self::reasoning::ReasoningTags;
pub use self::settings::{STRFTIME_NOW, TemplateSettings};
pub use self::tokens::{TemplateTokens, token_text};
pub use self::training_views::TrainingView;
use crate::dataset::{Message, Role};
use crate::util::excerpt::excerpt;

/// The name of the template of conversations, where a model has several.
pub const DEFAULT: &str = "default";

/// The name of the template of conversations with tools, where a model has one of its own for these.
pub const TOOL_USE: &str = "tool_use";

/// A model's chat template (Jinja), or several by name; cheap to clone.
#[derive(Clone)]
pub struct ChatTemplate {
    named: Arc<BTreeMap<String, NamedTemplate>>,
    /// The one that renders everything, whatever the tools.
    chosen: Option<String>,
    /// Texts that only the template may write as tokens, longest first: control tokens and `stops`.
    control: Arc<[String]>,
    /// Texts of the tokens at which generation stops; one of them ends a turn.
    stops: Arc<[String]>,
    /// Special tokens by the names under which the template knows them.
    named_tokens: Arc<[(String, String)]>,
    /// Why every conversation costs more than it may, if a short one does.
    limit: Option<String>,
    settings: TemplateSettings,
}

/// One of a model's templates.
struct NamedTemplate {
    source: String,
    /// The template, or why it cannot be used.
    compiled: Result<Template, String>,
    /// The variables and functions that it reads.
    reads: BTreeSet<String>,
    /// What it takes and reads of a message.
    takes: TemplateReads,
}

impl ChatTemplate {
    /// Compiles a template. `control` are the texts of the model's control tokens; `beginning` and
    /// `end` what the template knows as `bos_token` and `eos_token`.
    pub fn new(
        source: &str,
        control: &[String],
        beginning: &str,
        end: &str,
    ) -> Result<Self, TemplateError> {
        Self::single(source, &TemplateTokens::new(control, beginning, end))
    }

    /// Looks whether a text is a template, without rendering anything with it.
    ///
    /// # Errors
    /// The text is no valid Jinja.
    pub fn check_syntax(source: &str) -> Result<(), TemplateError> {
        NamedTemplate::of(source).compiled.map(drop).map_err(TemplateError::Invalid)
    }

    /// Compiles a template for a tokenizer.
    ///
    /// # Errors
    /// The template is no valid Jinja.
    pub fn single(source: &str, tokens: &TemplateTokens) -> Result<Self, TemplateError> {
        let template = Self::with_names([(DEFAULT, source)], tokens);
        if let Some(Err(reason)) = template.named.get(DEFAULT).map(|named| &named.compiled) {
            return Err(TemplateError::Invalid(reason.clone()));
        }
        Ok(template)
    }

    /// Compiles several templates, of which each conversation takes the one that transformers would take.
    /// One that is no valid Jinja is refused when a conversation takes it.
    pub fn with_names<'a>(
        sources: impl IntoIterator<Item = (&'a str, &'a str)>,
        tokens: &TemplateTokens,
    ) -> Self {
        let named: BTreeMap<String, NamedTemplate> = sources
            .into_iter()
            .map(|(name, source)| (name.to_owned(), NamedTemplate::of(source)))
            .collect();
        let mut template = Self {
            named: Arc::new(named),
            chosen: None,
            control: longest_first(tokens.control.clone()).into(),
            stops: Arc::new([]),
            named_tokens: tokens.named.clone().into(),
            limit: None,
            settings: TemplateSettings::default(),
        };
        // What is found out by trying costs no more than a prompt.
        jinja::within(Limits::PROMPT, || template.find_out(tokens));
        template
    }

    /// Finds out by trying what the templates read, and with which token they end a turn.
    fn find_out(&mut self, tokens: &TemplateTokens) {
        let short = [Message::text(Role::User, "a")];
        if let Err(TemplateError::Limit(reason)) = self.render(&short, &[], true) {
            self.limit = Some(reason);
            return;
        }
        self.find_reads();
        let control = self.control.iter().map(String::as_str);
        let end_of_turn = self.end_of_turn(control).map(str::to_owned);
        let end = tokens.end().filter(|end| tokens.control.iter().any(|token| token == end));
        self.stops = end_of_turn.into_iter().chain(end.map(str::to_owned)).collect();
    }

    /// The same template with these settings.
    pub fn with_settings(&self, settings: TemplateSettings) -> Self {
        Self { settings, ..self.clone() }
    }

    /// The template of this name for every conversation, whatever its tools.
    ///
    /// # Errors
    /// The names that there are, where this is none of them.
    pub fn named(&self, name: &str) -> Result<Self, TemplateError> {
        if !self.named.contains_key(name) {
            let name = excerpt(name).into_owned();
            let names = excerpt(&self.names().join(", ")).into_owned();
            return Err(TemplateError::UnknownName { name, names });
        }
        Ok(Self { chosen: Some(name.to_owned()), ..self.clone() })
    }

    /// The names of the templates, in order; a model with one template has [`DEFAULT`] alone.
    pub fn names(&self) -> Vec<&str> {
        self.named.keys().map(String::as_str).collect()
    }

    /// Whether a template that conversations may take reads a variable or calls a function of this name.
    pub fn reads(&self, name: &str) -> bool {
        self.taken().any(|(_, named)| named.reads.contains(name))
    }

    /// Lets turns end with any of `stops`, the tokens at which generation stops.
    pub fn set_stops(&mut self, mut stops: Vec<String>) {
        // A token without a text would be found everywhere.
        stops.retain(|stop| !stop.is_empty());
        let mut control = self.control.to_vec();
        control.extend(stops.iter().filter(|stop| !self.control.contains(stop)).cloned());
        self.control = longest_first(control).into();
        self.stops = stops.into();
    }

    /// How answers to `prompt`, which the template has written, hold reasoning.
    pub fn reasoning_tags(&self, prompt: &str) -> Option<ReasoningTags> {
        self.taken().find_map(|(_, named)| ReasoningTags::of(&named.source, prompt))
    }

    /// The templates that conversations may take.
    fn taken(&self) -> impl Iterator<Item = (&str, &NamedTemplate)> {
        let named = self.named.iter().map(|(name, named)| (name.as_str(), named));
        named.filter(|(name, _)| match &self.chosen {
            Some(chosen) => name == chosen,
            None => *name == DEFAULT || *name == TOOL_USE,
        })
    }

    /// The template that a conversation with or without tools takes, as `get_chat_template` of transformers
    /// chooses it, and what it takes of messages.
    fn choose(&self, has_tools: bool) -> Result<(&Template, TemplateReads), TemplateError> {
        let name = match &self.chosen {
            Some(chosen) => chosen,
            None if has_tools && self.named.contains_key(TOOL_USE) => TOOL_USE,
            None => DEFAULT,
        };
        let Some(named) = self.named.get(name) else {
            return Err(TemplateError::NoDefault { names: self.names().join(", ") });
        };
        match &named.compiled {
            Ok(template) => Ok((template, named.takes)),
            Err(reason) => Err(TemplateError::Invalid(reason.clone())),
        }
    }
}

impl NamedTemplate {
    /// Compiles a template.
    fn of(source: &str) -> Self {
        let compiled = Template::parse(source).map_err(|error| error.to_string());
        Self {
            source: source.to_owned(),
            reads: compiled.as_ref().map(Template::free_names).unwrap_or_default(),
            compiled,
            takes: TemplateReads::texts_alone(source),
        }
    }
}

/// Texts of tokens, so that the first one that fits is the longest.
fn longest_first(mut tokens: Vec<String>) -> Vec<String> {
    tokens.sort_by(|a, b| b.len().cmp(&a.len()).then_with(|| a.cmp(b)));
    tokens
}
