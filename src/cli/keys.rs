//! `hone keys`: creates, lists and revokes API keys, whether a server runs or not.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use anyhow::{Context, bail, ensure};
use clap::{Args, Subcommand};

use crate::domain::api_key::{ApiKey, ApiKeySecret};
use crate::domain::ids;
use crate::domain::project::Project;
use crate::store::sqlite::{self, SqliteStore};
use crate::store::{KeyStore, RevokeOutcome};
use crate::util::clock::{Clock, SystemClock};

/// Longest name of a key.
const MAX_NAME: usize = 256;

/// What to do with API keys.
#[derive(Debug, Args)]
pub struct KeysArgs {
    #[command(subcommand)]
    command: KeysCommand,
    /// Folder of the database, as the server has it.
    #[arg(
        long,
        env = "HONE_DATA_DIR",
        default_value = "hone-data",
        value_name = "DIR",
        global = true
    )]
    data_dir: PathBuf,
}

#[derive(Debug, Subcommand)]
enum KeysCommand {
    /// Create a key and print it: this once, and never again.
    ///
    /// As soon as there is a key, the server refuses requests without one.
    Create {
        /// Project of its requests: files, jobs and models of one project are not there for another.
        #[arg(long, value_name = "NAME")]
        project: Project,
        /// Whose key it is, for people.
        #[arg(long, value_name = "TEXT", value_parser = key_name)]
        name: Option<String>,
    },
    /// Show the keys: id, project, name, last four characters, when made, when revoked.
    List,
    /// Refuse requests with a key from now on.
    Revoke {
        /// Its id, as `list` shows it.
        id: String,
    },
}

fn key_name(text: &str) -> Result<String, String> {
    let is_plain = !text.chars().any(char::is_control);
    if is_plain && (1..=MAX_NAME).contains(&text.chars().count()) {
        return Ok(text.to_owned());
    }
    Err(format!("a key's name has 1 to {MAX_NAME} characters and no control characters"))
}

/// Runs the command.
pub fn keys(args: &KeysArgs) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Runtime::new().context("starting the async runtime")?;
    runtime.block_on(async {
        let data_dir = &args.data_dir;
        // Only the first key may create the folder. Otherwise a missing one is a mistake.
        let creates_key = matches!(args.command, KeysCommand::Create { .. });
        ensure!(
            creates_key || data_dir.join(sqlite::DATABASE_FILE).is_file(),
            "there is no database in {}: name the server's folder with --data-dir",
            data_dir.display()
        );
        let store = sqlite::open_beside_a_server(data_dir, Arc::new(SystemClock)).await?;
        let done = match &args.command {
            KeysCommand::Create { project, name } => create(&store, project, name.clone()).await,
            KeysCommand::List => list(&store, data_dir).await,
            KeysCommand::Revoke { id } => revoke(&store, id).await,
        };
        store.close().await;
        done
    })
}

/// The key alone on standard output, so that scripts can take it from there.
#[expect(clippy::print_stdout, clippy::print_stderr, reason = "the command's product")]
async fn create(
    store: &SqliteStore,
    project: &Project,
    name: Option<String>,
) -> anyhow::Result<()> {
    let secret = ApiKeySecret::random().context("taking random bytes from the system")?;
    let key = ApiKey {
        id: ids::new_api_key_id(),
        project: project.clone(),
        name,
        last_four: secret.last_four().to_owned(),
        created_at: SystemClock.now(),
        revoked_at: None,
    };
    store.insert_api_key(&key, &secret.digest()).await?;
    eprintln!("{}: created for project {project}; the key is shown this once:", key.id);
    println!("{}", secret.expose());
    Ok(())
}

#[expect(clippy::print_stdout, reason = "the command's product")]
async fn list(store: &SqliteStore, data_dir: &Path) -> anyhow::Result<()> {
    let keys = store.list_api_keys().await?;
    if keys.is_empty() {
        println!(
            "no key in {}; create one with `hone keys create --project NAME`",
            data_dir.display()
        );
        return Ok(());
    }
    println!("ID\tPROJECT\tNAME\tLAST FOUR\tCREATED\tREVOKED");
    for key in keys {
        println!(
            "{}\t{}\t{}\t{}\t{}\t{}",
            key.id,
            key.project,
            key.name.as_deref().unwrap_or("-"),
            key.last_four,
            time(key.created_at),
            key.revoked_at.map_or_else(|| "-".to_owned(), time)
        );
    }
    Ok(())
}

#[expect(clippy::print_stdout, reason = "the command's product")]
async fn revoke(store: &SqliteStore, id: &str) -> anyhow::Result<()> {
    match store.revoke_api_key(id).await? {
        RevokeOutcome::Revoked(key) => {
            println!("{id}: revoked; it belonged to project {}", key.project);
        }
        RevokeOutcome::AlreadyRevoked(key) => {
            let since = key.revoked_at.map(time).unwrap_or_default();
            println!("{id}: was revoked before, at {since}");
        }
        RevokeOutcome::NotFound => bail!("there is no key {id:?}: `hone keys list` shows the ids"),
    }
    Ok(())
}

/// Unix seconds for people, in UTC.
fn time(seconds: i64) -> String {
    let since = Duration::from_secs(u64::try_from(seconds).unwrap_or_default());
    humantime::format_rfc3339_seconds(UNIX_EPOCH + since).to_string()
}
