//! Chat templates: a conversation to text, for serving and for training, whose texts are what serving would see.

pub mod error;
mod json;
mod markers;
mod omissions;
mod probe;
mod reads;
mod reasoning;
mod render;
mod training_views;
mod values;

use minijinja::syntax::SyntaxConfig;
use minijinja::{Environment, Error, ErrorKind, Value};

pub use self::error::TemplateError;
use self::error::describe;
use self::markers::{GENERATION_FILTER, mark_generation};
use self::reads::TemplateReads;
pub use self::reasoning::ReasoningTags;
pub use self::training_views::TrainingView;

/// Steps that a template may take: far more than a long conversation needs, and an endless loop ends.
const FUEL: u64 = 50_000_000;

/// A model's chat template (Jinja).
pub struct ChatTemplate {
    environment: Environment<'static>,
    /// Texts that only the template may write as tokens, longest first: control tokens and `stops`.
    control: Vec<String>,
    /// Texts of the tokens at which generation stops; one of them ends a turn.
    stops: Vec<String>,
    beginning: String,
    end: String,
    reads: TemplateReads,
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
        let mut environment = Environment::new();
        // As transformers sets Jinja up.
        let syntax = SyntaxConfig::builder()
            .trim_blocks(true)
            .lstrip_blocks(true)
            .build()
            .map_err(|error| TemplateError::Invalid(describe(&error)))?;
        environment.set_syntax(syntax);
        environment.set_fuel(Some(FUEL));
        environment
            .set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function("raise_exception", |message: String| -> Result<Value, Error> {
            Err(Error::new(ErrorKind::InvalidOperation, message))
        });
        environment.add_filter("tojson", json::to_json);
        environment.add_filter(GENERATION_FILTER, |text: String| text);
        environment
            .add_template_owned("chat", mark_generation(source))
            .map_err(|error| TemplateError::Invalid(describe(&error)))?;
        let mut control = control.to_vec();
        control.sort_by(|a, b| b.len().cmp(&a.len()).then_with(|| a.cmp(b)));
        let mut template = Self {
            environment,
            control,
            stops: Vec::new(),
            beginning: beginning.to_owned(),
            end: end.to_owned(),
            reads: TemplateReads::texts_alone(source),
        };
        template.find_reads();
        let tokens = template.control.iter().map(String::as_str);
        let end_of_turn = template.end_of_turn(tokens).map(str::to_owned);
        let end = Some(end.to_owned()).filter(|end| template.control.contains(end));
        template.stops = end_of_turn.into_iter().chain(end).collect();
        Ok(template)
    }

    /// Lets turns end with any of `stops`, the tokens at which generation stops.
    pub fn set_stops(&mut self, stops: Vec<String>) {
        for stop in &stops {
            if !self.control.contains(stop) {
                self.control.push(stop.clone());
            }
        }
        self.control.sort_by(|a, b| b.len().cmp(&a.len()).then_with(|| a.cmp(b)));
        self.stops = stops;
    }

    /// How answers to `prompt`, which the template has written, hold reasoning.
    pub fn reasoning_tags(&self, prompt: &str) -> Option<ReasoningTags> {
        ReasoningTags::of(self.environment.get_template("chat").ok()?.source(), prompt)
    }
}
