//! One trainer process: starting it, talking with it in JSON lines, and how it dies.

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

/// Longest line that a trainer may say. Far above any that it does say.
const LONGEST_LINE: usize = 1024 * 1024;

/// How much of a trainer's standard error is kept to explain its death.
const LAST_WORDS: usize = 4096;

/// How much of its last words goes into the sentence for the user.
const LAST_WORDS_SHOWN: usize = 400;

/// How long to wait for the pipes of a process that has ended.
const DRAIN: Duration = Duration::from_secs(1);

/// What a trainer is started for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Errand {
    /// To run, at the server's own priority or a lower one.
    Run { keeps_priority: bool },
    /// To say what the run would be.
    DryRun,
}

impl Errand {
    /// Arguments of its command.
    fn arguments(self) -> &'static [&'static str] {
        match self {
            Self::Run { keeps_priority: false } => &["trainer"],
            Self::Run { keeps_priority: true } => &["trainer", "--keep-priority"],
            Self::DryRun => &["trainer", "--preview"],
        }
    }

    /// Added to its score for the kernel's out-of-memory killer, so that it takes one that only looks
    /// before one that trains, and never the server.
    fn out_of_memory_score(self) -> &'static str {
        match self {
            Self::Run { .. } => "500",
            Self::DryRun => "900",
        }
    }
}

/// What was heard from a trainer.
pub(super) enum Heard {
    /// A message.
    Progress(Box<Progress>),
    /// Something that is no message, and why.
    Garbled(String),
}

/// A running trainer. Dropping it kills it.
pub(super) struct Trainer {
    child: Child,
    stdin: Option<ChildStdin>,
    heard: mpsc::Receiver<Heard>,
    last_words: Arc<Mutex<VecDeque<u8>>>,
    readers: JoinSet<()>,
}

impl Trainer {
    /// Starts `binary trainer` for this errand and device and tells it about the run.
    pub(super) async fn start(
        binary: &Path,
        errand: Errand,
        device: Device,
        spec: &RunSpec,
    ) -> io::Result<Self> {
        let mut child = Command::new(binary)
            .args(errand.arguments())
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
            if let Err(error) = tokio::fs::write(&file, errand.out_of_memory_score()).await {
                tracing::debug!(file, %error, "the out-of-memory score stays as it is");
            }
        }
        let (sender, heard) = mpsc::channel(64);
        let last_words = Arc::new(Mutex::new(VecDeque::with_capacity(LAST_WORDS)));
        let mut readers = JoinSet::new();
        if let Some(stdout) = child.stdout.take() {
            readers.spawn(read_messages(stdout, sender));
        }
        if let Some(stderr) = child.stderr.take() {
            readers.spawn(read_log(stderr, last_words.clone()));
        }
        let stdin = child.stdin.take();
        let mut trainer = Self { child, stdin, heard, last_words, readers };
        trainer.write_line(serde_json::to_vec(spec)?).await;
        Ok(trainer)
    }

    /// Says something to the trainer.
    pub(super) async fn tell(&mut self, control: Control) {
        match serde_json::to_vec(&control) {
            Ok(line) => self.write_line(line).await,
            Err(error) => tracing::error!(%error, "a control message cannot be written"),
        }
    }

    /// The next message; `None` when the trainer will say nothing more. May be dropped and called
    /// again without losing one.
    pub(super) async fn hear(&mut self) -> Option<Heard> {
        self.heard.recv().await
    }

    /// Waits for the process to be gone, and kills it when `grace` has passed. A closed standard
    /// input tells it that nobody listens any more.
    pub(super) async fn end(mut self, grace: Duration) -> Death {
        drop(self.stdin.take());
        // A trainer that still talks must not block on a full pipe.
        self.heard.close();
        let status = match tokio::time::timeout(grace, self.child.wait()).await {
            Ok(waited) => waited,
            Err(_elapsed) => match self.child.kill().await {
                Ok(()) => self.child.wait().await,
                Err(error) => Err(error),
            },
        };
        // A process that the trainer might have started could hold the pipes open.
        let drain = async { while self.readers.join_next().await.is_some() {} };
        if tokio::time::timeout(DRAIN, drain).await.is_err() {
            tracing::warn!("the trainer has ended, and something still holds its output");
        }
        let last_words = self.last_words.lock().unwrap_or_else(PoisonError::into_inner);
        let bytes: Vec<u8> = last_words.iter().copied().collect();
        Death { status, last_words: String::from_utf8_lossy(&bytes).trim().to_owned() }
    }

    /// A trainer that no longer listens is about to be noticed by its silence, so a write that
    /// fails is only logged.
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
            tracing::debug!(%error, "the trainer does not listen");
        }
    }
}

