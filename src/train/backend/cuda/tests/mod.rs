//! Executes the kernels on the host and compares them with the CPU backend.
//!
//! g++ (or what `CXX` names) compiles the kernels with the emulator of `tests/cuda` and its address and
//! undefined-behaviour sanitizers; without a compiler the tests say that they did not run.

mod attention_backward;
mod attention_tiles;
mod emulator;
mod nvrtc;
mod rms_norm_backward;

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;

use sha2::{Digest, Sha256};

use crate::train::rng::Stream;
use crate::util::hex::hex;

/// Orders of threads in which each kernel runs: see `emulator.hpp`.
const ORDERS: [&str; 3] = ["0", "1", "7"];

const FLAGS: [&str; 8] = [
    "-std=c++20",
    "-O1",
    "-Wall",
    "-Wextra",
    "-Werror",
    "-Wno-unknown-pragmas",
    "-fsanitize=address,undefined",
    "-fno-sanitize-recover=all",
];

/// A program of `tests/cuda`.
struct Program(PathBuf);

impl Program {
    /// Compiles `tests/cuda/NAME.cpp`, unless the same sources have been compiled before; `None` without a
    /// compiler.
    fn compile(name: &str) -> Option<Self> {
        static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
        let _guard = ONE_AT_A_TIME.lock().expect("no test died while it compiled");
        let compiler = std::env::var("CXX").unwrap_or_else(|_| "g++".to_owned());
        let Ok(version) = Command::new(&compiler).arg("--version").output() else {
            eprintln!("not run: {compiler}, which compiles kernels for the host, does not start");
            return None;
        };
        let folders = [root().join("tests/cuda"), kernels_folder()];
        let mut sources: Vec<PathBuf> = Vec::new();
        for folder in &folders {
            let entries = fs::read_dir(folder).expect("a folder of sources");
            sources.extend(entries.map(|entry| entry.expect("an entry").path()));
        }
        sources.sort();
        let mut hash = Sha256::new();
        hash.update(FLAGS.concat());
        hash.update(version.stdout);
        for source in &sources {
            hash.update(fs::read(source).expect("a source"));
        }
        let test_program = std::env::current_exe().expect("this program");
        let folder = test_program.with_file_name("cuda-emulator");
        fs::create_dir_all(&folder).expect("a folder");
        let program = folder.join(format!("{name}-{}", &hex(&hash.finalize())[..16]));
        if !program.exists() {
            let unfinished = program.with_extension(std::process::id().to_string());
            let mut command = Command::new(&compiler);
            command
                .args(FLAGS)
                .args(folders.iter().map(|folder| format!("-I{}", folder.display())));
            command.arg(root().join(format!("tests/cuda/{name}.cpp"))).arg("-o").arg(&unfinished);
            let output = command.output().expect("the compiler starts");
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            fs::rename(&unfinished, &program).expect("the program gets its name");
        }
        Some(Self(program))
    }

    /// What the program writes, or its messages where it fails.
    fn run(&self, kernel: &str, order: &str, input: &[u8]) -> Result<Vec<f32>, String> {
        let mut child = Command::new(&self.0)
            .args([kernel, order])
            // Looking for leaks needs rights that containers do not give.
            .env("ASAN_OPTIONS", "detect_leaks=0")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the program starts");
        // A program that fails early closes its input; its messages say why.
        let _ = child.stdin.take().expect("its input").write_all(input);
        let output = child.wait_with_output().expect("the program ends");
        if !output.status.success() {
            return Err(String::from_utf8_lossy(&output.stderr).into_owned());
        }
        let (values, rest) = output.stdout.as_chunks::<4>();
        assert!(rest.is_empty(), "floats");
        Ok(values.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect())
    }

    /// The same for a kernel without faults: its result, which has the same bytes in every order of the threads.
    fn results(&self, kernel: &str, input: &[u8]) -> Vec<f32> {
        let results = std::thread::scope(|scope| {
            let runs = ORDERS.map(|order| scope.spawn(move || self.run(kernel, order, input)));
            runs.map(|run| run.join().expect("it runs").unwrap_or_else(|said| panic!("{said}")))
        });
        let bits = results.each_ref().map(|result| result.iter().map(|x| x.to_bits()));
        let [first, others @ ..] = bits;
        for (order, other) in ORDERS[1..].iter().zip(others) {
            assert!(first.clone().eq(other), "{kernel}: another result in order {order}");
        }
        let [result, ..] = results;
        result
    }
}

/// The project's folder.
fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn kernels_folder() -> PathBuf {
    root().join("src/train/backend/cuda/kernels")
}

/// A program's input: arrays, one after the other.
#[derive(Default)]
struct Input(Vec<u8>);

impl Input {
    fn ints(&mut self, values: &[usize]) {
        for value in values {
            self.0.extend(i32::try_from(*value).expect("an int").to_le_bytes());
        }
    }

    fn floats(&mut self, values: &[f32]) {
        self.0.extend(values.iter().flat_map(|value| value.to_le_bytes()));
    }

    fn bf16(&mut self, values: &[f32]) {
        self.0.extend(values.iter().flat_map(|value| half::bf16::from_f32(*value).to_le_bytes()));
    }
}

/// Numbers between -1 and 1 that are the same each time.
fn noise(count: usize, seed: u64) -> Vec<f32> {
    let stream = Stream::new(seed, "noise", 0);
    (0..count).map(|at| 2.0 * stream.unit(at as u64) - 1.0).collect()
}

/// Largest difference, and largest value that was wanted.
fn difference(got: &[f32], want: &[f32]) -> (f32, f32) {
    assert_eq!(got.len(), want.len());
    let mut worst = (0.0f32, 0.0f32);
    for (got, want) in got.iter().zip(want) {
        assert!(got.is_finite() && want.is_finite(), "{got} for {want}");
        worst = (worst.0.max((got - want).abs()), worst.1.max(want.abs()));
    }
    worst
}
