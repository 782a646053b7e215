//! The clip of the gradients' global norm, as `torch.nn.utils.clip_grad_norm_` computes it.

/// Factor on every gradient, for gradients of this global norm: min(1, `max_norm` / (norm + 1e-6)).
pub(super) fn clip_factor(norm: f64, max_norm: f64) -> f64 {
    (max_norm / (norm + 1e-6)).min(1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_norm_above_the_limit_is_scaled_down_to_it_and_others_stay() {
        assert_eq!(clip_factor(0.5, 1.0), 1.0);
        assert!((clip_factor(4.0, 1.0) * 4.0 - 1.0).abs() < 1e-6);
        assert_eq!(clip_factor(0.0, 1.0), 1.0);
    }
}
