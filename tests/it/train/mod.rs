//! Promises of the engine: numbers, templates, runs.

pub mod allocations;
pub mod bench;
pub mod frozen;
pub mod golden;
pub mod golden_differences;
pub mod gpu_bench;
pub mod gradients;
pub mod jinja_idioms;
pub mod real_model;
pub mod real_templates;
pub mod recipe;
pub mod reference_run;
pub mod template_families;
pub mod template_rule;
pub mod templates;
pub mod training;
pub mod tuning;
pub mod whole_models;
