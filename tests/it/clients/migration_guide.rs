//! `docs/migrate-from-openai.md` is true: its blocks run in their order, as a reader would run them.

use std::path::Path;
use std::process::Command;

use crate::docs::pages::Page;
use crate::docs::reader::{self, Running};
use crate::support::server::Server;
use crate::train::real_model::{given, models_dir, succeed};

/// What a reader types into a terminal in `folder`, with the real model at hand.
fn shell(folder: &Path, python: &Path, models_dir: &Path) -> Command {
    let mut command = reader::shell(folder, Some(python));
    command.env("HONE_MODELS_DIR", models_dir);
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
    let page = Page::read("docs/migrate-from-openai.md");
    let folder = tempfile::tempdir().expect("a folder");

    // OpenAI's place is taken by another hone that holds the reader's file.
    let examples = std::fs::read_to_string(root.join("examples/lighthouse.jsonl")).expect("reads");
    let before = Server::start();
    let older = before.upload(&examples[..examples.find('\n').expect("lines")]).await;
    before.upload(&examples).await;

    let mut calls = format!("export OPENAI_BASE_URL={}/v1 OPENAI_API_KEY=old\n", before.base);
    let mut serving: Option<(Running, String)> = None;
    let mut ran = Vec::new();
    for block in page.blocks() {
        let mut code = block.code.clone();
        if let Some((_child, base)) = &serving {
            code = code.replace("http://127.0.0.1:8080", base);
        }
        match block.language.as_str() {
            "serve" => {
                let shell = shell(folder.path(), &python, &models_dir);
                serving = Some(reader::serve(shell, &code));
            }
            "sh" if code.trim_start().starts_with("export ") => calls = code,
            "sh" => {
                let code = format!("{calls}{code}");
                succeed(shell(folder.path(), &python, &models_dir).args(["-c", &code]));
            }
            "python" => {
                let name = format!("block-{}.py", ran.len());
                std::fs::write(folder.path().join(&name), &code).expect("writes");
                let code = format!("{calls}python {name}");
                let printed =
                    succeed(shell(folder.path(), &python, &models_dir).args(["-c", &code]));
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
