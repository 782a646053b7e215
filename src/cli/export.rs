//! `hone export`: a fine-tuned model in the format of another program, whether a server runs or not.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, bail, ensure};
use clap::Args;

use crate::artifacts::model::WeightType;
use crate::base_models::{Catalog, SharedCatalog};
use crate::blobs::Blobs;
use crate::config::Folders;
use crate::export::fetch::{self, ExportSources};
use crate::export::{ExportFormat, ExportOptions, Quantization};
use crate::store::Store;
use crate::store::sqlite::{self, SqliteStore};
use crate::util::atomic_file;
use crate::util::clock::SystemClock;

/// What to export.
#[derive(Debug, Args)]
pub struct ExportArgs {
    /// Id of a job that has succeeded, or the name of a fine-tuned model or of a checkpoint.
    #[arg(value_name = "JOB")]
    job: String,
    /// peft: an adapter for Hugging Face PEFT and vLLM. merged: a whole model in Hugging Face's
    /// layout. gguf-lora: an adapter for llama.cpp's --lora. gguf: a whole model for llama.cpp and
    /// Ollama.
    #[arg(long, value_enum)]
    format: ExportFormat,
    /// How the matrices of a GGUF model are stored; f16 unless it says otherwise.
    #[arg(long, value_enum)]
    quantization: Option<Quantization>,
    /// The type of merged weights; that of the base model unless it says otherwise, and float32 of a model that
    /// was trained in whole.
    #[arg(long, value_enum)]
    dtype: Option<WeightType>,
    /// The base model's name in an adapter of PEFT, such as its repository on the Hugging Face Hub; the one that
    /// hone knows unless it says otherwise.
    #[arg(long, value_name = "NAME")]
    base_model_name: Option<String>,
    /// Folder for the files; it must not be there yet, or be empty.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    #[command(flatten)]
    folders: Folders,
}

/// Runs the command.
pub fn export(args: &ExportArgs) -> anyhow::Result<()> {
    let data_dir = &args.folders.data_dir;
    ensure!(
        data_dir.join(sqlite::DATABASE_FILE).is_file(),
        "there is no database in {}: name the server's folder with --data-dir",
        data_dir.display()
    );
    let base_model_name = args.base_model_name.clone();
    let options =
        ExportOptions::requested(args.format, args.quantization, args.dtype, base_model_name)?;
    require_empty(&args.out)?;
    let runtime = tokio::runtime::Runtime::new().context("starting the async runtime")?;
    runtime.block_on(async {
        let store = sqlite::open_beside_a_server(data_dir, Arc::new(SystemClock)).await?;
        let done = write(args, &options, &store).await;
        store.close().await;
        done
    })
}

/// Refuses a folder with files in it: an export overwrites nothing.
fn require_empty(out: &Path) -> anyhow::Result<()> {
    match std::fs::read_dir(out) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error).with_context(|| format!("looking at {}", out.display())),
        Ok(mut entries) => {
            ensure!(
                entries.next().is_none(),
                "{} is not empty: name another folder",
                out.display()
            );
            Ok(())
        }
    }
}

/// Fetches and exports the model, and moves the finished folder to its place.
#[expect(clippy::print_stdout, reason = "the command's product")]
async fn write(
    args: &ExportArgs,
    options: &ExportOptions,
    store: &SqliteStore,
) -> anyhow::Result<()> {
    let Some(model) = fetch::find(store, &args.job).await? else {
        bail!("{}", no_model(store, &args.job).await?);
    };
    let blobs = Blobs::local(&args.folders.data_dir.join("blobs"))?;
    let base_models = SharedCatalog::new(Catalog::new(args.folders.models.models_dir.clone()));
    let out = std::path::absolute(&args.out)?;
    let parent = out.parent().context("--out has no folder that it could lie in")?;
    std::fs::create_dir_all(parent).with_context(|| format!("making {}", parent.display()))?;
    // Beside the target, so that the finished folder moves there at once.
    let work = tempfile::Builder::new().prefix(".hone-export-").tempdir_in(parent)?;
    let sources = ExportSources { store, blobs: &blobs, base_models: &base_models };
    let made = fetch::export(sources, &model, options, work.path()).await?;
    std::fs::rename(&made.folder, &out)
        .with_context(|| format!("putting the files into {}", out.display()))?;
    atomic_file::sync_folder(parent)?;
    println!("{}: exported as {} to {}", model.id, args.format.as_str(), args.out.display());
    for name in names_in(&out)? {
        println!("{}", args.out.join(name).display());
    }
    for remark in made.remarks {
        println!("note: {remark}");
    }
    Ok(())
}

/// The error of a job without a model, or of an unknown name.
async fn no_model(store: &SqliteStore, wanted: &str) -> anyhow::Result<String> {
    Ok(match store.job(wanted).await? {
        Some(job) => format!(
            "the job {wanted} is {} and has no model; the checkpoints that it left can be exported by \
             their names",
            job.status.as_str()
        ),
        None => format!("there is no job and no fine-tuned model called {wanted:?}"),
    })
}

fn names_in(folder: &Path) -> anyhow::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        names.push(entry?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}
