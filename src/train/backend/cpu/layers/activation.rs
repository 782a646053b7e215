//! Activation functions of the MLP, forward and backward.

use rayon::prelude::*;

use crate::train::backend::Activation;
use crate::train::backend::cpu::isa::Isa;
use crate::train::backend::cpu::vector;

/// Elements that one task takes.
const PART: usize = 16 * 1024;

/// `out` becomes the activation of `gate`, times `up`.
pub fn gated_forward(isa: Isa, activation: Activation, gate: &[f32], up: &[f32], out: &mut [f32]) {
    let parts = out.par_chunks_mut(PART).zip(gate.par_chunks(PART)).zip(up.par_chunks(PART));
    parts.for_each(|((out, gate), up)| match activation {
        Activation::Silu => silu_gated(isa, gate, up, out),
        Activation::GeluTanh => gelu_tanh_gated(isa, gate, up, out),
        Activation::Gelu => {
            for ((out, gate), up) in out.iter_mut().zip(gate).zip(up) {
                *out = gelu(*gate).0 * up;
            }
        }
    });
}

/// Backward of [`gated_forward`]: `gate` becomes the gate's gradient and `up` the up's.
pub fn gated_backward(
    isa: Isa,
    activation: Activation,
    gate: &mut [f32],
    up: &mut [f32],
    gradient: &[f32],
) {
    let parts = gate.par_chunks_mut(PART).zip(up.par_chunks_mut(PART));
    parts.zip(gradient.par_chunks(PART)).for_each(|((gate, up), gradient)| match activation {
        Activation::Silu => silu_gated_backward(isa, gate, up, gradient),
        Activation::GeluTanh => gelu_tanh_gated_backward(isa, gate, up, gradient),
        Activation::Gelu => {
            for ((gate, up), gradient) in gate.iter_mut().zip(up).zip(gradient) {
                let (value, derivative) = gelu(*gate);
                *gate = gradient * *up * derivative;
                *up = gradient * value;
            }
        }
    });
}

/// `out` becomes the activation of `x`.
pub fn forward(isa: Isa, activation: Activation, x: &[f32], out: &mut [f32]) {
    let parts = out.par_chunks_mut(PART).zip(x.par_chunks(PART));
    parts.for_each(|(out, x)| activation_row(isa, activation, x, out));
}

/// Backward of [`forward`]: `gradient` becomes the input's.
pub fn backward(isa: Isa, activation: Activation, x: &[f32], gradient: &mut [f32]) {
    let parts = gradient.par_chunks_mut(PART).zip(x.par_chunks(PART));
    parts.for_each(|(gradient, x)| activation_backward_row(isa, activation, x, gradient));
}

/// x · sigmoid(x) and its derivative.
#[inline(always)]
fn silu(x: f32) -> (f32, f32) {
    let sigmoid = 1.0 / (1.0 + vector::exp(-x));
    (x * sigmoid, sigmoid * (1.0 + x * (1.0 - sigmoid)))
}

/// ½x(1 + tanh(√(2/π)(x + 0.044715x³))) and its derivative (Hendrycks & Gimpel 2016).
#[inline(always)]
fn gelu_tanh(x: f32) -> (f32, f32) {
    const ROOT: f32 = 0.797_884_6;
    const CUBIC: f32 = 0.044_715;
    let tanh = vector::tanh(ROOT * (x + CUBIC * x * x * x));
    let inner_derivative = ROOT * (1.0 + 3.0 * CUBIC * x * x);
    (0.5 * x * (1.0 + tanh), 0.5 * (1.0 + tanh) + 0.5 * x * (1.0 - tanh * tanh) * inner_derivative)
}

/// x · Φ(x) and its derivative Φ(x) + x · φ(x).
fn gelu(x: f32) -> (f32, f32) {
    let cdf = 0.5 * (1.0 + libm::erff(x * std::f32::consts::FRAC_1_SQRT_2));
    let density = 0.398_942_3 * (-0.5 * x * x).exp();
    (x * cdf, cdf + x * density)
}

/// The activation function and its derivative.
#[inline(always)]
fn value_and_derivative(activation: Activation, x: f32) -> (f32, f32) {
    match activation {
        Activation::Silu => silu(x),
        Activation::GeluTanh => gelu_tanh(x),
        Activation::Gelu => gelu(x),
    }
}

vector::for_each_isa! {
    /// The activation of each element.
    pub fn activation_row(isa, activation: Activation, x: &[f32], out: &mut [f32]) {
        for (out, x) in out.iter_mut().zip(x) {
            *out = value_and_derivative(activation, *x).0;
        }
    }
}

vector::for_each_isa! {
    /// Gradients through the activation.
    pub fn activation_backward_row(isa, activation: Activation, x: &[f32], gradient: &mut [f32]) {
        for (gradient, x) in gradient.iter_mut().zip(x) {
            *gradient *= value_and_derivative(activation, *x).1;
        }
    }
}

vector::for_each_isa! {
    /// silu(gate) · up.
    pub fn silu_gated(isa, gate: &[f32], up: &[f32], out: &mut [f32]) {
        for ((out, gate), up) in out.iter_mut().zip(gate).zip(up) {
            *out = silu(*gate).0 * up;
        }
    }
}

vector::for_each_isa! {
    /// gelu(gate) · up.
    pub fn gelu_tanh_gated(isa, gate: &[f32], up: &[f32], out: &mut [f32]) {
        for ((out, gate), up) in out.iter_mut().zip(gate).zip(up) {
            *out = gelu_tanh(*gate).0 * up;
        }
    }
}

vector::for_each_isa! {
    /// Gradients through silu(gate) · up, in place.
    pub fn silu_gated_backward(isa, gate: &mut [f32], up: &mut [f32], gradient: &[f32]) {
        for ((gate, up), gradient) in gate.iter_mut().zip(up).zip(gradient) {
            let (value, derivative) = silu(*gate);
            *gate = gradient * *up * derivative;
            *up = gradient * value;
        }
    }
}

vector::for_each_isa! {
    /// Gradients through gelu(gate) · up, in place.
    pub fn gelu_tanh_gated_backward(isa, gate: &mut [f32], up: &mut [f32], gradient: &[f32]) {
        for ((gate, up), gradient) in gate.iter_mut().zip(up).zip(gradient) {
            let (value, derivative) = gelu_tanh(*gate);
            *gate = gradient * *up * derivative;
            *up = gradient * value;
        }
    }
}
