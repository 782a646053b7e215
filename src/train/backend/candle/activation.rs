//! Activation curves and their slopes.

use candle_core::Tensor;

use crate::train::backend::Activation;
use crate::train::backend::Outcome;

/// The curve.
pub fn value(curve: Activation, x: &Tensor) -> Outcome<Tensor> {
    Ok(match curve {
        Activation::Silu => x.silu()?,
        Activation::GeluTanh => x.gelu()?,
        Activation::Gelu => x.gelu_erf()?,
    })
}

/// The curve and its derivative.
pub fn value_and_slope(curve: Activation, x: &Tensor) -> Outcome<(Tensor, Tensor)> {
    match curve {
        Activation::Silu => {
            let sigmoid = candle_nn::ops::sigmoid(x)?;
            let slope = ((x * (1.0 - &sigmoid)?)? + 1.0)?.mul(&sigmoid)?;
            Ok(((x * sigmoid)?, slope))
        }
        Activation::GeluTanh => {
            let root = (2.0 / std::f64::consts::PI).sqrt();
            let square = x.sqr()?;
            let inner = ((x * ((&square * 0.044715)? + 1.0)?)? * root)?;
            let bent = inner.tanh()?;
            let inner_slope = (((square * (3.0 * 0.044715))? + 1.0)? * root)?;
            let half = ((&bent + 1.0)? * 0.5)?;
            let steep = ((x * 0.5)? * (1.0 - bent.sqr()?)?)?.mul(&inner_slope)?;
            Ok(((x * &half)?, (half + steep)?))
        }
        Activation::Gelu => {
            let below = (((x / std::f64::consts::SQRT_2)?.erf()? + 1.0)? * 0.5)?;
            let density = ((x.sqr()? * -0.5)?.exp()? * (0.5 / std::f64::consts::PI).sqrt())?;
            Ok(((x * &below)?, (below + (x * density)?)?))
        }
    }
}
