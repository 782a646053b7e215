//! `…/pause` and `…/resume`: the device is free within a step, and no byte of the result differs.

use std::time::{Duration, Instant};

use hone::train::rng::Stream;
use reqwest::Method;
use serde_json::{Value, json};

use crate::support::server::{Reply, Server, chat_lines, gone};

/// A run of 600 short steps.
fn long() -> Value {
    json!({"n_epochs": 50, "batch_size": 1})
}

/// Everything that a job leaves and that must not depend on what happened to it.
async fn result(server: &Server, job: &Value) -> [Vec<u8>; 2] {
    [
        server.result_file(job, "adapter_model.safetensors").await,
        server.result_file(job, "step_metrics.csv").await,
    ]
}

async fn ask(server: &Server, id: &str, what: &str) -> Reply {
    server.send(Method::POST, &format!("/v1/fine_tuning/jobs/{id}/{what}")).await
}

#[tokio::test]
async fn a_job_paused_again_and_again_makes_the_bytes_of_one_left_alone() {
    let server = Server::start();
    let disturbed = server.create_job(&chat_lines(12), long()).await;
    let mut steps = 0;
    for _ in 0..4 {
        let at_least = steps + 20;
        server.until(&disturbed, |job| job["trained_steps"].as_u64() >= Some(at_least)).await;
        let paused = ask(&server, &disturbed, "pause").await.ok();
        assert_eq!(paused["status"], "paused");
        assert_eq!(paused["estimated_finish"], Value::Null);
        steps = paused["trained_steps"].as_u64().expect("a number");
        assert_eq!(ask(&server, &disturbed, "pause").await.ok(), paused, "again changes nothing");
        let events = server.events(&disturbed).await;
        let last = format!("Fine-tuning job paused after step {steps}");
        assert_eq!(events[0]["message"], last, "newest first");

        let resumed = ask(&server, &disturbed, "resume").await.ok();
        assert_eq!(resumed["status"], "queued");
    }
    let job = server.ended(&disturbed, "succeeded").await;
    let events = server.events(&disturbed).await;
    let went_on = events.iter().filter(|event| {
        let message = event["message"].as_str().unwrap_or_default();
        message.starts_with("Training continues from the checkpoint at step")
    });
    assert_eq!(went_on.count(), 4);

    let undisturbed = server.create_job(&chat_lines(12), long()).await;
    let other = server.ended(&undisturbed, "succeeded").await;
    assert_eq!(job["trained_tokens"], other["trained_tokens"]);
    let (made, wanted) = (result(&server, &job).await, result(&server, &other).await);
    assert!(made == wanted, "a pause changes no byte");
}

#[tokio::test]
async fn while_a_job_is_paused_the_next_one_runs_and_restarts_leave_it_paused() {
    let server = Server::start();
    let paused = server.create_job(&chat_lines(12), long()).await;
    let next = server.create_job(&chat_lines(12), json!({"n_epochs": 1})).await;
    server.under_way(&paused).await;
    ask(&server, &paused, "pause").await.ok();
    server.ended(&next, "succeeded").await;
    let before = server.job(&paused).await;
    assert_eq!(before["status"], "paused");
    let server = server.kill_and_restart();
    assert_eq!(server.job(&paused).await, before);
    let server = server.stop_and_restart();
    assert_eq!(server.job(&paused).await, before);
    ask(&server, &paused, "resume").await.ok();
    let job = server.ended(&paused, "succeeded").await;
    assert_eq!(job["trained_steps"], 600);
}

#[tokio::test]
async fn a_queued_job_is_paused_at_once_and_each_request_may_be_repeated() {
    let server = Server::start();
    let running = server.create_job(&chat_lines(12), long()).await;
    let queued = server.create_job(&chat_lines(12), json!({"n_epochs": 1})).await;
    server.under_way(&running).await;
    for _ in 0..2 {
        assert_eq!(ask(&server, &queued, "pause").await.ok()["status"], "paused");
    }
    assert_eq!(ask(&server, &running, "cancel").await.ok()["status"], "cancelled");
    // The Python SDK sends a content type and no body.
    let url = format!("{}/v1/fine_tuning/jobs/{queued}/resume", server.base);
    let request = server.client.post(url).header("content-type", "application/json");
    Reply::read(request.send().await.expect("a reply")).await.ok();
    let again = ask(&server, &queued, "resume").await.ok();
    assert_ne!(again["status"], "paused");
    server.ended(&queued, "succeeded").await;

    for ended in [&running, &queued] {
        assert_eq!(ask(&server, ended, "pause").await.error(400)["code"], "job_not_pausable");
        assert_eq!(ask(&server, ended, "resume").await.error(400)["code"], "job_not_resumable");
    }
    for what in ["pause", "resume"] {
        let error = ask(&server, "ftjob-none", what).await.error(404);
        assert_eq!(error["code"], "fine_tune_not_found");
    }
}

#[tokio::test]
async fn a_paused_job_can_be_cancelled_and_its_work_folder_goes() {
    let server = Server::start();
    let id = server.create_job(&chat_lines(12), long()).await;
    server.under_way(&id).await;
    ask(&server, &id, "pause").await.ok();
    let folder = server.data_dir().join("work").join(&id);
    assert!(folder.is_dir(), "what a paused job has done is kept");
    let training_file = server.job(&id).await["training_file"].as_str().expect("an id").to_owned();
    let path = format!("/v1/files/{training_file}");
    server.delete(&path).await.error(400);

    let cancelled = ask(&server, &id, "cancel").await.ok();
    assert_eq!(cancelled["status"], "cancelled");
    assert!(!cancelled["finished_at"].is_null());
    gone(&folder).await;
    server.delete(&path).await.ok();
}

#[tokio::test]
async fn a_pause_that_races_with_the_end_pauses_the_job_or_says_that_it_is_too_late() {
    let server = Server::start();
    let hyperparameters = json!({"n_epochs": 1, "batch_size": 2});
    // What one job takes from its creation to its end on this machine, with all that runs beside.
    let begun = Instant::now();
    let id = server.create_job(&chat_lines(12), hyperparameters.clone()).await;
    server.ended(&id, "succeeded").await;
    let whole = begun.elapsed().as_secs_f64();

    let moments = Stream::new(17, "pauses", 0);
    let (mut paused, mut too_late) = (0, 0);
    for number in 0..12 {
        let id = server.create_job(&chat_lines(12), hyperparameters.clone()).await;
        // From the creation of the job to a little after its end; the first certainly before it,
        // the last after it.
        match number {
            0 => {}
            11 => drop(server.ended(&id, "succeeded").await),
            _ => {
                let part = (moments.bits(number) % 1000) as f64 / 1000.0;
                tokio::time::sleep(Duration::from_secs_f64(1.2 * part * whole)).await;
            }
        }
        let reply = ask(&server, &id, "pause").await;
        if reply.status == 200 {
            assert_eq!(reply.ok()["status"], "paused");
            ask(&server, &id, "resume").await.ok();
            paused += 1;
        } else {
            assert_eq!(reply.error(400)["code"], "job_not_pausable");
            too_late += 1;
        }
        let job = server.ended(&id, "succeeded").await;
        assert_eq!(job["trained_steps"], 6);
    }
    assert!(paused > 0 && too_late > 0, "{paused} paused, {too_late} too late");
}
