//! `hone bench`: measures the speed of this machine.

mod machine;
mod peak;
mod serve;
mod train;
mod work;

use clap::{Args, Subcommand};

/// What to measure.
#[derive(Debug, Args)]
pub struct BenchArgs {
    #[command(subcommand)]
    command: BenchCommand,
}

#[derive(Debug, Subcommand)]
enum BenchCommand {
    /// Take training steps and say how long they took: LoRA on all linear layers, AdamW.
    Train(train::BenchTrainArgs),
    /// Say how fast a model reads prompts and writes answers.
    Serve(serve::BenchServeArgs),
    /// Say how fast the CPU multiplies and adds at best, on each level of its instructions.
    Peak(peak::BenchPeakArgs),
}

/// Runs the command.
pub fn bench(args: &BenchArgs) -> anyhow::Result<()> {
    match &args.command {
        BenchCommand::Train(args) => train::train(args),
        BenchCommand::Serve(args) => serve::serve(args),
        BenchCommand::Peak(args) => peak::peak(args),
    }
}
