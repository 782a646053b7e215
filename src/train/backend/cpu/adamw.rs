//! One AdamW step over a tensor (Loshchilov & Hutter 2019), in the order of operations of
//! `torch.optim.AdamW`.

use super::isa::Isa;
use super::vector;
use crate::train::engine::AdamWStep;

/// What a step multiplies with, from its learning rate and number.
#[derive(Debug, Clone, Copy)]
pub struct Rates {
    gradient_factor: f32,
    keep: f32,
    beta1: f32,
    beta2: f32,
    step_size: f32,
    second_root: f32,
    epsilon: f32,
}

impl Rates {
    /// The rates of `step`; the gradient is scaled by `gradient_factor` first.
    pub fn new(step: &AdamWStep, gradient_factor: f64) -> Self {
        let correction1 = 1.0 - step.beta1.powf(step.step as f64);
        let correction2 = 1.0 - step.beta2.powf(step.step as f64);
        Self {
            gradient_factor: gradient_factor as f32,
            keep: (1.0 - step.learning_rate * step.weight_decay) as f32,
            beta1: step.beta1 as f32,
            beta2: step.beta2 as f32,
            step_size: (step.learning_rate / correction1) as f32,
            second_root: correction2.sqrt() as f32,
            epsilon: step.epsilon as f32,
        }
    }
}

vector::for_each_isa! {
    /// Moves the parameter and both moments.
    pub fn update(isa, parameter: &mut [f32], gradient: &[f32], first: &mut [f32], second: &mut [f32], rates: &Rates) {
        let values = parameter.iter_mut().zip(gradient).zip(first).zip(second);
        for (((parameter, gradient), first), second) in values {
            let gradient = gradient * rates.gradient_factor;
            *first += (gradient - *first) * (1.0 - rates.beta1);
            *second = *second * rates.beta2 + (1.0 - rates.beta2) * gradient * gradient;
            let denominator = second.sqrt() / rates.second_root + rates.epsilon;
            *parameter = *parameter * rates.keep - rates.step_size * (*first / denominator);
        }
    }
}
