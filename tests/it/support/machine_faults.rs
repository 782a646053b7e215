//! A machine whose disk fails and whose memory is short when a test wants it to: a library before the C library
//! of a server (`tests/data/machine_faults.c`).

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::server::Server;

/// A fault of the disk.
#[derive(Debug, Clone, Copy)]
pub struct Fault {
    /// `write`, `sync` or `lock`.
    pub call: &'static str,
    pub errno: i32,
}

pub const ENOSPC: i32 = 28;
pub const EIO: i32 = 5;

/// The library, and the file that says what fails.
pub struct MachineFaults {
    folder: tempfile::TempDir,
}

impl MachineFaults {
    /// Nothing fails yet.
    pub fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/machine_faults.c");
        let compiler = std::env::var("CC").unwrap_or_else(|_unset| "cc".to_owned());
        let made = Command::new(compiler)
            .args(["-shared", "-fPIC", "-O1", "-o"])
            .arg(folder.path().join("machine_faults.so"))
            .arg(&source)
            .arg("-ldl")
            .status();
        assert!(made.expect("a C compiler").success(), "{}", source.display());
        let faults = Self { folder };
        faults.set_memory(1 << 20, 1 << 20);
        faults
    }

    /// A server that meets the faults, and its trainers with it.
    pub fn start(&self, settings: &[(&str, &str)]) -> Server {
        let in_folder = |name: &str| self.folder.path().join(name).display().to_string();
        let (library, rules, meminfo) =
            (in_folder("machine_faults.so"), in_folder("rules"), in_folder("meminfo"));
        let own = [("LD_PRELOAD", &*library), ("DISK_FAULTS", &rules), ("MEMINFO", &meminfo)];
        Server::start_with(&[&own, settings].concat())
    }

    /// From now on so many MiB of memory are there, and free.
    pub fn set_memory(&self, total: u64, free: u64) {
        let made = self.folder.path().join("made");
        let text = format!("MemTotal: {} kB\nMemAvailable: {} kB\n", total << 10, free << 10);
        std::fs::write(&made, text).expect("writes");
        std::fs::rename(made, self.folder.path().join("meminfo")).expect("renames");
    }

    /// The next call on a file whose path contains `part` fails.
    pub fn fail_once(&self, fault: Fault, part: &str) {
        self.arm(fault, part, "once");
    }

    /// Every such call fails until [`Self::heal`].
    pub fn fail_always(&self, fault: Fault, part: &str) {
        self.arm(fault, part, "always");
    }

    /// Nothing fails any more.
    pub fn heal(&self) {
        let _none = std::fs::remove_file(self.rules());
    }

    /// Whether a fault that comes once has come.
    pub fn has_failed(&self) -> bool {
        !self.rules().exists()
    }

    fn arm(&self, fault: Fault, part: &str, times: &str) {
        // It appears whole: calls read it at any moment.
        let made = self.folder.path().join("made");
        std::fs::write(&made, format!("{} {} {part} {times}\n", fault.call, fault.errno))
            .expect("writes");
        std::fs::rename(made, self.rules()).expect("renames");
    }

    fn rules(&self) -> PathBuf {
        self.folder.path().join("rules")
    }
}
