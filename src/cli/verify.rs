//! `hone verify`: checks an adapter or a whole model against the certificate beside it.

use std::path::PathBuf;

use anyhow::Context;
use clap::Args;

use crate::artifacts::peft;
use crate::base_models::Catalog;
use crate::config::ModelsFolder;
use crate::train::run::certificate;

/// What to check.
#[derive(Debug, Args)]
pub struct VerifyArgs {
    /// Folder of the certificate and the files that it is of, as `hone export --format peft` and the
    /// result files of a job have them.
    #[arg(value_name = "DIR")]
    folder: PathBuf,
    /// The base model, a folder in Hugging Face layout or a .gguf file; otherwise the one of that name
    /// in the models folder.
    #[arg(long, value_name = "PATH")]
    base: Option<PathBuf>,
    #[command(flatten)]
    models: ModelsFolder,
}

/// Runs the command.
#[expect(clippy::print_stdout, reason = "the command's product")]
pub fn verify(args: &VerifyArgs) -> anyhow::Result<()> {
    let certificate = certificate::read(&args.folder)?;
    let mut base = None;
    if certificate.files.contains_key(peft::CONFIG_FILE) {
        base = Some(match &args.base {
            Some(path) => path.clone(),
            None => find(&args.models, &certificate.base_model.id)?,
        });
    }
    let verified = certificate::verify(&args.folder, base.as_deref())?;
    println!("{}: the certificate holds", args.folder.display());
    for (name, sha256) in &verified.certificate.files {
        println!("{name}: sha256 {sha256}");
    }
    let made_of = &verified.certificate.base_model;
    println!("base model {:?}: sha256 {}", made_of.id, made_of.sha256);
    println!(
        "{} tokens computed again: numbers differ by up to {:.2e}, {:.2e} is allowed",
        verified.tokens, verified.largest_difference, verified.allowed_difference
    );
    Ok(())
}

/// The base model of that name in the models folder.
fn find(models: &ModelsFolder, id: &str) -> anyhow::Result<PathBuf> {
    let models_dir = &models.models_dir;
    let found = Catalog::new(models_dir.clone())
        .find(id)
        .with_context(|| format!("reading {}", models_dir.display()))?;
    let found = found.with_context(|| {
        format!(
            "there is no base model {id:?} in {}: name the folder with --models-dir, or the model with \
             --base",
            models_dir.display()
        )
    })?;
    Ok(found.path)
}
