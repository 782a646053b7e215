//! Stage 6, the engine. It knows nothing of HTTP, SQL or jobs: it reads a base model and examples
//! from files, trains, and says how it goes in [`protocol::Progress`] messages.

pub mod backend;
pub mod data;
pub mod decoder;
pub mod device;
pub mod engine;
pub mod model;
pub mod protocol;
pub mod rng;
pub mod run;
