//! Graders: they give an answer a number. OpenAI's kinds, as far as hone can compute them.
//!
//! [`read`] parses a grader and refuses an invalid one, with the key at fault; [`run::run`] grades one answer.
//! Both are pure functions.

pub mod formula;
pub mod run;
mod similarity;
mod template;

use serde_json::{Map, Value};

use crate::util::excerpt::{excerpt, excerpt_of};
use formula::Formula;
pub use similarity::SimilarityMetric;
use template::Template;

/// Most graders in a `multi`.
const MAX_GRADERS: usize = 100;

/// A parsed grader.
#[derive(Debug, Clone, PartialEq)]
pub struct Grader {
    /// The client's name for it.
    pub name: String,
    /// Its kind, with its parameters.
    pub kind: GraderKind,
}

/// The kind of a grader, with its parameters.
#[derive(Debug, Clone, PartialEq)]
pub enum GraderKind {
    /// Compares two texts; 1 or 0.
    StringCheck {
        /// The text that is graded.
        input: Template,
        /// What it is compared with.
        reference: Template,
        /// How.
        operation: StringCheckOperation,
    },
    /// Computes the similarity of two texts, 0 to 1.
    TextSimilarity {
        /// The text that is graded.
        input: Template,
        /// What it is compared with.
        reference: Template,
        /// The metric.
        metric: SimilarityMetric,
    },
    /// Combines the grades of others.
    Multi {
        /// The others, each with its name in the formula.
        graders: Vec<(String, Grader)>,
        /// How they are combined.
        formula: Formula,
    },
}

impl GraderKind {
    /// `type` on the wire.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::StringCheck { .. } => "string_check",
            Self::TextSimilarity { .. } => "text_similarity",
            Self::Multi { .. } => "multi",
        }
    }
}

/// How a `string_check` compares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StringCheckOperation {
    /// The same.
    Equal,
    /// Different.
    NotEqual,
    /// The input contains the reference.
    Like,
    /// The input contains the reference, ignoring case.
    LikeIgnoringCase,
}

/// Why a grader is refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GraderError {
    /// The key at fault, such as `grader.graders.style.input`.
    pub path: String,
    /// What is wrong and what to do.
    pub message: String,
    /// Whether OpenAI has this grader and hone does not run it.
    pub is_unsupported: bool,
}

impl GraderError {
    fn new(path: &str, key: &str, message: impl Into<String>) -> Self {
        Self { path: join(path, key), message: message.into(), is_unsupported: false }
    }

    fn unsupported(path: &str, key: &str, message: impl Into<String>) -> Self {
        Self { is_unsupported: true, ..Self::new(path, key, message) }
    }
}

fn join(path: &str, key: &str) -> String {
    format!("{path}.{key}")
}

/// Parses the grader at `path` of a request.
pub fn read(value: &Value, path: &str) -> Result<Grader, GraderError> {
    let Some(object) = value.as_object() else {
        let value = excerpt_of(value);
        let message = format!("a grader is an object; this is {value}");
        return Err(GraderError { path: path.to_owned(), message, is_unsupported: false });
    };
    let name = text(object, path, "name")?.to_owned();
    let kind = match text(object, path, "type")? {
        "string_check" => string_check(object, path)?,
        "text_similarity" => text_similarity(object, path)?,
        "multi" => multi(object, path)?,
        "python" => {
            return Err(GraderError::unsupported(
                path,
                "type",
                "hone does not run python graders: it would run a client's code on this machine; \
                 it runs string_check, text_similarity and multi",
            ));
        }
        other @ ("score_model" | "label_model") => {
            let message = format!(
                "hone does not run {other} graders; it runs string_check, text_similarity and multi"
            );
            return Err(GraderError::unsupported(path, "type", message));
        }
        other => {
            let message = format!(
                "the type is {:?}; it can be string_check, text_similarity or multi",
                excerpt(other)
            );
            return Err(GraderError::new(path, "type", message));
        }
    };
    Ok(Grader { name, kind })
}

fn text<'a>(object: &'a Map<String, Value>, path: &str, key: &str) -> Result<&'a str, GraderError> {
    match object.get(key) {
        Some(Value::String(text)) => Ok(text),
        None | Some(Value::Null) => Err(GraderError::new(path, key, format!("{key} is missing"))),
        Some(other) => {
            let other = excerpt_of(other);
            Err(GraderError::new(path, key, format!("{key} is {other}; it must be a text")))
        }
    }
}

fn template(object: &Map<String, Value>, path: &str, key: &str) -> Result<Template, GraderError> {
    let text = text(object, path, key)?;
    Template::parse(text).map_err(|message| GraderError::new(path, key, message))
}

fn string_check(object: &Map<String, Value>, path: &str) -> Result<GraderKind, GraderError> {
    let operation = match text(object, path, "operation")? {
        "eq" => StringCheckOperation::Equal,
        "ne" => StringCheckOperation::NotEqual,
        "like" => StringCheckOperation::Like,
        "ilike" => StringCheckOperation::LikeIgnoringCase,
        other => {
            let other = excerpt(other);
            let message = format!("the operation is {other:?}; it can be eq, ne, like or ilike");
            return Err(GraderError::new(path, "operation", message));
        }
    };
    Ok(GraderKind::StringCheck {
        input: template(object, path, "input")?,
        reference: template(object, path, "reference")?,
        operation,
    })
}

