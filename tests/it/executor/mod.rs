//! Promises of jobs under way: faults, kills, devices.

pub mod device;
pub mod faults;
pub mod jobs;
pub mod kills;
