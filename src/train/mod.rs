//! The engine, and one run of it: reads a base model and examples from files, trains, and says how it goes in
//! [`protocol::Progress`] messages. It knows nothing of HTTP, SQL or jobs' queues.
//!
//! The rooms, from the outermost inwards; each imports only those below it:
//!
//! - [`run`]: one run, top to bottom: set-up, the training loop, evaluation, checkpoints, report; the
//!   dry run.
//! - [`engine`]: a model on one device and what trains of it: micro-batches, gradients, answers.
//! - [`decoder`]: the one decoder, forward and backward, over a [`backend::Backend`].
//! - [`data`]: lines of a data file to token sequences with their loss mask.
//! - [`model`]: what a base model's folder holds: configuration, weights, tokenizer, chat template.
//! - [`backend`]: operations on a device: hone's own CPU kernels, and candle.
//! - [`device`]: which device there is, and its memory.
//! - [`protocol`]: the messages between a trainer and its supervisor. [`rng`]: random numbers by seed
//!   and purpose.

pub mod backend;
pub mod data;
pub mod decoder;
pub mod device;
pub mod engine;
pub mod model;
pub mod protocol;
pub mod rng;
pub mod run;
