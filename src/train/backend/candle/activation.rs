//! Activation functions and their derivatives.

use candle_core::Tensor;

use crate::train::backend::Activation;
use crate::train::backend::Outcome;

/// The activation function.
pub fn value(activation: Activation, x: &Tensor) -> Outcome<Tensor> {
    Ok(match activation {
        Activation::Silu => x.silu()?,
        Activation::GeluTanh => x.gelu()?,
        Activation::Gelu => x.gelu_erf()?,
    })
}

/// The activation and its derivative.
pub fn value_and_derivative(activation: Activation, x: &Tensor) -> Outcome<(Tensor, Tensor)> {
    match activation {
        Activation::Silu => {
            let sigmoid = candle_nn::ops::sigmoid(x)?;
            let value = (x * &sigmoid)?;
            // σ + x·σ·(1 - σ)
            let derivative = ((&value * (1.0 - &sigmoid)?)? + sigmoid)?;
            Ok((value, derivative))
        }
        Activation::GeluTanh => {
            let root = (2.0 / std::f64::consts::PI).sqrt();
            let square = x.sqr()?;
            let inner = ((x * ((&square * 0.044715)? + 1.0)?)? * root)?;
            let tanh = inner.tanh()?;
            let inner_derivative = (((square * (3.0 * 0.044715))? + 1.0)? * root)?;
            let half = ((&tanh + 1.0)? * 0.5)?;
            let rest = ((x * 0.5)? * (1.0 - tanh.sqr()?)?)?.mul(&inner_derivative)?;
            Ok(((x * &half)?, (half + rest)?))
        }
        Activation::Gelu => {
            let cdf = (((x / std::f64::consts::SQRT_2)?.erf()? + 1.0)? * 0.5)?;
            let density = ((x.sqr()? * -0.5)?.exp()? * (0.5 / std::f64::consts::PI).sqrt())?;
            Ok(((x * &cdf)?, (cdf + (x * density)?)?))
        }
    }
}
