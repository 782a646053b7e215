//! Limits: who asks for too much is told when to come again, and nobody else is.

use std::time::Duration;

use reqwest::Method;
use serde_json::{Value, json};

use crate::support::server::{Reply, Server, TINY, chat_lines, make_key};

/// Seconds to wait, of a reply that says so: more than none and less than clients take for broken.
fn retry_after(reply: &Reply) -> u64 {
    let error = reply.error(429);
    assert_eq!(
        (&error["type"], &error["code"]),
        (&json!("rate_limit_error"), &json!("rate_limit_exceeded"))
    );
    let seconds = reply.headers["retry-after"].to_str().expect("a text").parse().expect("seconds");
    assert!((1..=60).contains(&seconds), "{seconds}");
    seconds
}

/// Asks until it is refused; how often it was answered, and the refusal.
async fn exhaust(server: &Server) -> (usize, Reply) {
    for count in 0..200 {
        let reply = server.get("/v1/models").await;
        if reply.status != 200 {
            return (count, reply);
        }
    }
    panic!("it is never refused");
}

#[tokio::test]
async fn a_key_that_asks_too_often_waits_and_no_other_does() {
    let mut server = Server::start_with(&[("HONE_REQUESTS_PER_MINUTE", "30")]);
    let (busy, calm) =
        (make_key(server.data_dir(), "team-a"), make_key(server.data_dir(), "team-a"));
    server.act_with(&busy);
    let (count, refused) = exhaust(&server).await;
    assert!((30..40).contains(&count), "{count}");
    let wait = retry_after(&refused);
    server.get("/healthz").await.ok();
    retry_after(&server.get("/v1/fine_tuning/jobs").await);
    server.act_with(&calm);
    server.get("/v1/models").await.ok();
    // Wrong keys are nobody's requests.
    server.act_with("wrong");
    server.get("/v1/models").await.error(401);
    server.act_with(&busy);
    tokio::time::sleep(Duration::from_secs(wait)).await;
    server.get("/v1/models").await.ok();
}

#[tokio::test]
async fn without_keys_all_clients_share_the_limit() {
    let server = Server::start_with(&[("HONE_REQUESTS_PER_MINUTE", "20")]);
    let (count, refused) = exhaust(&server).await;
    assert!((20..30).contains(&count), "{count}");
    retry_after(&refused);
}

#[tokio::test]
async fn no_limit_of_requests_is_set_unasked() {
    let server = Server::start();
    for _ in 0..200 {
        server.get("/v1/models").await.ok();
    }
}

async fn create(server: &Server, file: &str, name: &str) -> Reply {
    let body = json!({"model": TINY, "training_file": file, "seed": 1,
        "hyperparameters": {"n_epochs": 50, "batch_size": 1}});
    let request = server.client.post(format!("{}/v1/fine_tuning/jobs", server.base));
    let request = request.header("idempotency-key", name).json(&body);
    Reply::read(request.send().await.expect("a reply")).await
}

#[tokio::test]
async fn a_project_has_so_many_waiting_jobs_and_no_more() {
    let mut server = Server::start_with(&[("HONE_MAX_QUEUED_JOBS", "2")]);
    let (ours, theirs) =
        (make_key(server.data_dir(), "team-a"), make_key(server.data_dir(), "team-b"));
    server.act_with(&ours);
    // Ten thousand steps: it outlasts the test on any machine.
    let file = server.upload(&chat_lines(200)).await;
    let running = create(&server, &file, "running").await.ok();
    server.under_way(running["id"].as_str().expect("an id")).await;
    let waiting = create(&server, &file, "first").await.ok();
    create(&server, &file, "second").await.ok();
    let refused = create(&server, &file, "third").await;
    retry_after(&refused);
    assert!(refused.error(429)["message"].as_str().expect("a text").contains("2 jobs"));
    // Nor does a pause make any: it would be too many after the end of it.
    let pause = format!("/v1/fine_tuning/jobs/{}/pause", waiting["id"].as_str().expect("an id"));
    assert_eq!(server.send(Method::POST, &pause).await.ok()["status"], "paused");
    create(&server, &file, "third").await.error(429);
    // A repetition asks for no room, nor does a job that fails at once.
    assert_eq!(create(&server, &file, "first").await.ok()["id"], waiting["id"]);
    let too_few = server.upload(&chat_lines(9)).await;
    assert_eq!(create(&server, &too_few, "bad").await.ok()["status"], "failed");
    let jobs = server.get("/v1/fine_tuning/jobs").await.ok();
    assert_eq!(jobs["data"].as_array().map(Vec::len), Some(4), "what was refused is not there");

    server.act_with(&theirs);
    let their_file = server.upload(&chat_lines(12)).await;
    create(&server, &their_file, "first").await.ok();

    server.act_with(&ours);
    let id = waiting["id"].as_str().expect("an id");
    let cancelled: Value =
        server.send(Method::POST, &format!("/v1/fine_tuning/jobs/{id}/cancel")).await.ok();
    assert_eq!(cancelled["status"], "cancelled");
    create(&server, &file, "third").await.ok();
}
