//! The learning rate of a step: a pure function of the step, so that nothing needs to be kept for a
//! run to go on.

use crate::domain::job::{ResolvedHyperparameters, Schedule};

/// Learning rate of optimiser step `step` (from 1) of `total`. It rises in a straight line over the
/// warm-up, is at its peak in the step after it, and is never zero: a step that moves nothing would
/// be wasted.
pub fn learning_rate(values: &ResolvedHyperparameters, step: u64, total: u64) -> f64 {
    let peak = values.learning_rate;
    let warm_up = (values.warmup_ratio * total as f64).ceil().min(total as f64) as u64;
    if step <= warm_up {
        return peak * step as f64 / (warm_up + 1) as f64;
    }
    let left = (total + 1 - step.min(total)) as f64 / (total - warm_up) as f64;
    let fallen = match values.lr_scheduler_type {
        Schedule::Constant => 1.0,
        Schedule::Linear => left,
        Schedule::Cosine => 0.5 * (1.0 - (std::f64::consts::PI * left).cos()),
    };
    let least = values.min_lr_ratio.unwrap_or(0.0);
    peak * (least + (1.0 - least) * fallen)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::job::Hyperparameters;
    use crate::train::run::plan::{DataSize, ModelSize, resolve};

    fn rates(kind: Schedule, warmup_ratio: f64, total: u64) -> Vec<f64> {
        rates_to(None, kind, warmup_ratio, total)
    }

    fn rates_to(
        min_lr_ratio: Option<f64>,
        kind: Schedule,
        warmup_ratio: f64,
        total: u64,
    ) -> Vec<f64> {
        let asked = Hyperparameters {
            min_lr_ratio,
            lr_scheduler_type: Some(kind),
            warmup_ratio: Some(warmup_ratio),
            learning_rate: Some(1.0),
            ..Default::default()
        };
        let data = DataSize { examples: 100, validation_share: None };
        let model = ModelSize { context: 1000, layers: 2 };
        let values = resolve(&asked, &data, &model).hyperparameters;
        (1..=total).map(|step| learning_rate(&values, step, total)).collect()
    }

    #[test]
    fn the_rate_falls_to_a_share_of_its_peak_where_one_is_stated() {
        for kind in [Schedule::Linear, Schedule::Cosine] {
            let (plain, held) = (rates(kind, 0.1, 100), rates_to(Some(0.2), kind, 0.1, 100));
            assert_eq!(plain[..11], held[..11], "the rise is the same");
            assert!(plain[99] < 0.02 && (held[99] - 0.2).abs() < 0.02, "{held:?}");
            assert!(held.iter().skip(10).all(|rate| *rate >= 0.2));
            assert_eq!(rates_to(Some(1.0), kind, 0.1, 100), rates(Schedule::Constant, 0.1, 100));
        }
    }

    #[test]
    fn the_rate_rises_to_its_peak_then_falls_and_is_never_zero() {
        for kind in [Schedule::Linear, Schedule::Cosine, Schedule::Constant] {
            for (ratio, total) in [(0.0, 1), (0.03, 1), (0.03, 10), (0.1, 100), (1.0, 5)] {
                let rates = rates(kind, ratio, total);
                assert!(rates.iter().all(|rate| *rate > 0.0 && *rate <= 1.0), "{rates:?}");
                let peak = (ratio * total as f64).ceil() as usize;
                assert!(rates[..peak].is_sorted(), "{rates:?}");
                assert!(rates[peak..].is_sorted_by(|a, b| a >= b), "{rates:?}");
                if peak < rates.len() {
                    assert_eq!(rates[peak], 1.0);
                }
            }
        }
    }
}