/// How a trainer process ended.
pub(super) struct Death {
    status: io::Result<ExitStatus>,
    last_words: String,
}

impl Death {
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
        if !self.last_words.is_empty() {
            let shown = end_of(&self.last_words, LAST_WORDS_SHOWN);
            text.push_str(&format!("; its last words: {shown}"));
        }
        text
    }

    /// The same in numbers, with all the last words.
    pub(super) fn data(&self) -> serde_json::Value {
        let status = self.status.as_ref().ok();
        serde_json::json!({
            "exit_code": status.and_then(|status| status.code()),
            "signal": status.and_then(|status| status.signal()),
            "last_words": self.last_words,
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

/// Reads messages until the trainer closes its output or says something that is no message.
async fn read_messages(stdout: ChildStdout, heard: mpsc::Sender<Heard>) {
    let mut reader = BufReader::new(stdout);
    let mut line = Vec::new();
    loop {
        line.clear();
        let read = (&mut reader).take(LONGEST_LINE as u64).read_until(b'\n', &mut line).await;
        let message = match read {
            Ok(0) => return,
            Ok(_) if line.last() != Some(&b'\n') => Heard::Garbled(if line.len() >= LONGEST_LINE {
                format!("a line of more than {LONGEST_LINE} bytes")
            } else {
                // It died while it wrote; its death says more than half a line.
                return;
            }),
            Ok(_) => match serde_json::from_slice(&line) {
                Ok(progress) => Heard::Progress(Box::new(progress)),
                Err(error) => Heard::Garbled(format!(
                    "{error}: {}",
                    String::from_utf8_lossy(&line[..line.len().min(LAST_WORDS_SHOWN)]).trim()
                )),
            },
            Err(error) => Heard::Garbled(error.to_string()),
        };
        let is_garbled = matches!(message, Heard::Garbled(_));
        // Nobody listens any more: keep reading, so that the trainer never blocks on the pipe.
        let _nobody_listens = heard.send(message).await;
        if is_garbled {
            return;
        }
    }
}

/// Forwards the trainer's log and keeps its end.
async fn read_log(stderr: ChildStderr, last_words: Arc<Mutex<VecDeque<u8>>>) {
    let mut reader = BufReader::new(stderr);
    let mut line = Vec::new();
    loop {
        line.clear();
        // A longer line arrives in pieces.
        let read = (&mut reader).take(LAST_WORDS as u64).read_until(b'\n', &mut line).await;
        match read {
            Ok(0) => return,
            Ok(_) => {
                tracing::debug!(target: "hone::trainer", "{}", String::from_utf8_lossy(&line).trim_end());
                let mut kept = last_words.lock().unwrap_or_else(PoisonError::into_inner);
                kept.extend(&line);
                let excess = kept.len().saturating_sub(LAST_WORDS);
                kept.drain(..excess);
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

    fn died(status: i32, last_words: &str) -> Death {
        Death { status: Ok(ExitStatus::from_raw(status)), last_words: last_words.to_owned() }
    }

    #[test]
    fn a_death_is_explained_by_signal_or_exit_code() {
        let killed = died(9, "").describe(Some(12));
        assert!(killed.contains("signal 9") && killed.contains("memory"), "{killed}");
        assert!(killed.ends_with("after step 12"), "{killed}");
        assert!(died(11, "").describe(None).contains("signal 11"));
        let panicked = died(101 << 8, "thread 'main' panicked").describe(None);
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
