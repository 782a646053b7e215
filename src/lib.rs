//! hone: a fine-tuning API server that a team runs itself.
//!
//! The path of a job, stage by stage, in the order in which a request meets them:
//!
//! 1. [`http`]: a request arrives: routes, errors in OpenAI's shape, pagination.
//! 2. [`validate`]: is it acceptable? Pure functions over uploads and hyperparameters.
//! 3. [`store`], [`blobs`], [`queue`], [`webhooks`]: remember it, keep the big bytes, whose turn is
//!    it, who is told of its end.
//! 4. [`executor`]: one job at a time; supervises one trainer process. The only stage that
//!    knows both the queue and the engine.
//! 5. [`serve`]: answer chat with a base model and an adapter.
//!    [`export`]: hand a model out in the formats of other programs.
//! 6. [`train`]: the engine: knows nothing of HTTP, SQL or jobs.
//! 7. [`artifacts`]: the files that a job leaves behind.
//!
//! A stage imports only stages that stand below it in this list (the executor, which takes its
//! jobs from stage 3, counts as standing above that), and the domain modules ([`job`], [`file`],
//! [`upload`], [`model`], [`project`], [`api_key`], [`ids`], [`clock`], [`config`], [`device`],
//! [`error_code`], [`dataset`], [`base_models`], [`graders`], [`atomic_file`], [`hex`],
//! [`reason`], [`repeated_key`], [`webhook`]); `tests/it/architecture.rs` keeps it so. [`cli`] is
//! the outermost layer: it wires the stages together for each command.

pub mod cli;

pub mod http;

pub mod validate;

pub mod blobs;
pub mod queue;
pub mod store;
pub mod webhooks;

pub mod executor;

pub mod export;

pub mod serve;

pub mod train;

pub mod artifacts;

pub mod domain;

pub mod base_models;
pub mod config;
pub mod dataset;
pub mod device;
pub mod graders;

pub mod util;
