//! The code on the pages runs as a reader would run it. `CONTRIBUTING.md` says how a page marks its
//! blocks. The base model is the tiny one, under the name of the real one, so that it takes seconds.
//! The migration guide has a test of its own.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, ChildStdout, Command, Stdio};

use serde_json::{Value, json};

use super::pages::{Block, Page, root, user_pages};
use super::reader::{self, Running};
use crate::support::server::{Server, TINY};
use crate::train::real_model::given;

/// The base model of the pages.
const MODEL: &str = "smollm2-135m-instruct";

/// The address on the pages.
const BASE: &str = "http://127.0.0.1:8080";

/// The page that has a test of its own.
const MIGRATION_GUIDE: &str = "docs/migrate-from-openai.md";

/// Printed by the shell after each block.
const DONE: &str = "@@ the block has run";

#[tokio::test(flavor = "multi_thread")]
async fn every_block_of_the_pages_runs_or_is_marked_as_not_run() {
    let folder = tempfile::tempdir().expect("a folder");
    put_models(folder.path());
    let server = Server::start_over(&folder.path().join("data"), &folder.path().join("models"));
    let shared = Shared { job: finished_job(&server).await, server, python: python() };
    let mut ran = 0;
    for page in user_pages().iter().filter(|page| page.name() != MIGRATION_GUIDE) {
        let mut reader = Reader::new(page, &shared);
        let blocks = page.blocks();
        for (index, block) in blocks.iter().enumerate() {
            if !block.is_not_run() {
                ran += usize::from(reader.follow(block, blocks.get(index + 1)).await);
            }
        }
    }
    assert!(ran >= 25, "{ran} blocks have run: the search has missed some");
}

/// What the pages share.
struct Shared {
    server: Server,
    /// A job that has succeeded.
    job: String,
    /// With the `openai` SDK.
    python: Option<PathBuf>,
}

/// Whoever follows one page from top to bottom, in a folder that looks like a clone.
struct Reader<'a> {
    page: &'a Page,
    shared: &'a Shared,
    folder: tempfile::TempDir,
    /// The page's own server, and where it listens.
    server: Option<(Running, String)>,
    shell: Option<Shell>,
    /// What the commands have printed.
    printed: String,
}

impl<'a> Reader<'a> {
    fn new(page: &'a Page, shared: &'a Shared) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        put_models(folder.path());
        let examples = folder.path().join("examples");
        fs::create_dir(&examples).expect("makes");
        fs::write(examples.join("lighthouse.jsonl"), few_examples()).expect("writes");
        Self { page, shared, folder, server: None, shell: None, printed: String::new() }
    }

    /// Does what a block says; false where it could not be run here.
    async fn follow(&mut self, block: &Block, next: Option<&Block>) -> bool {
        let place = format!("{}:{}", self.page.name(), block.line);
        match block.language.as_str() {
            "sh" => self.shell(&place, &block.code),
            "python" => {
                if self.shared.python.is_none() {
                    return false;
                }
                let name = format!("block-{}.py", block.line);
                fs::write(self.folder.path().join(&name), self.real(&block.code)).expect("writes");
                self.shell(&place, &format!("python -u {name}\n"));
            }
            "serve" => self.serve(&place, &block.code),
            "json" => {
                let parsed: Result<Value, _> = serde_json::from_str(&block.code);
                parsed.unwrap_or_else(|error| panic!("{place}: {error}"));
            }
            "jsonl" if block.is_refused() => {
                let told = next.filter(|next| next.language == "text");
                let told = told.unwrap_or_else(|| panic!("{place}: no block with the error"));
                let job = self.shared.create_job(&block.code, "").await;
                assert_eq!(job["error"]["message"], told.code.trim_end(), "{place}");
            }
            "jsonl" => {
                let copies = block.code.repeat(10);
                let dry_run = self.shared.create_job(&copies, "?dry_run=true").await;
                assert_eq!(dry_run["is_valid"], true, "{place}: {dry_run:#}");
            }
            // The error of the block before, which has been compared.
            "text" if self.follows_a_refused_block(block) => {}
            other => panic!("{place}: a block of {other:?} is neither run nor marked as not run"),
        }
        true
    }

    fn follows_a_refused_block(&self, block: &Block) -> bool {
        let blocks = self.page.blocks();
        let before = blocks.iter().take_while(|earlier| earlier.line < block.line).last();
        before.is_some_and(Block::is_refused)
    }

    /// Runs commands in the page's shell.
    fn shell(&mut self, place: &str, code: &str) {
        let code = self.real(code);
        let has_own_server = self.page.blocks().iter().any(|block| block.language == "serve");
        let shell = self.shell.get_or_insert_with(|| {
            let mut command = reader::shell(self.folder.path(), self.shared.python.as_deref());
            if !has_own_server {
                command.env("HONE_DATA_DIR", self.shared.server.data_dir());
            }
            Shell::start(command)
        });
        let name = format!(".block-{}", place.rsplit(':').next().expect("a line"));
        fs::write(self.folder.path().join(&name), code).expect("writes");
        let printed = shell.run(&name).unwrap_or_else(|printed| panic!("{place}:\n{printed}"));
        self.printed.push_str(&printed);
    }

    /// Starts the page's own server.
    fn serve(&mut self, place: &str, code: &str) {
        assert!(self.server.is_none(), "{place}: a page has one server");
        let mut shell = reader::shell(self.folder.path(), None);
        shell.stderr(Stdio::null());
        self.server = Some(reader::serve(shell, &self.real(code)));
    }

    /// Code with what a page cannot know: the address, ids, where the binary is.
    fn real(&self, code: &str) -> String {
        let base = self.server.as_ref().map_or(&self.shared.server.base, |(_child, base)| base);
        let mut code = code.replace(BASE, base).replace("target/release/hone", "hone");
        code = code.replace("ftjob-…", &self.shared.job);
        if code.contains("key_…") {
            let (_before, after) = self.printed.split_once("key_").expect("an id was printed");
            let end = after.find(|it: char| !it.is_ascii_alphanumeric()).unwrap_or(after.len());
            code = code.replace("key_…", &format!("key_{}", &after[..end]));
        }
        assert!(!code.contains('…'), "a reader cannot know what … stands for:\n{code}");
        code
    }
}

