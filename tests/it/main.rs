//! Every integration test, in one binary: a module for each promise.

#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "tests fail by panicking, and say on the terminal what they could not run"
)]

mod architecture;
mod clients;
mod docs;
mod executor;
mod formats;
mod http;
mod serve;
mod store;
mod support;
mod train;

/// Counts allocations where a test asks it to; else it passes them on.
#[global_allocator]
static ALLOCATOR: dhat::Alloc = dhat::Alloc;
