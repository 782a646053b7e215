//! Grades one answer.

use serde_json::{Map, Value, json};

use super::template::{MAX_TEXT_BYTES, RenderError, Values};
use super::{Grader, Kind, Operation};

/// How much the measures that compare each place with each may cost in one run, in bytes of one text
/// times bytes of the other: four of the longest texts, about a second. Otherwise a `multi` could compute
/// for minutes.
const MAX_COMPARED: usize = 4 * MAX_TEXT_BYTES * MAX_TEXT_BYTES;

/// What a grader made of an answer.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Grade {
    /// The number; 0 when something went wrong.
    pub reward: f64,
    /// What went wrong.
    pub errors: Errors,
    /// The numbers that a `multi` has combined, by name; empty for others.
    pub parts: Vec<(String, f64)>,
}

/// What can go wrong with an answer; a grader that cannot work with any is refused before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Errors {
    /// The formula's result is no number, as after a division by zero.
    pub formula: bool,
    /// The answer is no JSON, and the grader wants a part of it.
    pub sample: bool,
    /// A variable has no value.
    pub variable: bool,
    /// A text became too long to be graded, or texts are too long for so many comparisons.
    pub too_long: bool,
}

/// Grades the answer `sample` to the row `item`.
pub fn run(grader: &Grader, sample: &str, item: &Map<String, Value>) -> Grade {
    let mut spellings = json!({"output_text": sample});
    // A part of the sample that is not there is an error only for a grader that names it.
    if let Ok(parsed) = serde_json::from_str::<Value>(sample) {
        spellings["output_json"] = parsed;
    }
    let item = Value::Object(item.clone());
    let mut left = MAX_COMPARED;
    grade(grader, &Values { item: &item, sample: &spellings }, &mut left)
}

/// Grades with what is `left` of [`MAX_COMPARED`].
fn grade(grader: &Grader, values: &Values<'_>, left: &mut usize) -> Grade {
    let texts = |input: &super::Template, reference: &super::Template| {
        Ok((input.render(values)?, reference.render(values)?))
    };
    match &grader.kind {
        Kind::StringCheck { input, reference, operation } => {
            of_texts(texts(input, reference), |input, reference| {
                f64::from(u8::from(is_fulfilled(*operation, input, reference)))
            })
        }
        Kind::TextSimilarity { input, reference, metric } => {
            let texts = texts(input, reference).and_then(|(input, reference)| {
                if metric.compares_all() {
                    let cost = input.len() * reference.len();
                    *left = left.checked_sub(cost).ok_or(RenderError::TooLong)?;
                }
                Ok((input, reference))
            });
            of_texts(texts, |input, reference| metric.similarity(input, reference))
        }
        Kind::Multi { graders, formula } => {
            let mut whole = Grade::default();
            for (name, grader) in graders {
                let part = grade(grader, values, left);
                whole.errors.add(part.errors);
                whole.parts.push((name.clone(), part.reward));
            }
            if whole.errors == Errors::default() {
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

impl Errors {
    fn add(&mut self, other: Errors) {
        self.formula |= other.formula;
        self.sample |= other.sample;
        self.variable |= other.variable;
        self.too_long |= other.too_long;
    }
}

fn of_texts(
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

fn is_fulfilled(operation: Operation, input: &str, reference: &str) -> bool {
    match operation {
        Operation::Equal => input == reference,
        Operation::NotEqual => input != reference,
        Operation::Like => input.contains(reference),
        Operation::LikeInAnyCase => input.to_lowercase().contains(&reference.to_lowercase()),
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
            assert_eq!((grade.reward, grade.errors), (wanted, Errors::default()), "{operation}");
        }
        let of_json = check("eq", "{{sample.output_json.city}}");
        assert_eq!(grade_of(of_json, r#"{"city": "Paris"}"#).reward, 1.0);
    }

    #[test]
    fn comparisons_that_would_take_minutes_are_not_begun() {
        let one = json!({"type": "text_similarity", "name": "a", "input": "{{sample.output_text}}",
            "reference": "{{sample.output_text}}", "evaluation_metric": "fuzzy_match"});
        let names: Vec<String> = (0..100).map(|number| format!("g{number}")).collect();
        let graders: Map<String, Value> =
            names.iter().map(|name| (name.clone(), one.clone())).collect();
        let multi = json!({"type": "multi", "name": "all", "graders": graders,
            "calculate_output": "g0"});
        assert_eq!(grade_of(multi.clone(), "a few words").errors, Errors::default());
        let grade = grade_of(multi, &"ab ".repeat(MAX_TEXT_BYTES / 3));
        assert_eq!((grade.reward, grade.errors.too_long), (0.0, true));
        assert_eq!(grade.parts.iter().filter(|(_, reward)| *reward > 0.0).count(), 4);
    }

    #[test]
    fn what_goes_wrong_is_said_and_graded_with_zero() {
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
