//! `Idempotency-Key`: a request that is sent again makes no second job.

use reqwest::Client;
use serde_json::{Value, json};

use crate::support::server::{Reply, Server, TINY, chat_lines};

async fn create(base: &str, key: &str, body: &str) -> Reply {
    let request = Client::new()
        .post(format!("{base}/v1/fine_tuning/jobs"))
        .header("idempotency-key", key)
        .body(body.to_owned());
    Reply::read(request.send().await.expect("a reply")).await
}

async fn jobs(server: &Server) -> usize {
    let jobs = server.get("/v1/fine_tuning/jobs?limit=100").await.ok();
    jobs["data"].as_array().expect("a list").len()
}

#[tokio::test]
async fn twenty_requests_at_once_with_one_key_make_one_job() {
    let server = Server::start();
    let file = server.upload(&chat_lines(12)).await;
    let body = json!({"model": TINY, "training_file": file, "hyperparameters": {"n_epochs": 1}});
    let body = body.to_string();
    let mut requests = tokio::task::JoinSet::new();
    for _ in 0..20 {
        let (base, body) = (server.base.clone(), body.clone());
        requests.spawn(async move { create(&base, "the-same", &body).await });
    }
    let mut ids: Vec<Value> = Vec::new();
    for reply in requests.join_all().await {
        ids.push(reply.ok()["id"].clone());
    }
    ids.dedup();
    assert_eq!(ids.len(), 1, "{ids:?}");
    assert_eq!(jobs(&server).await, 1);
}

#[tokio::test]
async fn a_repeated_request_finds_its_job_after_a_restart_and_after_its_file_is_gone() {
    let server = Server::start();
    let file = server.upload(&chat_lines(12)).await;
    let body = json!({"model": TINY, "training_file": file, "seed": 3,
        "hyperparameters": {"n_epochs": 1, "batch_size": 4}});
    let made = create(&server.base, "k", &body.to_string()).await.ok();
    let id = made["id"].as_str().expect("an id").to_owned();
    let server = server.kill_and_restart();
    // As another client writes the same.
    let same = format!(
        r#"{{"hyperparameters": {{"batch_size": 4, "n_epochs": 1}}, "seed": 3,
            "training_file": "{file}", "model": "{TINY}"}}"#
    );
    assert_eq!(create(&server.base, "k", &same).await.ok()["id"], id);
    server.ended(&id, "succeeded").await;
    server.delete(&format!("/v1/files/{file}")).await.ok();
    let found = create(&server.base, "k", &same).await.ok();
    assert_eq!((&found["id"], &found["status"]), (&json!(id), &json!("succeeded")));
    assert_eq!(jobs(&server).await, 1);
}

#[tokio::test]
async fn another_body_under_a_used_key_is_refused_and_another_key_makes_another_job() {
    let server = Server::start();
    let file = server.upload(&chat_lines(9)).await;
    let body = |seed: u32| json!({"model": TINY, "training_file": file, "seed": seed}).to_string();
    let first = create(&server.base, "one", &body(1)).await.ok();
    let error = create(&server.base, "one", &body(2)).await.error(400);
    assert_eq!(
        (&error["code"], &error["param"]),
        (&json!("idempotency_key_reused"), &json!("Idempotency-Key"))
    );
    let second = create(&server.base, "two", &body(1)).await.ok();
    assert_ne!(first["id"], second["id"]);
    assert_eq!(jobs(&server).await, 2);
    for key in ["", &"x".repeat(256)] {
        let error = create(&server.base, key, &body(1)).await.error(400);
        assert_eq!(error["param"], "Idempotency-Key");
    }
    // What was refused has not used up its key.
    create(&server.base, "three", r#"{"model": "tiny-llama"}"#).await.error(400);
    create(&server.base, "three", &body(1)).await.ok();
    assert_eq!(jobs(&server).await, 3);
}
