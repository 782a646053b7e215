//! One trainer process: its start, its messages and controls as JSON lines, and its exit.

use std::collections::VecDeque;
use std::io;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::device::Device;
use crate::train::protocol::{Control, Progress, RunSpec};

/// Longest line that a trainer may write. Far above any that it does write.
const LONGEST_LINE: usize = 1024 * 1024;

/// How much of the end of a trainer's log is kept to explain its exit.
const LOG_TAIL: usize = 4096;

/// How much of it goes into the sentence for the user.
const LOG_TAIL_SHOWN: usize = 400;

/// How long to wait for the pipes of a process that has ended.
const DRAIN: Duration = Duration::from_secs(1);

/// What a trainer is started for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TrainerMode {
    /// A run, at the server's own priority or a lower one.
    Run { keeps_priority: bool },
    /// A dry run.
    DryRun,
}

impl TrainerMode {
    /// Arguments of its command.
    fn arguments(self) -> &'static [&'static str] {
        match self {
            Self::Run { keeps_priority: false } => &["trainer"],
            Self::Run { keeps_priority: true } => &["trainer", "--keep-priority"],
            Self::DryRun => &["trainer", "--dry-run"],
        }
    }

    /// Added to its score for the kernel's out-of-memory killer, so that it takes a dry run before a
    /// run, and never the server.
    fn out_of_memory_score(self) -> &'static str {
        match self {
            Self::Run { .. } => "500",
            Self::DryRun => "900",
        }
    }
}

/// One line that a trainer wrote.
pub(super) enum TrainerMessage {
    /// A message.
    Progress(Box<Progress>),
    /// Not a message, and why.
    Malformed(String),
}

/// A running trainer. Dropping it kills it.
pub(super) struct Trainer {
    child: Child,
    stdin: Option<ChildStdin>,
    messages: mpsc::Receiver<TrainerMessage>,
    log_tail: Arc<Mutex<VecDeque<u8>>>,
    readers: JoinSet<()>,
}

