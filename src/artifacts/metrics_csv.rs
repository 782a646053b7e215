//! The step metrics as CSV: first the five columns that OpenAI documents, then hone's own. Cells are numbers
//! or empty, because clients parse every cell as a number.

use std::fmt::Write;

use crate::domain::job::StepMetrics;

/// The file's name among the result files.
pub const FILE_NAME: &str = "step_metrics.csv";

/// The first line.
const HEADER: &str = "step,train_loss,train_accuracy,valid_loss,valid_mean_token_accuracy,\
                      full_valid_loss,full_valid_mean_token_accuracy,learning_rate,epoch";

/// The whole file, one line for each optimiser step.
pub fn render(rows: &[StepMetrics]) -> String {
    let mut text = format!("{HEADER}\n");
    for row in rows {
        let cells = [
            Some(row.train_loss),
            Some(row.train_mean_token_accuracy),
            row.valid_loss,
            row.valid_mean_token_accuracy,
            row.full_valid_loss,
            row.full_valid_mean_token_accuracy,
        ];
        // Writing to a String cannot fail.
        let _ = write!(text, "{}", row.step);
        for cell in cells {
            text.push(',');
            if let Some(value) = cell {
                let _ = write!(text, "{value:.6}");
            }
        }
        let _ = writeln!(text, ",{:e},{:.6}", row.learning_rate, row.epoch);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_are_numbers_or_empty_and_step_comes_first() {
        let rows = [
            StepMetrics { step: 1, train_loss: 1.5, learning_rate: 2e-4, ..Default::default() },
            StepMetrics { step: 2, train_loss: 1.25, valid_loss: Some(2.0), ..Default::default() },
        ];
        let text = render(&rows);
        assert!(text.starts_with("step,train_loss,train_accuracy,valid_loss,"), "{text}");
        for line in text.lines().skip(1) {
            assert_eq!(line.split(',').count(), 9, "{line}");
            for cell in line.split(',').filter(|cell| !cell.is_empty()) {
                cell.parse::<f64>().expect("a number");
            }
        }
        assert!(text.lines().nth(2).expect("a second row").starts_with("2,1.250000,0.000000,2.0"));
    }
}
