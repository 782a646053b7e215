//! The outermost layer: one file for each command, which wires the stages together.

pub mod trainer;
