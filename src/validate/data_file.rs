//! Validates a training file while it is uploaded, in constant memory. The report decides at job creation
//! whether a job over the file can run.

use crate::dataset::{
    Diagnostic, Diagnostics, Format, LineFault, LineSplitter, MIN_EXAMPLES, ValidationReport,
    parse_example, plain_format,
};
use crate::domain::error_code::ErrorCode;
use crate::domain::job::{DataFile, JobError, Method};

/// Validates a JSONL file as its bytes arrive.
#[derive(Debug, Default)]
pub struct DataFileChecker {
    splitter: LineSplitter,
    examples: ExampleChecker,
}

/// Validates line by line.
#[derive(Debug, Default)]
struct ExampleChecker {
    report: ValidationReport,
    /// Format and line of the first example.
    first: Option<(Format, u64)>,
    is_mixed: bool,
}

impl DataFileChecker {
    /// A checker of an empty file.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes the next bytes.
    pub fn feed(&mut self, bytes: &[u8]) {
        let examples = &mut self.examples;
        self.splitter.feed(bytes, &mut |number, line| examples.line(number, line));
    }

    /// The report of the whole file.
    pub fn finish(mut self) -> ValidationReport {
        let examples = &mut self.examples;
        let fault = self.splitter.finish(&mut |number, line| examples.line(number, line));
        if let Some(fault) = fault {
            return ValidationReport::of_fault(fault);
        }
        let mut report = self.examples.report;
        report.format = match (self.examples.first, self.examples.is_mixed) {
            (Some((format, _)), false) => Some(format),
            _ => None,
        };
        report
    }
}

impl ExampleChecker {
    fn line(&mut self, number: u64, line: Result<&str, LineFault>) {
        // A malformed line counts as an example too.
        self.report.examples += 1;
        let problems = &mut self.report.problems;
        let text = match line {
            Ok(text) => text,
            Err(fault) => {
                let message = fault.to_string();
                problems.push(Diagnostic { line: number, message_index: None, key: None, message });
                return;
            }
        };
        let warnings = &mut self.report.warnings;
        let read = || parse_example(number, text, problems, warnings).map(|line| line.format());
        let Some(format) = plain_format(text).or_else(read) else { return };
        let (first, first_line) = *self.first.get_or_insert((format, number));
        if first != format && !self.is_mixed {
            self.is_mixed = true;
            let message = format!(
                "this line holds {}, line {first_line} holds {}: a file holds one format",
                format.describe(),
                first.describe()
            );
            problems.push(Diagnostic { line: number, message_index: None, key: None, message });
        }
    }
}

/// The error of a job with this method over this file; `None` when the file is valid.
pub fn job_error_for(
    report: &ValidationReport,
    which: DataFile,
    method: Method,
) -> Option<JobError> {
    let error = |code: ErrorCode, message: String| {
        Some(JobError { code, message, param: Some(which.param().to_owned()) })
    };
    if !report.problems.is_empty() {
        return error(which.code(), describe_problems(&report.problems));
    }
    if which == DataFile::Validation && report.examples == 0 {
        let message = "the validation file has 0 examples; at least 1 is needed".to_owned();
        return error(ErrorCode::InvalidValidationFile, message);
    }
    if which == DataFile::Training && report.examples < MIN_EXAMPLES {
        let message = format!(
            "the training file has {} examples; at least {MIN_EXAMPLES} are needed",
            report.examples
        );
        return error(ErrorCode::InvalidNExamples, message);
    }
    let format = report.format?;
    if method.takes(format) {
        return None;
    }
    let wanted = match method {
        Method::Supervised => "\"messages\", or \"prompt\" and \"completion\"",
        Method::Dpo => {
            "\"input\" with \"messages\", \"preferred_output\" and \"non_preferred_output\""
        }
    };
    let message = format!(
        "each line of the file is {}; the method {:?} takes lines with {wanted}",
        format.describe(),
        method.as_str()
    );
    error(which.code(), message)
}