impl Shared {
    /// Uploads a file and creates a job over it, or asks for a dry run.
    async fn create_job(&self, content: &str, query: &str) -> Value {
        let file = self.server.upload(content).await;
        let method = if content.contains("preferred_output") { "dpo" } else { "supervised" };
        let body = json!({"model": MODEL, "training_file": file, "method": {"type": method}});
        self.server.post(&format!("/v1/fine_tuning/jobs{query}"), body).await.ok()
    }
}

/// A job over the examples that has succeeded.
async fn finished_job(server: &Server) -> String {
    let file = server.upload(&few_examples()).await;
    let hyperparameters = json!({"n_epochs": 1, "batch_size": 16});
    let body = json!({"model": MODEL, "training_file": file, "method":
        {"type": "supervised", "supervised": {"hyperparameters": hyperparameters}}});
    let job = server.post("/v1/fine_tuning/jobs", body).await.ok();
    let id = job["id"].as_str().expect("an id").to_owned();
    server.ended(&id, "succeeded").await;
    id
}

/// The first of the examples of the pages: with so many, the automatic values give the fewest steps.
fn few_examples() -> String {
    const FEW: usize = 34;
    let examples = fs::read_to_string(root().join("examples/lighthouse.jsonl")).expect("reads");
    examples.lines().take(FEW).map(|line| format!("{line}\n")).collect()
}

/// Python with the `openai` SDK, if there is one.
fn python() -> Option<PathBuf> {
    const CLIENTS: &str = "HONE_TEST_CLIENTS";
    let variable = if std::env::var_os(CLIENTS).is_some() { CLIENTS } else { "HONE_TEST_PYTHON" };
    Some(std::path::absolute(given(variable)?).expect("a path"))
}

/// Puts the tiny model where `hone models pull` would put the real one.
fn put_models(folder: &Path) {
    let to = folder.join("models").join(MODEL);
    fs::create_dir_all(&to).expect("makes");
    for entry in fs::read_dir(root().join("tests/data").join(TINY)).expect("a readable folder") {
        let from = entry.expect("a readable entry").path();
        fs::copy(&from, to.join(from.file_name().expect("a name"))).expect("copies");
    }
}

/// One shell that runs the blocks of a page, so that its variables last.
struct Shell {
    _child: Running,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
}

impl Shell {
    fn start(mut command: Command) -> Self {
        let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        let mut child = child.expect("bash starts");
        let mut stdin = child.stdin.take().expect("a pipe");
        let stdout = BufReader::new(child.stdout.take().expect("a pipe"));
        writeln!(stdin, "exec 2>&1").expect("it listens");
        Self { _child: Running(child), stdin, stdout }
    }

    /// Runs a file of commands: what they print, as an error where one has failed.
    fn run(&mut self, file: &str) -> Result<String, String> {
        let line = format!("source ./{file} < /dev/null\nprintf '\\n{DONE}\\n'");
        writeln!(self.stdin, "{line}").expect("it listens");
        let mut printed = String::new();
        loop {
            let mut line = Vec::new();
            let read = self.stdout.read_until(b'\n', &mut line).expect("a pipe");
            let line = String::from_utf8_lossy(&line);
            match read {
                // It has ended: a command has failed.
                0 => return Err(printed),
                _ if line.trim_end() == DONE => return Ok(printed),
                _ => printed.push_str(&line),
            }
        }
    }
}
