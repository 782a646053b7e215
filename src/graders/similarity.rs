//! The similarity of two texts, 0 to 1, by the usual metrics.
//!
//! Each metric is what its best-known library computes: `fuzzy_match` the ratio of RapidFuzz, `bleu` and `gleu`
//! those of NLTK over words between spaces (`bleu` smoothed by its method 3, over as many lengths as the
//! text has), `rouge_*` the F-measure of rouge-score without stemming, whose words may be in any alphabet
//! here. `tests/data/similarity.json` holds their numbers.

use std::collections::HashMap;
use std::hash::Hash;

use rapidfuzz::distance::lcs_seq;
use rapidfuzz::fuzz;

/// Longest n-grams of `bleu` and `gleu`.
const MAX_NGRAM: usize = 4;

/// A metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SimilarityMetric {
    /// By insertions and deletions of characters.
    FuzzyMatch,
    /// By n-grams of one to four words, precision only.
    Bleu,
    /// By n-grams of one to four words, the lesser of precision and recall.
    Gleu,
    /// By n-grams of so many words, F-measure.
    Rouge(usize),
    /// By the longest common subsequence of words, F-measure.
    RougeL,
}

impl SimilarityMetric {
    /// Whether its cost is the product of the lengths of both texts; the cost of the others is their sum.
    pub(super) fn is_quadratic(self) -> bool {
        matches!(self, Self::FuzzyMatch | Self::RougeL)
    }

    /// The metric with this name on the wire.
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

    /// The similarity of `input` and `reference`.
    pub fn similarity(self, input: &str, reference: &str) -> f64 {
        match self {
            Self::FuzzyMatch => fuzz::ratio(input.chars(), reference.chars()),
            Self::Bleu => bleu(&whitespace_words(input), &whitespace_words(reference)),
            Self::Gleu => gleu(&whitespace_words(input), &whitespace_words(reference)),
            Self::Rouge(length) => rouge(&words(input), &words(reference), length),
            Self::RougeL => rouge_l(&words(input), &words(reference)),
        }
    }
}

fn whitespace_words(text: &str) -> Vec<&str> {
    text.split_whitespace().collect()
}

/// Words of letters and digits, in lower case.
fn words(text: &str) -> Vec<String> {
    let lower = text.to_lowercase();
    let words = lower.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty());
    words.map(str::to_owned).collect()
}

/// The number of occurrences of each n-gram of `length` words.
fn ngrams<T: Hash + Eq>(words: &[T], length: usize) -> HashMap<&[T], usize> {
    let mut counts = HashMap::new();
    for gram in words.windows(length) {
        *counts.entry(gram).or_insert(0) += 1;
    }
    counts
}

/// The number of n-grams of `length` words that both have, each counted as often as both have it.
fn common_ngrams<T: Hash + Eq>(input: &[T], reference: &[T], length: usize) -> usize {
    let known = ngrams(reference, length);
    let found = ngrams(input, length).into_iter();
    found.map(|(gram, count)| count.min(known.get(gram).copied().unwrap_or(0))).sum()
}

fn ngram_count<T>(words: &[T], length: usize) -> usize {
    (words.len() + 1).saturating_sub(length)
}

fn bleu(input: &[&str], reference: &[&str]) -> f64 {
    if common_ngrams(input, reference, 1) == 0 {
        return 0.0;
    }
    let longest = MAX_NGRAM.min(input.len());
    let mut logarithms = 0.0;
    let mut smoothed = 0;
    for length in 1..=longest {
        let mut matches = common_ngrams(input, reference, length) as f64;
        if matches == 0.0 {
            smoothed += 1;
            matches = 0.5_f64.powi(smoothed);
        }
        logarithms += (matches / ngram_count(input, length) as f64).ln() / longest as f64;
    }
    let brevity = 1.0 - reference.len() as f64 / input.len() as f64;
    (logarithms + brevity.min(0.0)).exp()
}

fn gleu(input: &[&str], reference: &[&str]) -> f64 {
    let (mut matches, mut of_input, mut of_reference) = (0, 0, 0);
    for length in 1..=MAX_NGRAM {
        matches += common_ngrams(input, reference, length);
        of_input += ngram_count(input, length);
        of_reference += ngram_count(reference, length);
    }
    matches as f64 / of_input.max(of_reference).max(1) as f64
}

fn rouge(input: &[String], reference: &[String], length: usize) -> f64 {
    let matches = common_ngrams(input, reference, length);
    f_measure(matches, ngram_count(input, length), ngram_count(reference, length))
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
    fn every_metric_gives_the_numbers_of_the_library_that_defines_it() {
        let golden: Vec<Value> =
            serde_json::from_str(include_str!("../../tests/data/similarity.json")).expect("JSON");
        assert!(golden.len() > 15);
        for case in &golden {
            let text = |key: &str| case[key].as_str().expect("a text");
            let (input, reference) = (text("input"), text("reference"));
            for (name, wanted) in case.as_object().expect("an object") {
                let Some(metric) = SimilarityMetric::parse(name) else {
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
    fn every_metric_is_one_for_the_same_text_and_between_zero_and_one_for_any() {
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
            let metric = SimilarityMetric::parse(name).expect("known");
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
    fn the_longest_texts_are_compared_in_seconds() {
        let one = "ab ".repeat(super::super::template::MAX_TEXT_BYTES / 3);
        let other = "a b".repeat(super::super::template::MAX_TEXT_BYTES / 3);
        let start = std::time::Instant::now();
        for metric in [
            SimilarityMetric::FuzzyMatch,
            SimilarityMetric::RougeL,
            SimilarityMetric::Rouge(5),
            SimilarityMetric::Bleu,
        ] {
            metric.similarity(&one, &other);
        }
        assert!(start.elapsed().as_secs() < 20, "{:?}", start.elapsed());
    }
}
