//! hone: a fine-tuning API server that a team runs itself.
//!
//! The map, from the outermost room inwards. A room imports only rooms that stand below it, and rooms of
//! one line do not import each other; `tests/it/architecture.rs` keeps it so, and that the rooms of
//! [`train`] keep theirs. `docs/architecture.md` walks one job through the files.
//!
//! 1. [`cli`]: the commands. Wires everything together.
//! 2. [`http`]: a request arrives: routes, errors in OpenAI's shape, pages of lists.
//! 3. [`validate`]: is it acceptable? Pure functions over uploads, jobs and hyperparameters.
//! 4. [`executor`]: one job at a time. Supervises one trainer process; the only room that knows both
//!    the queue and the engine.
//! 5. [`queue`]: which job is next, and who holds it. [`webhooks`]: who is told of its end.
//!    [`export`]: a model in the formats of other programs.
//! 6. [`store`]: rows that outlive the server. [`blobs`]: their large files.
//! 7. [`serve`]: answers by a base model and adapters.
//! 8. [`train`]: the engine, and one run of it. Knows nothing of HTTP, SQL or jobs.
//! 9. [`artifacts`]: the files that a job leaves.
//! 10. [`base_models`]: base models on disk and how they come there. [`graders`]: scores of answers.
//!     [`config`]: settings of the commands.
//! 11. [`domain`]: the records that every room speaks of, and the public error codes.
//! 12. [`dataset`]: lines of a data file to examples. [`device`]: what jobs are trained on.
//! 13. [`util`]: small tools that know nothing of hone.

pub mod cli;

pub mod http;

pub mod validate;

pub mod executor;

pub mod export;
pub mod queue;
pub mod webhooks;

pub mod blobs;
pub mod store;

pub mod serve;

pub mod train;

pub mod artifacts;

pub mod base_models;
pub mod config;
pub mod graders;

pub mod domain;

pub mod dataset;
pub mod device;

pub mod util;