/// The listed problems, a line each, and how many there are.
fn describe_problems(problems: &Diagnostics) -> String {
    let mut text = match problems.total {
        1 => "there is a problem in the file:".to_owned(),
        total => format!("there are {total} problems in the file:"),
    };
    for problem in &problems.listed {
        text.push_str(&format!("\n{problem}"));
    }
    let more = problems.total - problems.listed.len() as u64;
    if more > 0 {
        text.push_str(&format!("\nand {more} more"));
    }
    text
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const GOOD: &str =
        r#"{"messages":[{"role":"user","content":"a"},{"role":"assistant","content":"b"}]}"#;
    const PAIR: &str = r#"{"prompt":"a","completion":"b"}"#;

    fn validate(text: &str) -> ValidationReport {
        let mut checker = DataFileChecker::new();
        checker.feed(text.as_bytes());
        checker.finish()
    }

    #[test]
    fn a_malformed_line_seven_is_named() {
        let mut lines = [GOOD; 12];
        lines[6] = r#"{"messages": [}"#;
        let error =
            job_error_for(&validate(&lines.join("\n")), DataFile::Training, Method::Supervised)
                .expect("an error");
        assert_eq!(error.code, ErrorCode::InvalidTrainingFile);
        assert!(error.message.contains("line 7: not valid JSON"), "{}", error.message);
        assert_eq!(error.param.as_deref(), Some("training_file"));
    }

    #[test]
    fn nine_examples_are_too_few_for_training_and_enough_for_validation() {
        let report = validate(&[GOOD; 9].join("\n"));
        let error =
            job_error_for(&report, DataFile::Training, Method::Supervised).expect("an error");
        assert_eq!(error.code, ErrorCode::InvalidNExamples);
        assert!(error.message.contains("has 9 examples; at least 10"));
        assert_eq!(job_error_for(&report, DataFile::Validation, Method::Supervised), None);
        assert_eq!(
            job_error_for(
                &validate(&[GOOD; 10].join("\r\n")),
                DataFile::Training,
                Method::Supervised
            ),
            None
        );
        assert!(
            job_error_for(&validate("\n\n"), DataFile::Validation, Method::Supervised).is_some()
        );
    }

    #[test]
    fn mixed_formats_are_refused_with_both_lines() {
        let report = validate(&[GOOD, GOOD, PAIR, PAIR].join("\n"));
        assert_eq!(report.format, None);
        assert_eq!(report.problems.total, 1);
        let text = report.problems.listed[0].to_string();
        assert!(text.starts_with("line 3: this line holds a \"prompt\""), "{text}");
        assert!(text.contains("line 1 holds a chat"), "{text}");
        assert_eq!(validate(&[PAIR; 3].join("\n")).format, Some(Format::PromptCompletion));
    }

    #[test]
    fn a_file_of_another_methods_format_is_refused_with_both_formats() {
        let answer = r#"[{"role":"assistant","content":"b"}]"#;
        let other = answer.replace('b', "c");
        let preference = format!(
            r#"{{"input":{{"messages":[{{"role":"user","content":"a"}}]}},
            "preferred_output":{answer},"non_preferred_output":{other}}}"#
        )
        .replace('\n', "");
        let preferences = validate(&vec![preference; 10].join("\n"));
        assert_eq!(preferences.format, Some(Format::Preference));
        assert_eq!(job_error_for(&preferences, DataFile::Training, Method::Dpo), None);
        for (report, method, wanted) in [
            (&preferences, Method::Supervised, "is a preference (\"input\" with two answers)"),
            (&validate(&[GOOD; 10].join("\n")), Method::Dpo, "is a chat (\"messages\")"),
        ] {
            let error = job_error_for(report, DataFile::Training, method).expect("an error");
            assert_eq!(error.code, ErrorCode::InvalidTrainingFile);
            assert!(error.message.contains(wanted), "{}", error.message);
        }
    }

    #[test]
    fn a_file_that_is_no_jsonl_has_one_problem_however_many_lines_it_has() {
        let list = format!("[{}]", [GOOD; 12].join(",\n"));
        let report = validate(&list);
        assert_eq!((report.examples, report.problems.total, report.warnings.total), (0, 1, 0));
        let error =
            job_error_for(&report, DataFile::Training, Method::Supervised).expect("an error");
        assert_eq!(error.code, ErrorCode::InvalidTrainingFile);
        let wanted =
            "line 1: the file is one JSON list of 12 examples: JSONL has one example a line";
        assert!(error.message.contains(wanted), "{}", error.message);
    }

    #[test]
    fn fifty_problems_are_listed_and_all_are_counted() {
        let report = validate(&["{}"; 70].join("\n"));
        assert_eq!((report.problems.listed.len(), report.problems.total), (50, 70));
        let error =
            job_error_for(&report, DataFile::Training, Method::Supervised).expect("an error");
        assert!(error.message.contains("there are 70 problems"));
        assert!(error.message.ends_with("and 20 more"));
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_checker_panic_and_chunks_do_not_matter(
            bytes in prop::collection::vec(any::<u8>(), 0..400), chunk in 1usize..50,
        ) {
            let mut whole = DataFileChecker::new();
            whole.feed(&bytes);
            let mut parts = DataFileChecker::new();
            for part in bytes.chunks(chunk) {
                parts.feed(part);
            }
            prop_assert_eq!(whole.finish(), parts.finish());
        }

        #[test]
        fn a_bad_line_keeps_its_number_among_blank_lines(
            blanks in prop::collection::vec(0usize..4, 1..8), crlf in any::<bool>(),
        ) {
            let end = if crlf { "\r\n" } else { "\n" };
            let mut text = String::new();
            for blanks in &blanks {
                text.push_str(&end.repeat(*blanks));
                text.push_str(GOOD);
                text.push_str(end);
            }
            text.push_str("oops");
            let line = blanks.iter().map(|blanks| blanks + 1).sum::<usize>() as u64 + 1;
            let report = validate(&text);
            prop_assert_eq!(report.problems.total, 1);
            prop_assert_eq!(report.problems.listed[0].line, line);
        }
    }
}
