//! Hyperparameters of a request: [`read`] is the table of them with their ranges.

mod names;
mod values;

use serde_json::{Map, Value};

pub use self::names::is_known;
use self::names::{KNOWN, KNOWN_WITH_DPO, KNOWN_WITH_LORA};
use self::values::HyperparameterFields;
use super::Refusal;
use crate::domain::job::{Auto, FineTuneMode, Hyperparameters, Method, Schedule};
use crate::util::excerpt::excerpt;

/// PEFT's name of all linear layers of the blocks.
const ALL_LINEAR: &str = "all-linear";

/// Reads the object at `path` of the request (`hyperparameters`, or
/// `method.<method>.hyperparameters`). Null and `"auto"` leave a value open: the plan resolves it.
///
/// # Errors
/// An unknown name, a wrong type or a value out of range; the name is in `param`.
pub fn read(
    path: &str,
    object: &Map<String, Value>,
    method: Method,
) -> Result<Hyperparameters, Refusal> {
    let fields = HyperparameterFields { path, object };
    let mut known = [KNOWN, KNOWN_WITH_LORA].concat();
    if method == Method::Dpo {
        known.extend(KNOWN_WITH_DPO);
    }
    if let Some(name) = object.keys().find(|name| !known.contains(&name.as_str())) {
        let message = match KNOWN_WITH_DPO.contains(&name.as_str()) {
            true => {
                format!("{name} belongs to the method \"dpo\"; this job's is {:?}", method.as_str())
            }
            false => {
                format!(
                    "unknown hyperparameter {:?}; hone knows {}",
                    excerpt(name),
                    known.join(", ")
                )
            }
        };
        return Err(fields.refuse(name, message));
    }
    let read = Hyperparameters {
        method,
        beta: auto(fields.number("beta", 1e-6..=2.0)?),
        n_epochs: auto(fields.whole("n_epochs", 1..=50)?),
        batch_size: auto(fields.whole("batch_size", 1..=256)?),
        learning_rate_multiplier: auto(fields.number("learning_rate_multiplier", 1e-9..=1e4)?),
        learning_rate: fields.number("learning_rate", 1e-12..=1.0)?,
        tuning: fields.tuning()?,
        tuning_layers: fields.whole("tuning_layers", 1..=1024)?,
        modules_to_save: fields.names("modules_to_save", None, "[\"lm_head\"]")?,
        lora_r: fields.whole("lora_r", 1..=256)?,
        lora_alpha: fields.number("lora_alpha", 1e-6..=65_536.0)?,
        lora_dropout: fields.number("lora_dropout", 0.0..=0.9)?,
        lora_target_modules: fields.names(
            "lora_target_modules",
            Some(ALL_LINEAR),
            "[\"q_proj\", \"v_proj\"]",
        )?,
        lora_layers: fields.layers()?,
        use_rslora: fields.switch("use_rslora")?,
        warmup_ratio: fields.number("warmup_ratio", 0.0..=1.0)?,
        weight_decay: fields.number("weight_decay", 0.0..=100.0)?,
        max_grad_norm: fields.number("max_grad_norm", 1e-9..=1e9)?,
        lr_scheduler_type: fields.schedule()?,
        context_length: fields.whole("context_length", 8..=1_048_576)?,
        min_lr_ratio: fields.number("min_lr_ratio", 0.0..=1.0)?,
        packing: fields.switch("packing")?,
        eval_steps: auto(fields.whole("eval_steps", 1..=1_000_000)?),
        n_evals: fields.whole("n_evals", 0..=1000)?,
        early_stopping_patience: fields.patience()?,
        early_stopping_threshold: fields.threshold()?,
        save_steps: fields.whole("save_steps", 1..=1_000_000)?,
        n_checkpoints: fields.whole("n_checkpoints", 1..=1000)?,
        save_total_limit: fields.whole("save_total_limit", 1..=1000)?,
    };
    refuse_combinations(&read, &fields)?;
    Ok(read)
}

/// Refuses values that are valid alone and not together.
fn refuse_combinations(
    read: &Hyperparameters,
    fields: &HyperparameterFields<'_>,
) -> Result<(), Refusal> {
    let has_multiplier = matches!(read.learning_rate_multiplier, Auto::Value(_));
    if has_multiplier && read.learning_rate.is_some() {
        let message = "learning_rate and learning_rate_multiplier exclude each other: send one";
        return Err(fields.refuse("learning_rate", message.to_owned()));
    }
    for [one, other] in [["n_evals", "eval_steps"], ["n_checkpoints", "save_steps"]] {
        if fields.chosen(one).is_some() && fields.chosen(other).is_some() {
            return Err(
                fields.refuse(one, format!("{one} and {other} exclude each other: send one"))
            );
        }
    }
    if read.min_lr_ratio.is_some() && read.lr_scheduler_type == Some(Schedule::Constant) {
        let message = "min_lr_ratio is the end of a learning rate's decay, and with \
                       lr_scheduler_type \"constant\" there is no decay";
        return Err(fields.refuse("min_lr_ratio", message.to_owned()));
    }
    let tuning = read.tuning.unwrap_or_default();
    let stray = KNOWN_WITH_LORA.iter().find(|name| fields.chosen(name).is_some());
    if let (true, Some(name)) = (tuning != FineTuneMode::Lora, stray) {
        let message =
            format!("{name} belongs to tuning \"lora\"; this job's is {:?}", tuning.as_str());
        return Err(fields.refuse(name, message));
    }
    if tuning != FineTuneMode::LastLayers && read.tuning_layers.is_some() {
        let message = format!(
            "tuning_layers belongs to tuning \"last_layers\"; this job's is {:?}",
            tuning.as_str()
        );
        return Err(fields.refuse("tuning_layers", message));
    }
    Ok(())
}