fn text_similarity(object: &Map<String, Value>, path: &str) -> Result<GraderKind, GraderError> {
    const KEY: &str = "evaluation_metric";
    let metric = match text(object, path, KEY)? {
        "cosine" => {
            let message = "hone has no embeddings to compute cosine with; it offers fuzzy_match, \
                           bleu, gleu, rouge_1 to rouge_5 and rouge_l";
            return Err(GraderError::unsupported(path, KEY, message));
        }
        "meteor" => {
            let message = "hone has no dictionary of synonyms to compute meteor with; it offers \
                           fuzzy_match, bleu, gleu, rouge_1 to rouge_5 and rouge_l";
            return Err(GraderError::unsupported(path, KEY, message));
        }
        known => SimilarityMetric::parse(known).ok_or_else(|| {
            let known = excerpt(known);
            let message = format!(
                "the metric is {known:?}; it can be fuzzy_match, bleu, gleu, rouge_1 to rouge_5 or \
                 rouge_l"
            );
            GraderError::new(path, KEY, message)
        })?,
    };
    Ok(GraderKind::TextSimilarity {
        input: template(object, path, "input")?,
        reference: template(object, path, "reference")?,
        metric,
    })
}

/// `graders` is a map from names to graders. OpenAI's schema also allows a single grader, which then has its own
/// name in the formula.
fn multi(object: &Map<String, Value>, path: &str) -> Result<GraderKind, GraderError> {
    const KEY: &str = "graders";
    let place = join(path, KEY);
    let Some(value) = object.get(KEY).and_then(Value::as_object) else {
        let found = match object.get(KEY) {
            None | Some(Value::Null) => "missing",
            Some(_) => "no object",
        };
        let message =
            format!("graders is {found}: it must be an object that maps names to graders");
        return Err(GraderError::new(path, KEY, message));
    };
    let mut graders = Vec::new();
    if value.get("type").is_some_and(Value::is_string) {
        let only = read(&object[KEY], &place)?;
        graders.push((only.name.clone(), only));
    } else {
        for (name, value) in value {
            graders.push((name.clone(), read(value, &join(&place, name))?));
        }
    }
    if graders.is_empty() || graders.len() > MAX_GRADERS {
        let message = format!("there are {} graders; 1 to {MAX_GRADERS} can be", graders.len());
        return Err(GraderError::new(path, KEY, message));
    }
    for (name, grader) in &graders {
        if matches!(grader.kind, GraderKind::Multi { .. }) {
            let message = "a multi grader cannot stand in another one";
            return Err(GraderError::new(&join(&place, name), "type", message));
        }
    }
    const FORMULA: &str = "calculate_output";
    let formula = Formula::parse(text(object, path, FORMULA)?)
        .map_err(|error| GraderError::new(path, FORMULA, error.to_string()))?;
    let names: Vec<&str> = graders.iter().map(|(name, _)| name.as_str()).collect();
    if let Some(unknown) = formula.variables().into_iter().find(|used| !names.contains(used)) {
        let message = format!(
            "the formula names {:?}; the graders are {}",
            excerpt(unknown),
            excerpt(&names.join(", "))
        );
        return Err(GraderError::new(path, FORMULA, message));
    }
    Ok(GraderKind::Multi { graders, formula })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn each_wrong_key_is_named_and_unsupported_graders_are_refused() {
        let check = json!({"type": "string_check", "name": "a", "input": "{{item.x}}",
            "reference": "y", "operation": "eq"});
        let similarity = json!({"type": "text_similarity", "name": "b", "input": "x",
            "reference": "y", "evaluation_metric": "bleu"});
        let multi = json!({"type": "multi", "name": "c", "calculate_output": "a + b / 2",
            "graders": {"a": check, "b": similarity}});
        for good in [&check, &similarity, &multi] {
            assert!(read(good, "grader").is_ok(), "{good}");
        }
        // One grader instead of a map.
        let single = json!({"type": "multi", "name": "c", "calculate_output": "2 * b",
            "graders": similarity});
        assert!(read(&single, "grader").is_ok());

        let with = |grader: &Value, key: &str, value: Value| {
            let mut changed = grader.clone();
            changed[key] = value;
            changed
        };
        let nested = json!({"a": check, "b": multi});
        for (grader, path, is_unsupported) in [
            (json!("text"), "grader", false),
            (with(&check, "name", json!(null)), "grader.name", false),
            (with(&check, "type", json!("magic")), "grader.type", false),
            (with(&check, "type", json!("python")), "grader.type", true),
            (with(&check, "type", json!("score_model")), "grader.type", true),
            (with(&check, "operation", json!("equals")), "grader.operation", false),
            (with(&check, "input", json!(3)), "grader.input", false),
            (with(&check, "input", json!("{{ item.x")), "grader.input", false),
            (with(&check, "reference", json!("{{ items.x }}")), "grader.reference", false),
            (
                with(&similarity, "evaluation_metric", json!("rouge_6")),
                "grader.evaluation_metric",
                false,
            ),
            (
                with(&similarity, "evaluation_metric", json!("cosine")),
                "grader.evaluation_metric",
                true,
            ),
            (with(&multi, "graders", json!({})), "grader.graders", false),
            (with(&multi, "graders", json!([check])), "grader.graders", false),
            (with(&multi, "graders", nested), "grader.graders.b.type", false),
            (with(&multi, "graders", json!({"a": {}, "b": check})), "grader.graders.a.name", false),
            (with(&multi, "calculate_output", json!("a +")), "grader.calculate_output", false),
            (with(&multi, "calculate_output", json!("a + c")), "grader.calculate_output", false),
        ] {
            let error = read(&grader, "grader").expect_err("it is wrong");
            assert_eq!(
                (error.path.as_str(), error.is_unsupported),
                (path, is_unsupported),
                "{grader}"
            );
        }
    }
}
