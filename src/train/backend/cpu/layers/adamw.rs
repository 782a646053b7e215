//! One AdamW step over a tensor (Loshchilov & Hutter 2019), in the order of operations of
//! `torch.optim.AdamW`.

use crate::train::backend::AdamWStep;
use crate::train::backend::cpu::isa::Isa;
use crate::train::backend::cpu::vector;

/// Factors of a step, from its learning rate and number.
#[derive(Debug, Clone, Copy)]
pub struct AdamWFactors {
    gradient_factor: f32,
    keep: f32,
    /// 1 - beta1, computed before either is rounded: 1 minus a rounded 0.999 is off by 1.3e-5, and half of
    /// that adds up every step.
    first_share: f32,
    beta2: f32,
    /// 1 - beta2, likewise.
    second_share: f32,
    step_size: f32,
    second_root: f32,
    epsilon: f32,
}

impl AdamWFactors {
    /// The factors of `step`; the gradient is scaled by `gradient_factor` first.
    pub fn new(step: &AdamWStep, gradient_factor: f64) -> Self {
        let correction1 = 1.0 - step.beta1.powf(step.step as f64);
        let correction2 = 1.0 - step.beta2.powf(step.step as f64);
        Self {
            gradient_factor: gradient_factor as f32,
            keep: (1.0 - step.learning_rate * step.weight_decay) as f32,
            first_share: (1.0 - step.beta1) as f32,
            beta2: step.beta2 as f32,
            second_share: (1.0 - step.beta2) as f32,
            step_size: (step.learning_rate / correction1) as f32,
            second_root: correction2.sqrt() as f32,
            epsilon: step.epsilon as f32,
        }
    }
}

vector::for_each_isa! {
    /// Updates the parameter and both moments.
    pub fn update(isa, parameter: &mut [f32], gradient: &[f32], first: &mut [f32], second: &mut [f32], factors: &AdamWFactors) {
        let values = parameter.iter_mut().zip(gradient).zip(first).zip(second);
        for (((parameter, gradient), first), second) in values {
            let gradient = gradient * factors.gradient_factor;
            *first += (gradient - *first) * factors.first_share;
            *second = *second * factors.beta2 + factors.second_share * gradient * gradient;
            let denominator = second.sqrt() / factors.second_root + factors.epsilon;
            *parameter = *parameter * factors.keep - factors.step_size * (*first / denominator);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The same in float64.
    fn exact(step: &AdamWStep, values: &mut [f64; 3], gradient: f64) {
        let [parameter, first, second] = values;
        *first = step.beta1 * *first + (1.0 - step.beta1) * gradient;
        *second = step.beta2 * *second + (1.0 - step.beta2) * gradient * gradient;
        let first_hat = *first / (1.0 - step.beta1.powf(step.step as f64));
        let second_hat = *second / (1.0 - step.beta2.powf(step.step as f64));
        *parameter -= step.learning_rate
            * (step.weight_decay * *parameter + first_hat / (second_hat.sqrt() + step.epsilon));
    }

    #[test]
    fn steps_stay_within_rounding_of_those_in_float64() {
        let mut step = AdamWStep {
            learning_rate: 0.01,
            beta1: 0.9,
            beta2: 0.999,
            epsilon: 1e-8,
            weight_decay: 0.01,
            clip: 1.0,
            step: 0,
        };
        let mut largest = 0.0f64;
        let (mut parameter, mut first, mut second) = ([0.0f32], [0.0f32], [0.0f32]);
        let mut wanted = [0.0f64; 3];
        for number in 1..=50u64 {
            step.step = number;
            // Of one sign, so that errors of the step's size add up.
            let gradient = 0.02 + 0.01 * ((number * 7 % 11) as f32);
            let factors = AdamWFactors::new(&step, 1.0);
            update(Isa::best(), &mut parameter, &[gradient], &mut first, &mut second, &factors);
            exact(&step, &mut wanted, f64::from(gradient));
            largest = largest.max(wanted[0].abs());
            let off = (f64::from(parameter[0]) - wanted[0]).abs() / largest;
            assert!(off < 1e-6, "step {number}: {} {}", parameter[0], wanted[0]);
        }
    }
}