fn auto<T>(value: Option<T>) -> Auto<T> {
    value.map_or(Auto::Auto, Auto::Value)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::domain::error_code::ErrorCode;
    use crate::train::run::plan::DEFAULT_PATIENCE;

    fn read_json(value: Value) -> Result<Hyperparameters, Refusal> {
        read("hyperparameters", value.as_object().expect("an object"), Method::Supervised)
    }

    #[test]
    fn beta_belongs_to_dpo() {
        let object = json!({"beta": 0.2, "n_epochs": 2});
        let object = object.as_object().expect("an object");
        let read_as = |method| read("hyperparameters", object, method);
        let values = read_as(Method::Dpo).expect("it is known");
        assert_eq!((values.method, values.beta), (Method::Dpo, Auto::Value(0.2)));
        let refusal = read_as(Method::Supervised).expect_err("it is not");
        assert!(refusal.message.contains("belongs to the method \"dpo\""), "{}", refusal.message);
    }

    #[test]
    fn an_unknown_name_is_refused_and_the_known_ones_are_listed() {
        let refusal = read_json(json!({"nepochs": 3})).expect_err("it is unknown");
        assert_eq!(refusal.param, "hyperparameters.nepochs");
        assert_eq!(refusal.code, ErrorCode::InvalidHyperparameter);
        assert!(refusal.message.contains("n_epochs"), "{}", refusal.message);
    }

    #[test]
    fn null_and_auto_leave_a_value_open() {
        let read = read_json(json!({"n_epochs": null, "batch_size": "auto", "lora_r": "auto"}));
        assert_eq!(read, Ok(Hyperparameters::default()));
    }

    #[test]
    fn values_out_of_range_or_of_another_type_are_refused_by_name() {
        for (name, value) in [
            ("n_epochs", json!(0)),
            ("n_epochs", json!(51)),
            ("n_epochs", json!(2.5)),
            ("n_epochs", json!("three")),
            ("n_epochs", json!(-1)),
            ("batch_size", json!(257)),
            ("learning_rate_multiplier", json!(0)),
            ("learning_rate", json!(-1e-4)),
            ("lora_r", json!([8])),
            ("warmup_ratio", json!(1.5)),
            ("lr_scheduler_type", json!("warp")),
            ("lora_dropout", json!(1)),
            ("eval_steps", json!(0)),
            ("early_stopping_patience", json!(-1)),
            ("save_steps", json!(0.5)),
            ("min_lr_ratio", json!(1.1)),
            ("packing", json!("yes")),
            ("n_evals", json!(-1)),
            ("n_checkpoints", json!(0)),
            ("early_stopping_enabled", json!(1)),
            ("early_stopping_min_delta", json!(-0.1)),
            // What 32 bits hold as infinite, or as zero.
            ("lora_alpha", json!(1e308)),
            ("lora_alpha", json!(1e-300)),
            ("learning_rate_multiplier", json!(1e300)),
            ("learning_rate_multiplier", json!(1e-300)),
            ("learning_rate", json!(1e-300)),
            ("weight_decay", json!(1e39)),
            ("max_grad_norm", json!(1e39)),
            ("max_grad_norm", json!(1e-46)),
            ("early_stopping_threshold", json!(1e308)),
        ] {
            let refusal = read_json(json!({ name: value })).expect_err(name);
            assert_eq!(refusal.param, format!("hyperparameters.{name}"));
        }
        assert_eq!(read_json(json!({"n_epochs": 3.0})).map(|h| h.n_epochs), Ok(Auto::Value(3)));
    }

    #[test]
    fn values_of_another_fine_tune_mode_are_refused() {
        let read = read_json(json!({"tuning": "last_layers", "tuning_layers": 2}));
        let read = read.expect("they belong together");
        assert_eq!((read.tuning, read.tuning_layers), (Some(FineTuneMode::LastLayers), Some(2)));
        let read = read_json(json!({"tuning": "lora", "modules_to_save": ["lm_head"]}));
        assert_eq!(read.map(|read| read.modules_to_save), Ok(Some(vec!["lm_head".to_owned()])));
        for (values, name) in [
            (json!({"tuning": "full", "lora_r": 8}), "lora_r"),
            (json!({"tuning": "last_layers", "lora_dropout": 0.1}), "lora_dropout"),
            (json!({"tuning": "full", "modules_to_save": ["lm_head"]}), "modules_to_save"),
            (json!({"tuning": "full", "tuning_layers": 2}), "tuning_layers"),
            (json!({"tuning_layers": 2}), "tuning_layers"),
            (json!({"tuning": "qlora"}), "tuning"),
            (json!({"modules_to_save": []}), "modules_to_save"),
        ] {
            let refusal = read_json(values).expect_err(name);
            assert_eq!(refusal.param, format!("hyperparameters.{name}"));
        }
    }

    #[test]
    fn early_stopping_is_read_in_both_spellings() {
        let read = |value| {
            let read = read_json(value)?;
            Ok((read.early_stopping_patience, read.early_stopping_threshold))
        };
        assert_eq!(read(json!({"early_stopping_enabled": false})), Ok((Some(0), None)));
        let stated = json!({"early_stopping_enabled": true, "early_stopping_min_delta": 0.1});
        assert_eq!(read(stated), Ok((Some(DEFAULT_PATIENCE), Some(0.1))));
        let stated = json!({"early_stopping_enabled": true, "early_stopping_patience": 2,
            "early_stopping_min_delta": 0.1, "early_stopping_threshold": 0.1});
        assert_eq!(read(stated), Ok((Some(2), Some(0.1))));
        for (value, name) in [
            (
                json!({"early_stopping_enabled": false, "early_stopping_patience": 2}),
                "early_stopping_enabled",
            ),
            (
                json!({"early_stopping_enabled": true, "early_stopping_patience": 0}),
                "early_stopping_enabled",
            ),
            (
                json!({"early_stopping_min_delta": 0.1, "early_stopping_threshold": 0.2}),
                "early_stopping_min_delta",
            ),
        ] {
            let refusal: Refusal = read(value).expect_err(name);
            assert_eq!(refusal.param, format!("hyperparameters.{name}"));
        }
    }

    #[test]
    fn values_that_exclude_each_other_or_have_no_effect_are_refused() {
        for (value, name) in [
            (json!({"n_evals": 2, "eval_steps": 5}), "n_evals"),
            (json!({"n_checkpoints": 2, "save_steps": 5}), "n_checkpoints"),
            (json!({"min_lr_ratio": 0.1, "lr_scheduler_type": "constant"}), "min_lr_ratio"),
        ] {
            let refusal = read_json(value).expect_err(name);
            assert_eq!(refusal.param, format!("hyperparameters.{name}"));
        }
    }

    #[test]
    fn every_name_that_is_listed_is_read_and_stored_under_it() {
        let samples = json!({
            "n_epochs": 2, "batch_size": 3, "learning_rate_multiplier": 1.5, "learning_rate": 0.25,
            "tuning": "full", "tuning_layers": 2, "warmup_ratio": 0.5, "weight_decay": 0.5,
            "max_grad_norm": 0.5, "lr_scheduler_type": "cosine", "min_lr_ratio": 0.5,
            "packing": true, "context_length": 64, "eval_steps": 5, "n_evals": 2,
            "early_stopping_enabled": false, "early_stopping_patience": 4,
            "early_stopping_threshold": 0.5, "early_stopping_min_delta": 0.5, "save_steps": 5,
            "n_checkpoints": 2, "save_total_limit": 2, "beta": 0.5, "modules_to_save": ["lm_head"],
            "lora_r": 4, "lora_alpha": 8.0, "lora_dropout": 0.5, "lora_target_modules": ["q_proj"],
            "lora_layers": 2, "use_rslora": true,
        });
        let samples = samples.as_object().expect("an object");
        let mut names: Vec<&str> = samples.keys().map(String::as_str).collect();
        let mut known = [KNOWN, KNOWN_WITH_LORA, KNOWN_WITH_DPO].concat();
        names.sort_unstable();
        known.sort_unstable();
        assert_eq!(names, known);
        for (name, value) in samples {
            let mut object = Map::from_iter([(name.clone(), value.clone())]);
            if name == "tuning_layers" {
                object.insert("tuning".to_owned(), json!("last_layers"));
            }
            let read = read("hyperparameters", &object, Method::Dpo).expect(name);
            // Together's spellings are stored under hone's names.
            let (stored_name, stored_value) = match name.as_str() {
                "early_stopping_enabled" => ("early_stopping_patience", &json!(0)),
                "early_stopping_min_delta" => ("early_stopping_threshold", value),
                own => (own, value),
            };
            let stored = serde_json::to_value(&read).expect("it serialises");
            assert_eq!(&stored[stored_name], stored_value, "{name}");
        }
    }

    #[test]
    fn two_learning_rates_exclude_each_other() {
        let both = json!({"learning_rate": 1e-4, "learning_rate_multiplier": 2});
        assert!(read_json(both).is_err());
    }
}
