//! Grades one answer.

use serde_json::{Map, Value, json};

use super::template::{MAX_TEXT_BYTES, RenderError, TemplateValues};
use super::{Grader, GraderKind, StringCheckOperation};

/// Limit for metrics of quadratic cost in one run, in bytes of one text times bytes of the other: four pairs of
/// the longest texts, about a second. Without it a `multi` could compute for minutes.
const MAX_QUADRATIC_COST: usize = 4 * MAX_TEXT_BYTES * MAX_TEXT_BYTES;

/// The grade of an answer.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Grade {
    /// The reward; 0 after an error.
    pub reward: f64,
    /// The errors.
    pub errors: GradeErrors,
    /// The rewards that a `multi` combined, by name; empty for other kinds.
    pub parts: Vec<(String, f64)>,
}

/// What can go wrong with an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct GradeErrors {
    /// The result of the formula is not finite, as after a division by zero.
    pub formula: bool,
    /// The answer is not JSON, and the grader refers to a part of it.
    pub sample: bool,
    /// A variable has no value.
    pub variable: bool,
    /// A rendered text is too long, or the comparisons cost too much.
    pub too_long: bool,
}

/// Grades the answer `sample` to the dataset row `item`.
pub fn run(grader: &Grader, sample: &str, item: &Map<String, Value>) -> Grade {
    let mut values = json!({"output_text": sample});
    // A sample that is not JSON is an error only for a grader that refers to `output_json`.
    if let Ok(parsed) = serde_json::from_str::<Value>(sample) {
        values["output_json"] = parsed;
    }
    let item = Value::Object(item.clone());
    let mut cost_left = MAX_QUADRATIC_COST;
    grade(grader, &TemplateValues { item: &item, sample: &values }, &mut cost_left)
}

/// Grades with the rest of [`MAX_QUADRATIC_COST`].
fn grade(grader: &Grader, values: &TemplateValues<'_>, cost_left: &mut usize) -> Grade {
    let texts = |input: &super::Template, reference: &super::Template| {
        Ok((input.render(values)?, reference.render(values)?))
    };
    match &grader.kind {
        GraderKind::StringCheck { input, reference, operation } => {
            grade_texts(texts(input, reference), |input, reference| {
                f64::from(u8::from(meets(*operation, input, reference)))
            })
        }
        GraderKind::TextSimilarity { input, reference, metric } => {
            let texts = texts(input, reference).and_then(|(input, reference)| {
                if metric.is_quadratic() {
                    let cost = input.len() * reference.len();
                    *cost_left = cost_left.checked_sub(cost).ok_or(RenderError::TooLong)?;
                }
                Ok((input, reference))
            });
            grade_texts(texts, |input, reference| metric.similarity(input, reference))
        }
        GraderKind::Multi { graders, formula } => {
            let mut whole = Grade::default();
            for (name, grader) in graders {
                let part = grade(grader, values, cost_left);
                whole.errors.add(part.errors);
                whole.parts.push((name.clone(), part.reward));
            }
            if whole.errors == GradeErrors::default() {
                let parts = &whole.parts;
                let part = |wanted: &str| {
                    let found = parts.iter().find(|(name, _)| name == wanted);
                    found.map_or(f64::NAN, |(_, reward)| *reward)
                };
                let reward = formula.value(&part);
                whole.errors.formula = !reward.is_finite();
                whole.reward = if reward.is_finite() { reward } else { 0.0 };
            }
            whole
        }
    }
}

impl GradeErrors {
    fn add(&mut self, other: GradeErrors) {
        self.formula |= other.formula;
        self.sample |= other.sample;
        self.variable |= other.variable;
        self.too_long |= other.too_long;
    }
}

fn grade_texts(
    texts: Result<(String, String), RenderError>,
    reward: impl Fn(&str, &str) -> f64,
) -> Grade {
    let mut grade = Grade::default();
    match texts {
        Ok((input, reference)) => grade.reward = reward(&input, &reference),
        Err(RenderError::Missing(_)) => grade.errors.variable = true,
        Err(RenderError::SampleIsNotJson(_)) => grade.errors.sample = true,
        Err(RenderError::TooLong) => grade.errors.too_long = true,
    }
    grade
}

