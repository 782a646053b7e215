//! What whoever follows a page has at hand: a shell with hone on its path, and a server.

use std::ffi::OsString;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

/// A child that dies with the test.
pub struct Running(pub Child);

impl Drop for Running {
    fn drop(&mut self) {
        _ = self.0.kill();
        _ = self.0.wait();
    }
}

/// A shell in a reader's folder, with hone and Python on the path.
pub fn shell(folder: &Path, python: Option<&Path>) -> Command {
    let binary = Path::new(env!("CARGO_BIN_EXE_hone"));
    let mut path = OsString::new();
    for program in [Some(binary), python].into_iter().flatten() {
        path.push(program.parent().expect("a folder"));
        path.push(":");
    }
    path.push(std::env::var_os("PATH").unwrap_or_default());
    let mut command = Command::new("bash");
    command.args(["--noprofile", "--norc", "-euo", "pipefail"]).current_dir(folder);
    command.env("PATH", path).env("HONE_LISTEN", "127.0.0.1:0");
    command
}

/// Starts the server that a block of `serve` says, in this shell; and the address where it listens.
pub fn serve(mut shell: Command, code: &str) -> (Running, String) {
    let child = shell.args(["-c", &format!("exec {code}")]).stdout(Stdio::piped()).spawn();
    let mut child = child.expect("it starts");
    let mut line = String::new();
    let stdout = child.stdout.take().expect("a pipe");
    BufReader::new(stdout).read_line(&mut line).expect("it says where it listens");
    let base = line.trim().strip_prefix("hone listens on ");
    let base = base.unwrap_or_else(|| panic!("{code} says {line:?}")).to_owned();
    (Running(child), base)
}
