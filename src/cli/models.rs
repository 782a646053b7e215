//! `hone models`: downloads, lists and removes base models.

use std::path::Path;

use anyhow::Context;
use clap::{Args, Subcommand};

use crate::base_models::{Catalog, KNOWN, PullOutcome, pull};
use crate::config::ModelsFolder;

/// What to do with base models.
#[derive(Debug, Args)]
pub struct ModelsArgs {
    #[command(subcommand)]
    command: ModelsCommand,
    #[command(flatten)]
    folder: ModelsFolder,
}

#[derive(Debug, Subcommand)]
enum ModelsCommand {
    /// Download a model: a known name, or owner/name on the Hugging Face Hub.
    Pull {
        /// The model.
        name: String,
    },
    /// Show the models that are there, and what else lies in the folder.
    List,
    /// Remove a model from the disk.
    Remove {
        /// Its id, as `list` shows it.
        id: String,
    },
}

/// Runs the command.
pub fn models(args: &ModelsArgs) -> anyhow::Result<()> {
    let models_dir = &args.folder.models_dir;
    match &args.command {
        ModelsCommand::Pull { name } => {
            let runtime = tokio::runtime::Runtime::new().context("starting the async runtime")?;
            runtime.block_on(pull_and_print(models_dir, name))
        }
        ModelsCommand::List => list(models_dir),
        ModelsCommand::Remove { id } => remove(models_dir, id),
    }
}

/// Pulls a model and prints the result.
#[expect(clippy::print_stdout, reason = "the command's product")]
pub async fn pull_and_print(models_dir: &Path, name: &str) -> anyhow::Result<()> {
    println!("{name}: looking for it in {}", models_dir.display());
    match pull(models_dir, name).await? {
        PullOutcome::AlreadyThere(entry) => {
            println!("{name}: there already as {:?}, {}", entry.id, entry.path.display());
        }
        PullOutcome::Downloaded(entry) => {
            println!("{name}: downloaded and checked as {:?}, {}", entry.id, entry.path.display());
        }
    }
    Ok(())
}

#[expect(clippy::print_stdout, reason = "the command's product")]
fn list(models_dir: &Path) -> anyhow::Result<()> {
    let scan = Catalog::new(models_dir.to_owned())
        .scan()
        .with_context(|| format!("reading {}", models_dir.display()))?;
    for model in &scan.models {
        println!("{}\t{}\t{}", model.id, model.kind(), model.path.display());
    }
    for skipped in &scan.skipped {
        println!("({}: not a base model: {})", skipped.path.display(), skipped.reason);
    }
    if scan.models.is_empty() {
        let names: Vec<&str> = KNOWN.iter().map(|model| model.id).collect();
        println!(
            "no base model in {}; download one with `hone models pull {}`",
            models_dir.display(),
            names.join("|")
        );
    }
    Ok(())
}

#[expect(clippy::print_stdout, reason = "the command's product")]
fn remove(models_dir: &Path, id: &str) -> anyhow::Result<()> {
    let catalog = Catalog::new(models_dir.to_owned());
    let Some(entry) = catalog.find(id)? else {
        let names: Vec<String> = catalog.list()?.into_iter().map(|entry| entry.id).collect();
        anyhow::bail!("there is no base model {id:?}; there is {}", names.join(", "));
    };
    let id = &entry.id;
    // A .gguf file in a folder of its own goes with its folder.
    let parent = entry.path.parent().filter(|parent| *parent != models_dir);
    let path = parent.unwrap_or(&entry.path);
    let removed =
        if path.is_dir() { std::fs::remove_dir_all(path) } else { std::fs::remove_file(path) };
    removed.with_context(|| format!("removing {}", path.display()))?;
    println!("{id}: removed {}", path.display());
    Ok(())
}
