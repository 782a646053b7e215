//! `hone trainer`: one run in a process of its own, which the executor starts and talks to.
//!
//! Reads a [`RunSpec`] line and then [`Control`] lines from standard input, writes [`Progress`]
//! lines to standard output. See `train::protocol`.

use std::io::{BufRead, Write};
use std::sync::mpsc::{Receiver, TryRecvError, channel};

use anyhow::Context;
use clap::Args;

use crate::device::Device;
use crate::train::engine::{BackendKind, on_a_computing_thread};
use crate::train::protocol::{Control, Progress, RunSpec};
use crate::train::run::dry_run::{MachineSpeed, dry_run};
use crate::train::run::run;

/// How much lower than the server's the trainer's priority is: the server answers first.
const NICENESS: i32 = 5;

/// The same of a trainer that only looks: a run under way goes first.
const NICENESS_OF_PREVIEW: i32 = 10;

/// Settings of a trainer, from the server that starts it.
#[derive(Debug, Clone, Args)]
pub struct TrainerArgs {
    /// Device to train on: cpu, cuda or cuda:N.
    #[arg(long, default_value = "cpu", value_name = "DEVICE")]
    device: Device,
    /// Run at the priority that it is started with instead of a lower one.
    #[arg(long)]
    keep_priority: bool,
    /// Say what the run would be, and do not run.
    #[arg(long)]
    preview: bool,
}

/// Runs until the specification is fulfilled, cancelled or refused.
pub fn trainer(args: &TrainerArgs) -> anyhow::Result<()> {
    if args.preview {
        return say_preview(args.device);
    }
    if !args.keep_priority {
        lower_priority(NICENESS);
    }
    let spec = read_spec()?;
    let controls = listen()?;
    on_a_computing_thread(|| train(&spec, args.device, controls))
}

/// Runs, saying how it goes.
fn train(spec: &RunSpec, device: Device, controls: Receiver<Control>) -> anyhow::Result<()> {
    let mut output = std::io::stdout().lock();
    let mut failure: Option<std::io::Error> = None;
    let mut sink = |progress: Progress| {
        if let Err(error) = say(&mut output, &progress) {
            failure.get_or_insert(error);
        }
    };
    let mut orders = || match controls.try_recv() {
        Ok(control) => Some(control),
        Err(TryRecvError::Empty) => None,
        // The reader says Stop before it ends, so this is after that.
        Err(TryRecvError::Disconnected) => Some(Control::Stop),
    };
    run(spec, BackendKind::of(device), &mut sink, &mut orders);
    match failure {
        Some(error) => Err(error).context("telling the supervisor how it goes"),
        None => Ok(()),
    }
}

/// Says what the run would be.
fn say_preview(device: Device) -> anyhow::Result<()> {
    let spec = read_spec()?;
    // Nothing is written that an end in the middle could tear.
    std::thread::Builder::new().name("supervisor".to_owned()).spawn(|| {
        let _ended_or_broken = std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink());
        tracing::info!("the supervisor is gone");
        std::process::exit(1);
    })?;
    // At the server's priority: a run under way would take half of what there is.
    let pace = MachineSpeed::measure();
    lower_priority(NICENESS_OF_PREVIEW);
    let dry_run = Box::new(dry_run(&spec, BackendKind::of(device), &pace));
    say(&mut std::io::stdout().lock(), &Progress::DryRunDone { dry_run })
        .context("telling the supervisor")
}

fn lower_priority(niceness: i32) {
    if let Err(error) = rustix::process::nice(niceness) {
        tracing::debug!(%error, "the trainer keeps the server's priority");
    }
}

fn read_spec() -> anyhow::Result<RunSpec> {
    let mut line = String::new();
    std::io::stdin().lock().read_line(&mut line).context("reading the specification")?;
    serde_json::from_str(&line)
        .context("the first line on standard input is not a specification of a run")
}

/// Writes one message as a line and sends it off.
fn say(output: &mut impl Write, progress: &Progress) -> std::io::Result<()> {
    serde_json::to_writer(&mut *output, progress)?;
    output.write_all(b"\n")?;
    output.flush()
}

/// Reads orders on a thread of its own; the end of the input means that the supervisor is gone, and
/// stops the run.
fn listen() -> anyhow::Result<Receiver<Control>> {
    let (sender, receiver) = channel();
    std::thread::Builder::new().name("orders".to_owned()).spawn(move || {
        for line in std::io::stdin().lock().lines() {
            let Ok(line) = line else { break };
            match serde_json::from_str(&line) {
                Ok(control) => {
                    if sender.send(control).is_err() {
                        return;
                    }
                }
                Err(error) => tracing::warn!(%error, "an order that cannot be read is ignored"),
            }
        }
        // Nobody listens any more when this fails.
        let _ = sender.send(Control::Stop);
    })?;
    Ok(receiver)
}
