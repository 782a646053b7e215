//! Values of hyperparameters: what a client sent, with its type and range.

use serde_json::{Map, Value};

use super::names::is_known;
use crate::domain::error_code::ErrorCode;
use crate::domain::job::{FineTuneMode, LoraLayers, Schedule};
use crate::train::run::plan::DEFAULT_PATIENCE;
use crate::util::excerpt::excerpt_of;
use crate::validate::Refusal;
use crate::validate::fields::given;

/// Most names of modules.
const MOST_MODULES: usize = 64;

/// Longest name of a module. Names are shown wherever the job is.
const MOST_MODULE_CHARS: usize = 200;

/// Most indexes of layers.
const MOST_LAYERS: usize = 1024;

/// The range of a number, both ends included. It has two ends, because a run computes in 32 bits, where
/// numbers of 64 bits may be infinite or zero.
pub(super) type Range = std::ops::RangeInclusive<f64>;

/// The values of a request's hyperparameters, each read with its type and range.
pub(super) struct HyperparameterFields<'a> {
    pub(super) path: &'a str,
    pub(super) object: &'a Map<String, Value>,
}

impl HyperparameterFields<'_> {
    pub(super) fn refuse(&self, name: &str, message: String) -> Refusal {
        let param = format!("{}.{name}", self.path);
        Refusal::with_code(ErrorCode::InvalidHyperparameter, param, message)
    }

    /// The value, if the client chose one.
    pub(super) fn chosen(&self, name: &str) -> Option<&Value> {
        // One that nobody lists is not there, so that none can be read past the list.
        given(self.object, name).filter(|value| *value != "auto" && is_known(name))
    }

    pub(super) fn whole(
        &self,
        name: &str,
        range: std::ops::RangeInclusive<u32>,
    ) -> Result<Option<u32>, Refusal> {
        let Some(value) = self.chosen(name) else {
            return Ok(None);
        };
        // 3.0 is how some clients write 3.
        let whole = value.as_u64().or_else(|| {
            let number = value.as_f64().filter(|number| number.fract() == 0.0 && *number >= 0.0);
            number.map(|number| number as u64)
        });
        let inside = whole.and_then(|whole| u32::try_from(whole).ok());
        match inside.filter(|whole| range.contains(whole)) {
            Some(whole) => Ok(Some(whole)),
            None => {
                let (least, most) = (range.start(), range.end());
                let value = excerpt_of(value);
                let message = format!(
                    "{name} is {value}; it must be \"auto\" or a whole number from {least} to {most}"
                );
                Err(self.refuse(name, message))
            }
        }
    }

    pub(super) fn number(&self, name: &str, range: Range) -> Result<Option<f64>, Refusal> {
        let Some(value) = self.chosen(name) else {
            return Ok(None);
        };
        match value.as_f64().filter(|number| range.contains(number)) {
            Some(number) => Ok(Some(number)),
            None => {
                let (least, most) = (range.start(), range.end());
                let value = excerpt_of(value);
                let message =
                    format!("{name} is {value}; it must be a number from {least} to {most}");
                Err(self.refuse(name, message))
            }
        }
    }

    pub(super) fn switch(&self, name: &str) -> Result<Option<bool>, Refusal> {
        let Some(value) = self.chosen(name) else {
            return Ok(None);
        };
        match value.as_bool() {
            Some(value) => Ok(Some(value)),
            None => {
                let value = excerpt_of(value);
                Err(self.refuse(name, format!("{name} is {value}; it can be true or false")))
            }
        }
    }

    /// Evaluations without improvement until early stopping, and Together's switch for it.
    pub(super) fn patience(&self) -> Result<Option<u32>, Refusal> {
        const NAME: &str = "early_stopping_enabled";
        let patience = self.whole("early_stopping_patience", 0..=1000)?;
        match (self.switch(NAME)?, patience) {
            (None, patience) => Ok(patience),
            (Some(false), None | Some(0)) => Ok(Some(0)),
            (Some(true), None) => Ok(Some(DEFAULT_PATIENCE)),
            (Some(true), Some(1..)) => Ok(patience),
            (Some(enabled), Some(patience)) => {
                let message = format!(
                    "{NAME} is {enabled} and early_stopping_patience is {patience}, where only 0 means \
                     never: send one of them"
                );
                Err(self.refuse(NAME, message))
            }
        }
    }

    /// The smallest improvement, in hone's spelling or Together's.
    pub(super) fn threshold(&self) -> Result<Option<f64>, Refusal> {
        const OTHER: &str = "early_stopping_min_delta";
        const RANGE: Range = 0.0..=1e6;
        let own = self.number("early_stopping_threshold", RANGE)?;
        let other = self.number(OTHER, RANGE)?;
        if let (Some(own), Some(other)) = (own, other)
            && own != other
        {
            let message = format!(
                "{OTHER} is {other} and early_stopping_threshold, which means the same, is {own}: send \
                 one of them"
            );
            return Err(self.refuse(OTHER, message));
        }
        Ok(own.or(other))
    }

    pub(super) fn tuning(&self) -> Result<Option<FineTuneMode>, Refusal> {
        const NAME: &str = "tuning";
        let Some(value) = self.chosen(NAME) else {
            return Ok(None);
        };
        let modes = [FineTuneMode::Lora, FineTuneMode::Full, FineTuneMode::LastLayers];
        match modes.into_iter().find(|mode| value == mode.as_str()) {
            Some(mode) => Ok(Some(mode)),
            None => {
                let value = excerpt_of(value);
                let message = format!("{NAME} is {value}; it can be lora, full or last_layers");
                Err(self.refuse(NAME, message))
            }
        }
    }

    /// Names of modules, such as `example`. The value `open` leaves it open.
    pub(super) fn names(
        &self,
        name: &str,
        open: Option<&str>,
        example: &str,
    ) -> Result<Option<Vec<String>>, Refusal> {
        let is_open = |value: &&Value| open.is_some_and(|open| *value == open);
        let Some(value) = self.chosen(name).filter(|value| !is_open(value)) else {
            return Ok(None);
        };
        let names: Option<Vec<String>> = value
            .as_array()
            .and_then(|list| list.iter().map(|name| name.as_str().map(str::to_owned)).collect());
        let is_short = |names: &Vec<String>| {
            (1..=MOST_MODULES).contains(&names.len())
                && names.iter().all(|name| name.chars().count() <= MOST_MODULE_CHARS)
        };
        match names.filter(is_short) {
            Some(names) => Ok(Some(names)),
            None => {
                let open = open.map_or(String::new(), |open| format!("{open:?} or "));
                let value = excerpt_of(value);
                let message = format!(
                    "{name} is {value}; it must be {open}a list of layer names such as {example}"
                );
                Err(self.refuse(name, message))
            }
        }
    }

    pub(super) fn layers(&self) -> Result<Option<LoraLayers>, Refusal> {
        const NAME: &str = "lora_layers";
        let Some(value) = self.chosen(NAME) else {
            return Ok(None);
        };
        let whole = |value: &Value| value.as_u64().and_then(|number| u32::try_from(number).ok());
        let layers = match value {
            Value::Array(list) if (1..=MOST_LAYERS).contains(&list.len()) => {
                let layers: Option<Vec<u32>> = list.iter().map(whole).collect();
                layers.map(LoraLayers::These)
            }
            value => whole(value).filter(|count| *count > 0).map(LoraLayers::Last),
        };
        match layers {
            Some(layers) => Ok(Some(layers)),
            None => {
                let value = excerpt_of(value);
                let message = format!(
                    "{NAME} is {value}; it must be how many of the last blocks are adapted, or a \
                     list of their indexes from 0"
                );
                Err(self.refuse(NAME, message))
            }
        }
    }

    pub(super) fn schedule(&self) -> Result<Option<Schedule>, Refusal> {
        let Some(value) = self.chosen("lr_scheduler_type") else {
            return Ok(None);
        };
        match value.as_str() {
            Some("linear") => Ok(Some(Schedule::Linear)),
            Some("cosine") => Ok(Some(Schedule::Cosine)),
            Some("constant") => Ok(Some(Schedule::Constant)),
            _ => {
                let value = excerpt_of(value);
                let message =
                    format!("lr_scheduler_type is {value}; it can be linear, cosine or constant");
                Err(self.refuse("lr_scheduler_type", message))
            }
        }
    }
}
