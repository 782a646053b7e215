//! How alike two texts are, 0 to 1, by the usual measures.
//!
//! Each is what its best-known library computes: `fuzzy_match` the ratio of RapidFuzz, `bleu` and `gleu`
//! those of NLTK over words between spaces (`bleu` smoothed by its method 3, over as many lengths as the
//! text has), `rouge_*` the F-measure of rouge-score without stemming, whose words may be in any alphabet
//! here. `tests/data/similarity.json` holds their numbers.

use std::collections::HashMap;
use std::hash::Hash;

use rapidfuzz::distance::lcs_seq;
use rapidfuzz::fuzz;

/// Longest n-grams of `bleu` and `gleu`.
const LONGEST: usize = 4;

/// A measure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Metric {
    /// By characters that have to be inserted or deleted.
    FuzzyMatch,
    /// By runs of one to four words, precision alone.
    Bleu,
    /// The same, precision or recall, whichever is less.
    Gleu,
    /// By runs of so many words, precision and recall.
    Rouge(usize),
    /// By the longest common sequence of words, precision and recall.
    RougeL,
}

impl Metric {
    /// Whether it compares each place of one text with each of the other; the others take the texts'
    /// lengths together.
    pub(super) fn compares_all(self) -> bool {
        matches!(self, Self::FuzzyMatch | Self::RougeL)
    }

    /// The measure that `name` names on the wire.
    pub fn parse(name: &str) -> Option<Self> {
        Some(match name {
            "fuzzy_match" => Self::FuzzyMatch,
            "bleu" => Self::Bleu,
            "gleu" => Self::Gleu,
            "rouge_1" => Self::Rouge(1),
            "rouge_2" => Self::Rouge(2),
            "rouge_3" => Self::Rouge(3),
            "rouge_4" => Self::Rouge(4),
            "rouge_5" => Self::Rouge(5),
            "rouge_l" => Self::RougeL,
            _ => return None,
        })
    }

    /// How alike `input` is to `reference`.
    pub fn similarity(self, input: &str, reference: &str) -> f64 {
        match self {
            Self::FuzzyMatch => fuzz::ratio(input.chars(), reference.chars()),
            Self::Bleu => bleu(&between_spaces(input), &between_spaces(reference)),
            Self::Gleu => gleu(&between_spaces(input), &between_spaces(reference)),
            Self::Rouge(length) => rouge(&words(input), &words(reference), length),
            Self::RougeL => rouge_l(&words(input), &words(reference)),
        }
    }
}

fn between_spaces(text: &str) -> Vec<&str> {
    text.split_whitespace().collect()
}

/// Runs of letters and digits in lower case.
fn words(text: &str) -> Vec<String> {
    let lower = text.to_lowercase();
    let words = lower.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty());
    words.map(str::to_owned).collect()
}

/// How often each run of `length` words occurs.
fn grams<T: Hash + Eq>(words: &[T], length: usize) -> HashMap<&[T], usize> {
    let mut counts = HashMap::new();
    for gram in words.windows(length) {
        *counts.entry(gram).or_insert(0) += 1;
    }
    counts
}

/// How many runs of `length` words both have, each as often as both have it.
fn shared<T: Hash + Eq>(input: &[T], reference: &[T], length: usize) -> usize {
    let known = grams(reference, length);
    let found = grams(input, length).into_iter();
    found.map(|(gram, count)| count.min(known.get(gram).copied().unwrap_or(0))).sum()
}

fn runs<T>(words: &[T], length: usize) -> usize {
    (words.len() + 1).saturating_sub(length)
}

fn bleu(input: &[&str], reference: &[&str]) -> f64 {
    if shared(input, reference, 1) == 0 {
        return 0.0;
    }
    let longest = LONGEST.min(input.len());
    let mut logarithms = 0.0;
    let mut smoothed = 0;
    for length in 1..=longest {
        let mut matches = shared(input, reference, length) as f64;
        if matches == 0.0 {
            smoothed += 1;
            matches = 0.5_f64.powi(smoothed);
        }
        logarithms += (matches / runs(input, length) as f64).ln() / longest as f64;
    }
    let shortness = 1.0 - reference.len() as f64 / input.len() as f64;
    (logarithms + shortness.min(0.0)).exp()
}

