//! Checkpoints that are gone stay gone, whatever becomes of their job.

use std::path::Path;
use std::time::{Duration, Instant};

use reqwest::Method;
use serde_json::{Value, json};

use crate::support::server::{Server, chat_lines};

/// The job's checkpoints, newest first.
async fn checkpoints(server: &Server, job: &str) -> Vec<Value> {
    let page = server.get(&format!("/v1/fine_tuning/jobs/{job}/checkpoints?limit=100")).await.ok();
    page["data"].as_array().expect("a list").clone()
}

fn step(checkpoint: &Value) -> u64 {
    checkpoint["step_number"].as_u64().expect("a number")
}

/// Folders below `folder` that hold nothing.
fn empty_folders(folder: &Path) -> usize {
    let mut empty = 0;
    let mut entries = 0;
    for entry in std::fs::read_dir(folder).into_iter().flatten() {
        let path = entry.expect("an entry").path();
        entries += 1;
        if path.is_dir() {
            empty += empty_folders(&path);
        }
    }
    empty + usize::from(entries == 0)
}

#[tokio::test]
async fn a_checkpoint_that_its_user_deletes_stays_deleted_after_a_pause() {
    let server = Server::start();
    let hyperparameters = json!({"n_epochs": 8, "batch_size": 1, "save_total_limit": 3});
    let job = server.create_job(&chat_lines(12), hyperparameters).await;
    let began = Instant::now();
    while checkpoints(&server, &job).await.len() < 2 {
        assert!(began.elapsed() < Duration::from_secs(60), "no checkpoint is made");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let path = format!("/v1/fine_tuning/jobs/{job}");
    server.send(Method::POST, &format!("{path}/pause")).await.ok();
    let before = checkpoints(&server, &job).await;
    let (newest, deleted) = (&before[0], &before[1]);
    let name = deleted["fine_tuned_model_checkpoint"].as_str().expect("a name");
    server.delete(&format!("/v1/models/{name}")).await.ok();
    server.send(Method::POST, &format!("{path}/resume")).await.ok();
    server.until(&job, |job| job["trained_steps"].as_u64() > Some(step(newest) + 1)).await;
    let steps: Vec<u64> = checkpoints(&server, &job).await.iter().map(step).collect();
    assert!(!steps.contains(&step(deleted)), "{steps:?}: {} is back", step(deleted));
    assert!(steps.contains(&step(newest)), "{steps:?}");

    server.ended(&job, "succeeded").await;
    let left = checkpoints(&server, &job).await;
    assert_eq!(left.iter().map(step).collect::<Vec<_>>(), [96, 84, 72]);
    // Training has removed this one; a page after it goes on where it was.
    let after = newest["id"].as_str().expect("an id");
    let page = server.get(&format!("{path}/checkpoints?after={after}")).await.ok();
    assert_eq!(page["data"], json!([]));
    let results = server.data_dir().join("blobs/objects/jobs");
    // The files of the checkpoint that its user deleted are theirs to delete.
    assert_eq!(empty_folders(&results), 0);
}
