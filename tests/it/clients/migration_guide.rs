//! `docs/migrate-from-openai.md` is true: its blocks run in their order, as a reader would run them.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use crate::support::server::Server;
use crate::train::real_model::{given, models_dir, succeed};

/// A block of code: its language and what stands in it.
struct Block {
    language: String,
    code: String,
}

fn blocks(page: &str) -> Vec<Block> {
    let mut blocks: Vec<Block> = Vec::new();
    let mut inside = false;
    for line in page.lines() {
        match line.strip_prefix("```") {
            Some(language) if !inside => {
                blocks.push(Block { language: language.to_owned(), code: String::new() });
                inside = true;
            }
            Some(_end) => inside = false,
            None if inside => {
                let block = blocks.last_mut().expect("it began");
                block.code.push_str(line);
                block.code.push('\n');
            }
            None => {}
        }
    }
    assert!(!inside, "the last block ends");
    blocks
}

/// A child that dies with the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        _ = self.0.kill();
        _ = self.0.wait();
    }
}

/// What a reader types into a terminal in `folder`, with hone and Python on the path.
fn shell(folder: &Path, python: &Path, models_dir: &Path, code: &str) -> Command {
    let mut path =
        Path::new(env!("CARGO_BIN_EXE_hone")).parent().expect("a folder").as_os_str().to_owned();
    path.push(":");
    path.push(python.parent().expect("a folder"));
    path.push(":");
    path.push(std::env::var_os("PATH").unwrap_or_default());
    let mut command = Command::new("bash");
    command.args(["-euo", "pipefail", "-c", code]).current_dir(folder);
    command.env("PATH", path).env("HONE_MODELS_DIR", models_dir).env("HONE_LISTEN", "127.0.0.1:0");
    command
}

#[tokio::test(flavor = "multi_thread")]
async fn every_command_of_the_migration_guide_runs() {
    let (Some(models_dir), Some(python)) = (models_dir(), given("HONE_TEST_PYTHON")) else {
        return;
    };
    let models_dir = std::path::absolute(models_dir).expect("a path");
    let python = std::path::absolute(python).expect("a path");
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let page = std::fs::read_to_string(root.join("docs/migrate-from-openai.md")).expect("reads");
    let folder = tempfile::tempdir().expect("a folder");

    // OpenAI's place is taken by another hone that holds the reader's file.
    let examples = std::fs::read_to_string(root.join("examples/lighthouse.jsonl")).expect("reads");
    let before = Server::start();
    let older = before.upload(&examples[..examples.find('\n').expect("lines")]).await;
    before.upload(&examples).await;

    let mut calls = format!("export OPENAI_BASE_URL={}/v1 OPENAI_API_KEY=old\n", before.base);
    let mut serving: Option<(Running, String)> = None;
    let mut ran = Vec::new();
    for block in blocks(&page) {
        let mut code = block.code.clone();
        if let Some((_child, base)) = &serving {
            code = code.replace("http://127.0.0.1:8080", base);
        }
        match block.language.as_str() {
            "serve" => {
                let mut command =
                    shell(folder.path(), &python, &models_dir, &format!("exec {code}"));
                let mut child = command.stdout(Stdio::piped()).spawn().expect("it starts");
                let mut line = String::new();
                let stdout = child.stdout.take().expect("a pipe");
                BufReader::new(stdout).read_line(&mut line).expect("it says where it listens");
                let base = line.trim().strip_prefix("hone listens on ").expect("the address");
                serving = Some((Running(child), base.to_owned()));
            }
            "sh" if code.trim_start().starts_with("export ") => calls = code,
            "sh" => {
                let code = format!("{calls}{code}");
                succeed(&mut shell(folder.path(), &python, &models_dir, &code));
            }
            "python" => {
                let name = format!("block-{}.py", ran.len());
                std::fs::write(folder.path().join(&name), &code).expect("writes");
                let code = format!("{calls}python {name}");
                let printed = succeed(&mut shell(folder.path(), &python, &models_dir, &code));
                assert!(!printed.trim().is_empty(), "block {} says something", ran.len());
            }
            other => panic!("no reader knows what to do with a block of {other:?}"),
        }
        ran.push(block.language);
    }
    assert!(ran.contains(&"serve".to_owned()) && ran.len() >= 8, "{ran:?}");
    let brought = |name: &str| std::fs::read_to_string(folder.path().join(name)).expect("brought");
    assert_eq!(brought("train.jsonl"), examples, "the newest has the name that all have");
    assert!(examples.starts_with(&brought(&format!("{older}-train.jsonl"))));
    for file in ["adapter_config.json", "adapter_model.safetensors", "step_metrics.csv"] {
        assert!(folder.path().join(file).is_file(), "{file}");
    }
}