fn gleu(input: &[&str], reference: &[&str]) -> f64 {
    let (mut matches, mut of_input, mut of_reference) = (0, 0, 0);
    for length in 1..=LONGEST {
        matches += shared(input, reference, length);
        of_input += runs(input, length);
        of_reference += runs(reference, length);
    }
    matches as f64 / of_input.max(of_reference).max(1) as f64
}

fn rouge(input: &[String], reference: &[String], length: usize) -> f64 {
    let matches = shared(input, reference, length);
    f_measure(matches, runs(input, length), runs(reference, length))
}

fn rouge_l(input: &[String], reference: &[String]) -> f64 {
    // Words as numbers, since the library compares such.
    let mut numbers: HashMap<&str, u64> = HashMap::new();
    let mut numbered = Vec::with_capacity(input.len() + reference.len());
    for word in input.iter().chain(reference) {
        let next = numbers.len() as u64;
        numbered.push(*numbers.entry(word).or_insert(next));
    }
    let (one, other) = numbered.split_at(input.len());
    let common = lcs_seq::similarity(one.iter().copied(), other.iter().copied());
    f_measure(common, input.len(), reference.len())
}

/// The harmonic mean of precision and recall.
fn f_measure(matches: usize, of_input: usize, of_reference: usize) -> f64 {
    2.0 * matches as f64 / (of_input + of_reference).max(1) as f64
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    #[test]
    fn every_measure_gives_the_numbers_of_the_library_that_defines_it() {
        let golden: Vec<Value> =
            serde_json::from_str(include_str!("../../tests/data/similarity.json")).expect("JSON");
        assert!(golden.len() > 15);
        for case in &golden {
            let text = |key: &str| case[key].as_str().expect("a text");
            let (input, reference) = (text("input"), text("reference"));
            for (name, wanted) in case.as_object().expect("an object") {
                let Some(metric) = Metric::parse(name) else {
                    assert!(["input", "reference"].contains(&name.as_str()), "{name}");
                    continue;
                };
                // rouge-score knows no letters but a to z.
                if name.starts_with("rouge") && !format!("{input}{reference}").is_ascii() {
                    continue;
                }
                let found = metric.similarity(input, reference);
                let wanted = wanted.as_f64().expect("a number");
                assert!((found - wanted).abs() < 1e-9, "{name} {found} {wanted}: {case}");
            }
        }
    }

    #[test]
    fn every_measure_is_one_for_the_same_text_and_between_zero_and_one_for_any() {
        let names = [
            "fuzzy_match",
            "bleu",
            "gleu",
            "rouge_1",
            "rouge_2",
            "rouge_3",
            "rouge_4",
            "rouge_5",
            "rouge_l",
        ];
        let texts =
            ["", " ", "a", "Σ", "a b c d e f", "日本語 の 文 が ここ に ある", "…", "a b c d e g"];
        for name in names {
            let metric = Metric::parse(name).expect("known");
            for one in texts {
                for other in texts {
                    let found = metric.similarity(one, other);
                    assert!((0.0..=1.0).contains(&found), "{name} {one:?} {other:?}: {found}");
                }
            }
            for same in ["a b c d e f", "日本語 の 文 が ここ に ある"] {
                assert!((metric.similarity(same, same) - 1.0).abs() < 1e-12, "{name} {same}");
            }
        }
    }

    #[test]
    fn the_longest_texts_take_no_time_to_speak_of() {
        let one = "ab ".repeat(super::super::template::MAX_TEXT_BYTES / 3);
        let other = "a b".repeat(super::super::template::MAX_TEXT_BYTES / 3);
        let start = std::time::Instant::now();
        for metric in [Metric::FuzzyMatch, Metric::RougeL, Metric::Rouge(5), Metric::Bleu] {
            metric.similarity(&one, &other);
        }
        assert!(start.elapsed().as_secs() < 20, "{:?}", start.elapsed());
    }
}