impl Trainer {
    /// Starts `binary trainer` in this mode on this device, and sends it the specification.
    pub(super) async fn start(
        binary: &Path,
        mode: TrainerMode,
        device: Device,
        spec: &RunSpec,
    ) -> io::Result<Self> {
        let mut child = Command::new(binary)
            .args(mode.arguments())
            .args(["--device", &device.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // Its own group: Ctrl-C in a terminal is for the server, which then stops the trainer
            // at a checkpoint.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()?;
        if let Some(id) = child.id() {
            let file = format!("/proc/{id}/oom_score_adj");
            if let Err(error) = tokio::fs::write(&file, mode.out_of_memory_score()).await {
                tracing::debug!(file, %error, "the out-of-memory score stays as it is");
            }
        }
        let (sender, messages) = mpsc::channel(64);
        let log_tail = Arc::new(Mutex::new(VecDeque::with_capacity(LOG_TAIL)));
        let mut readers = JoinSet::new();
        if let Some(stdout) = child.stdout.take() {
            readers.spawn(read_messages(stdout, sender));
        }
        if let Some(stderr) = child.stderr.take() {
            readers.spawn(read_log(stderr, log_tail.clone()));
        }
        let stdin = child.stdin.take();
        let mut trainer = Self { child, stdin, messages, log_tail, readers };
        trainer.write_line(serde_json::to_vec(spec)?).await;
        Ok(trainer)
    }

    /// Sends a control.
    pub(super) async fn send(&mut self, control: Control) {
        match serde_json::to_vec(&control) {
            Ok(line) => self.write_line(line).await,
            Err(error) => tracing::error!(%error, "a control cannot be written"),
        }
    }

    /// The next message; `None` after the last one. May be dropped and called again without losing
    /// one.
    pub(super) async fn next_message(&mut self) -> Option<TrainerMessage> {
        self.messages.recv().await
    }

    /// Waits for the process to exit, and kills it after `timeout`. A closed standard input tells it
    /// that its supervisor is gone.
    pub(super) async fn exit(mut self, timeout: Duration) -> TrainerExit {
        drop(self.stdin.take());
        // A trainer that still writes must not block on a full pipe.
        self.messages.close();
        let status = match tokio::time::timeout(timeout, self.child.wait()).await {
            Ok(waited) => waited,
            Err(_elapsed) => match self.child.kill().await {
                Ok(()) => self.child.wait().await,
                Err(error) => Err(error),
            },
        };
        // A process that the trainer might have started could hold the pipes open.
        let drain = async { while self.readers.join_next().await.is_some() {} };
        if tokio::time::timeout(DRAIN, drain).await.is_err() {
            tracing::warn!("the trainer has exited, and another process still holds its output");
        }
        let log_tail = self.log_tail.lock().unwrap_or_else(PoisonError::into_inner);
        let bytes: Vec<u8> = log_tail.iter().copied().collect();
        TrainerExit { status, log_tail: String::from_utf8_lossy(&bytes).trim().to_owned() }
    }

    /// A trainer that no longer reads has exited or will exceed a timeout, so a write that fails is
    /// only logged.
    async fn write_line(&mut self, mut line: Vec<u8>) {
        line.push(b'\n');
        let Some(stdin) = &mut self.stdin else {
            return;
        };
        let written = async {
            stdin.write_all(&line).await?;
            stdin.flush().await
        };
        if let Err(error) = written.await {
            tracing::debug!(%error, "the trainer does not read");
        }
    }
}

/// How a trainer process exited.
pub(super) struct TrainerExit {
    status: io::Result<ExitStatus>,
    log_tail: String,
}

impl TrainerExit {
    /// What happened, for the user.
    pub(super) fn describe(&self, step: Option<u64>) -> String {
        let mut text = match &self.status {
            Err(error) => format!("the trainer's end cannot be determined ({error})"),
            Ok(status) => match (status.signal(), status.code()) {
                (Some(9), _) => "the trainer was killed (signal 9), which usually means that the \
                                 machine ran out of memory; a smaller batch_size or \
                                 context_length needs less"
                    .to_owned(),
                (Some(signal), _) => format!("the trainer was ended by signal {signal}"),
                (None, Some(code)) => {
                    format!("the trainer ended without a result (exit code {code})")
                }
                (None, None) => format!("the trainer ended without a result ({status})"),
            },
        };
        if let Some(step) = step {
            text.push_str(&format!(", after step {step}"));
        }
        if !self.log_tail.is_empty() {
            let shown = end_of(&self.log_tail, LOG_TAIL_SHOWN);
            text.push_str(&format!("; the end of its log: {shown}"));
        }
        text
    }

    /// The same in numbers, with all of the end of its log.
    pub(super) fn data(&self) -> serde_json::Value {
        let status = self.status.as_ref().ok();
        serde_json::json!({
            "exit_code": status.and_then(|status| status.code()),
            "signal": status.and_then(|status| status.signal()),
            "last_words": self.log_tail,
        })
    }
}

/// The last `length` bytes of a text, or a little less, cut where a character begins.
fn end_of(text: &str, length: usize) -> &str {
    let mut start = text.len().saturating_sub(length);
    while !text.is_char_boundary(start) {
        start += 1;
    }
    &text[start..]
}

/// Reads messages until the trainer closes its output or writes a malformed one.
async fn read_messages(stdout: ChildStdout, messages: mpsc::Sender<TrainerMessage>) {
    let mut reader = BufReader::new(stdout);
    let mut line = Vec::new();
    loop {
        line.clear();
        let read = (&mut reader).take(LONGEST_LINE as u64).read_until(b'\n', &mut line).await;
        let message = match read {
            Ok(0) => return,
            Ok(_) if line.last() != Some(&b'\n') => {
                TrainerMessage::Malformed(if line.len() >= LONGEST_LINE {
                    format!("a line of more than {LONGEST_LINE} bytes")
                } else {
                    // It died while it wrote; its exit says more than half a line.
                    return;
                })
            }
            Ok(_) => match serde_json::from_slice(&line) {
                Ok(progress) => TrainerMessage::Progress(Box::new(progress)),
                Err(error) => TrainerMessage::Malformed(format!(
                    "{error}: {}",
                    String::from_utf8_lossy(&line[..line.len().min(LOG_TAIL_SHOWN)]).trim()
                )),
            },
            Err(error) => TrainerMessage::Malformed(error.to_string()),
        };
        let is_malformed = matches!(message, TrainerMessage::Malformed(_));
        // Without a receiver it reads on, so that the trainer never blocks on the pipe.
        let _no_receiver = messages.send(message).await;
        if is_malformed {
            return;
        }
    }
}

/// Forwards the trainer's log and keeps its tail.
async fn read_log(stderr: ChildStderr, log_tail: Arc<Mutex<VecDeque<u8>>>) {
    let mut reader = BufReader::new(stderr);
    let mut line = Vec::new();
    loop {
        line.clear();
        // A longer line arrives in pieces.
        let read = (&mut reader).take(LOG_TAIL as u64).read_until(b'\n', &mut line).await;
        match read {
            Ok(0) => return,
            Ok(_) => {
                tracing::debug!(target: "hone::trainer", "{}", String::from_utf8_lossy(&line).trim_end());
                let mut tail = log_tail.lock().unwrap_or_else(PoisonError::into_inner);
                tail.extend(&line);
                let excess = tail.len().saturating_sub(LOG_TAIL);
                tail.drain(..excess);
            }
            Err(error) => {
                tracing::debug!(%error, "the trainer's log cannot be read");
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exit(status: i32, log_tail: &str) -> TrainerExit {
        TrainerExit { status: Ok(ExitStatus::from_raw(status)), log_tail: log_tail.to_owned() }
    }

    #[test]
    fn an_exit_is_explained_by_signal_or_exit_code() {
        let killed = exit(9, "").describe(Some(12));
        assert!(killed.contains("signal 9") && killed.contains("memory"), "{killed}");
        assert!(killed.ends_with("after step 12"), "{killed}");
        assert!(exit(11, "").describe(None).contains("signal 11"));
        let panicked = exit(101 << 8, "thread 'main' panicked").describe(None);
        assert!(panicked.contains("exit code 101"), "{panicked}");
        assert!(panicked.contains("thread 'main' panicked"), "{panicked}");
    }

    #[test]
    fn the_end_of_a_text_is_cut_between_characters() {
        assert_eq!(end_of("short", 10), "short");
        assert_eq!(end_of("äöü", 3), "ü");
        assert_eq!(end_of("abc", 2), "bc");
    }
}
