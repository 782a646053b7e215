//! Tokens and log-probabilities as JSON can express them.

/// The bytes of a token as text. Bytes that are not whole characters are escaped after `prefix`, as OpenAI
/// does.
pub(in crate::http) fn token_text(bytes: &[u8], prefix: &str) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) => text.to_owned(),
        Err(_) => {
            let escaped = bytes.iter().map(|byte| format!("\\x{byte:02x}"));
            format!("{prefix}{}", escaped.collect::<String>())
        }
    }
}

/// A log-probability as a finite number: OpenAI writes -9999 for a probability of zero.
pub(in crate::http) fn finite(log_probability: f64) -> f64 {
    if log_probability.is_finite() { log_probability } else { -9999.0 }
}
