//! Promises of jobs under way: faults, kills, devices.

pub mod device;
#[cfg(feature = "fail-points")]
pub mod fail_points;
pub mod faults;
pub mod jobs;
pub mod kills;
pub mod shipped_binary;
pub mod shortages;
