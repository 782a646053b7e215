//! `hone trainer`: one run or dry run in a process of its own, which the executor starts and supervises.
//!
//! It reads a [`RunSpec`] line and then [`Control`] lines from standard input, and writes [`Progress`]
//! lines to standard output. See `train::protocol`.

use std::io::{BufRead, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, TryRecvError, channel};
use std::time::Duration;

use anyhow::Context;
use clap::Args;

use crate::device::Device;
use crate::train::engine::{BackendKind, on_compute_thread};
use crate::train::protocol::{Control, Progress, RunSpec};
use crate::train::run::dry_run::{MachineSpeed, dry_run};
use crate::train::run::run;

/// How much lower than the server's the priority of a run on the CPU is: the server answers first. A run on a GPU
/// has one busy thread, for which the GPU waits.
const NICENESS: i32 = 5;

/// The same of a dry run: a run goes first.
const DRY_RUN_NICENESS: i32 = 10;

/// How often a trainer says that it lives.
const PULSE: Duration = Duration::from_secs(1);

/// Settings of a trainer, from the server that starts it.
#[derive(Debug, Clone, Args)]
pub struct TrainerArgs {
    /// Device to train on: cpu, cuda or cuda:N.
    #[arg(long, default_value = "cpu", value_name = "DEVICE")]
    device: Device,
    /// Run at the priority that it is started with instead of a lower one.
    #[arg(long)]
    keep_priority: bool,
    /// Say what the run would be, and do not train.
    #[arg(long)]
    dry_run: bool,
}

/// Runs until the run is finished, cancelled, stopped or failed.
pub fn trainer(args: &TrainerArgs) -> anyhow::Result<()> {
    if args.dry_run {
        return write_dry_run(args.device);
    }
    if let Some(niceness) = niceness(args) {
        lower_priority(niceness);
    }
    let spec = read_spec()?;
    let controls = read_controls()?;
    on_compute_thread(|| train(&spec, args.device, controls))
}

/// Trains, and writes the progress.
fn train(spec: &RunSpec, device: Device, controls: Receiver<Control>) -> anyhow::Result<()> {
    let pulse = Arc::new(Pulse::default());
    start(Arc::clone(&pulse))?;
    let mut failure: Option<std::io::Error> = None;
    let mut sink = |progress: Progress| {
        let mut output = std::io::stdout().lock();
        if progress.is_last() {
            // Nothing comes after it: the pulse looks while it holds the output.
            pulse.is_over.store(true, Ordering::Release);
        }
        if let Err(error) = write_message(&mut output, &progress.for_clients(spec)) {
            failure.get_or_insert(error);
        }
    };
    let mut next_control = || {
        pulse.asked.fetch_add(1, Ordering::Relaxed);
        match controls.try_recv() {
            Ok(control) => Some(control),
            Err(TryRecvError::Empty) => None,
            // The reader sends a stop before it ends, so this comes after that.
            Err(TryRecvError::Disconnected) => Some(Control::Stop),
        }
    };
    run(spec, BackendKind::of(device), &mut sink, &mut next_control);
    match failure {
        Some(error) => Err(error).context("writing the progress for the supervisor"),
        None => Ok(()),
    }
}

/// What the pulse of a run says.
#[derive(Default)]
struct Pulse {
    /// How often the run has asked for controls.
    asked: AtomicU64,
    /// The run has said its last message.
    is_over: AtomicBool,
}

/// Says again and again that the process lives, until its run is over. What cannot be said is no matter: the
/// supervisor is gone.
fn start(pulse: Arc<Pulse>) -> anyhow::Result<()> {
    std::thread::Builder::new().name("pulse".to_owned()).spawn(move || {
        loop {
            std::thread::sleep(PULSE);
            let mut output = std::io::stdout().lock();
            let progress = Progress::Pulse { asked: pulse.asked.load(Ordering::Relaxed) };
            if pulse.is_over.load(Ordering::Acquire)
                || write_message(&mut output, &progress).is_err()
            {
                return;
            }
        }
    })?;
    Ok(())
}

/// Writes what the run would be.
fn write_dry_run(device: Device) -> anyhow::Result<()> {
    let spec = read_spec()?;
    // A dry run writes no file that an exit in the middle could leave half-written.
    std::thread::Builder::new().name("supervisor".to_owned()).spawn(|| {
        let _closed_or_broken = std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink());
        tracing::info!("the supervisor is gone");
        std::process::exit(1);
    })?;
    // At the server's priority: a run under way would take half of what there is.
    let speed = MachineSpeed::measure();
    lower_priority(DRY_RUN_NICENESS);
    let dry_run = Box::new(dry_run(&spec, BackendKind::of(device), &speed));
    write_message(
        &mut std::io::stdout().lock(),
        &Progress::DryRunDone { dry_run }.for_clients(&spec),
    )
    .context("writing the dry run for the supervisor")
}

/// How much lower than the server's the priority of the run is.
fn niceness(args: &TrainerArgs) -> Option<i32> {
    match args.device {
        Device::Cpu if !args.keep_priority => Some(NICENESS),
        Device::Cpu | Device::Cuda(_) => None,
    }
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

/// Writes one message as a line and flushes it.
fn write_message(output: &mut impl Write, progress: &Progress) -> std::io::Result<()> {
    serde_json::to_writer(&mut *output, progress)?;
    output.write_all(b"\n")?;
    output.flush()
}

/// Reads controls on a thread of its own. The end of the input means that the supervisor is gone, and
/// stops the run.
fn read_controls() -> anyhow::Result<Receiver<Control>> {
    let (sender, receiver) = channel();
    std::thread::Builder::new().name("controls".to_owned()).spawn(move || {
        for line in std::io::stdin().lock().lines() {
            let Ok(line) = line else { break };
            match serde_json::from_str(&line) {
                Ok(control) => {
                    if sender.send(control).is_err() {
                        return;
                    }
                }
                Err(error) => tracing::warn!(%error, "a control that cannot be read is ignored"),
            }
        }
        // It fails when the run has ended.
        let _ended = sender.send(Control::Stop);
    })?;
    Ok(receiver)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_server_goes_first_on_the_cpu_and_the_thread_that_a_gpu_waits_for_is_not_held_back() {
        let of = |device, keep_priority| {
            niceness(&TrainerArgs { device, keep_priority, dry_run: false })
        };
        assert_eq!(of(Device::Cpu, false), Some(NICENESS));
        assert_eq!(of(Device::Cpu, true), None);
        assert_eq!(of(Device::Cuda(0), false), None);
    }
}
