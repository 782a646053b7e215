//! The outermost layer: one file for each command, which wires the stages together.

pub mod bench;
pub mod demo;
pub mod export;
pub mod keys;
pub mod models;
pub mod serve;
pub mod trainer;
pub mod verify;

use clap::{Parser, Subcommand};

use crate::util::clock;

/// A fine-tuning API server that you run yourself.
#[derive(Debug, Parser)]
#[command(version, about, long_about = None)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve OpenAI's fine-tuning API and train its jobs.
    Serve(serve::ServeArgs),
    /// Show the whole product on a small real model, in a few minutes.
    Demo(demo::DemoArgs),
    /// Create, list and revoke API keys.
    Keys(keys::KeysArgs),
    /// Download, list and remove base models.
    Models(models::ModelsArgs),
    /// Export a fine-tuned model to the format of another program.
    Export(export::ExportArgs),
    /// Check an adapter or a model against its certificate.
    Verify(verify::VerifyArgs),
    /// Measure how fast training is on this machine.
    Bench(bench::BenchArgs),
    /// One training run, started by the server.
    #[command(hide = true)]
    Trainer(trainer::TrainerArgs),
}

impl Cli {
    /// Default of `RUST_LOG`: a server logs its progress, other commands print theirs.
    pub fn default_log_filter(&self) -> &'static str {
        match self.command {
            Command::Serve(_) | Command::Trainer(_) => "info",
            Command::Demo(_)
            | Command::Keys(_)
            | Command::Models(_)
            | Command::Bench(_)
            | Command::Export(_)
            | Command::Verify(_) => "warn",
        }
    }

    /// Runs the command that was asked for.
    pub fn run(self) -> anyhow::Result<()> {
        clock::check()?;
        match self.command {
            Command::Serve(args) => serve::serve(&args),
            Command::Demo(args) => demo::demo(&args),
            Command::Keys(args) => keys::keys(&args),
            Command::Models(args) => models::models(&args),
            Command::Export(args) => export::export(&args),
            Command::Verify(args) => verify::verify(&args),
            Command::Bench(args) => bench::bench(&args),
            Command::Trainer(args) => trainer::trainer(&args),
        }
    }
}
