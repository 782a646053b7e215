//! What every request passes before its handler: keys, origins, rates.

pub mod authenticate;
pub mod cors;
pub mod rate_limit;