fn meets(operation: StringCheckOperation, input: &str, reference: &str) -> bool {
    match operation {
        StringCheckOperation::Equal => input == reference,
        StringCheckOperation::NotEqual => input != reference,
        StringCheckOperation::Like => input.contains(reference),
        StringCheckOperation::LikeIgnoringCase => {
            input.to_lowercase().contains(&reference.to_lowercase())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::read;
    use super::*;

    fn grade_of(grader: Value, sample: &str) -> Grade {
        let grader = read(&grader, "grader").expect("a grader");
        let item = json!({"answer": "Paris", "n": 2});
        run(&grader, sample, item.as_object().expect("an object"))
    }

    fn check(operation: &str, input: &str) -> Value {
        json!({"type": "string_check", "name": "check", "input": input,
            "reference": "{{item.answer}}", "operation": operation})
    }

    #[test]
    fn a_string_check_is_one_or_zero() {
        for (operation, sample, wanted) in [
            ("eq", "Paris", 1.0),
            ("eq", "paris", 0.0),
            ("ne", "Rome", 1.0),
            ("ne", "Paris", 0.0),
            ("like", "It is Paris.", 1.0),
            ("like", "It is PARIS.", 0.0),
            ("ilike", "It is PARIS.", 1.0),
            ("ilike", "Rome", 0.0),
        ] {
            let grade = grade_of(check(operation, "{{sample.output_text}}"), sample);
            assert_eq!(
                (grade.reward, grade.errors),
                (wanted, GradeErrors::default()),
                "{operation}"
            );
        }
        let of_json = check("eq", "{{sample.output_json.city}}");
        assert_eq!(grade_of(of_json, r#"{"city": "Paris"}"#).reward, 1.0);
    }

    #[test]
    fn comparisons_that_would_take_minutes_are_refused() {
        let one = json!({"type": "text_similarity", "name": "a", "input": "{{sample.output_text}}",
            "reference": "{{sample.output_text}}", "evaluation_metric": "fuzzy_match"});
        let names: Vec<String> = (0..100).map(|number| format!("g{number}")).collect();
        let graders: Map<String, Value> =
            names.iter().map(|name| (name.clone(), one.clone())).collect();
        let multi = json!({"type": "multi", "name": "all", "graders": graders,
            "calculate_output": "g0"});
        assert_eq!(grade_of(multi.clone(), "a few words").errors, GradeErrors::default());
        let grade = grade_of(multi, &"ab ".repeat(MAX_TEXT_BYTES / 3));
        assert_eq!((grade.reward, grade.errors.too_long), (0.0, true));
        assert_eq!(grade.parts.iter().filter(|(_, reward)| *reward > 0.0).count(), 4);
    }

    #[test]
    fn an_error_is_reported_with_a_reward_of_zero() {
        let of_json = check("ne", "{{sample.output_json.city}}");
        let grade = grade_of(of_json.clone(), "no JSON");
        assert_eq!((grade.reward, grade.errors.sample), (0.0, true));
        let grade = grade_of(of_json, "{}");
        assert_eq!((grade.reward, grade.errors.variable), (0.0, true));
        let grade = grade_of(check("ne", "{{item.nothing}}"), "x");
        assert_eq!((grade.reward, grade.errors.variable), (0.0, true));
        let grade = grade_of(check("ne", &"{{sample.output_text}}".repeat(200)), &"x".repeat(1000));
        assert_eq!((grade.reward, grade.errors.too_long), (0.0, true));
    }

    #[test]
    fn a_multi_combines_the_grades_of_its_parts() {
        let multi = |formula: &str| {
            json!({"type": "multi", "name": "all", "calculate_output": formula, "graders": {
                "exact": check("eq", "{{sample.output_text}}"),
                "close": {"type": "text_similarity", "name": "close", "reference": "{{item.answer}}",
                    "input": "{{sample.output_text}}", "evaluation_metric": "fuzzy_match"}}})
        };
        let grade = grade_of(multi("0.5 * exact + 0.5 * close"), "Parys");
        assert!((grade.reward - 0.4).abs() < 1e-9, "{grade:?}");
        let names: Vec<&str> = grade.parts.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["exact", "close"]);
        let grade = grade_of(multi("close / exact"), "Parys");
        assert_eq!((grade.reward, grade.errors.formula), (0.0, true));
    }
}
