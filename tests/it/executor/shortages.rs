//! What a job lacks because others hold it is waited for: memory, room on the disk, file descriptors.

use std::time::{Duration, Instant};

use reqwest::StatusCode;
use rustix::process::{Pid, Resource, Rlimit, prlimit};
use serde_json::{Value, json};

use crate::support::machine_faults::{ENOSPC, Fault, MachineFaults};
use crate::support::server::{Server, TINY, chat_lines};

/// Longest wait for an event.
const TIMEOUT: Duration = Duration::from_secs(60);

/// MiB of a machine that holds any job of the tests.
const PLENTY: u64 = 1 << 20;

async fn create(server: &Server, epochs: u32) -> String {
    let hyperparameters = json!({"n_epochs": epochs, "batch_size": 4, "lora_r": 4});
    server.create_job(&chat_lines(12), hyperparameters).await
}

/// Waits for an event whose message contains `text`.
async fn event(server: &Server, job: &str, text: &str) -> Value {
    let began = Instant::now();
    loop {
        let events = server.events(job).await;
        let says = |event: &&Value| event["message"].as_str().is_some_and(|it| it.contains(text));
        if let Some(event) = events.iter().find(says) {
            return event.clone();
        }
        assert!(began.elapsed() < TIMEOUT, "no event says {text:?}: {events:#?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn a_job_that_lacks_memory_waits_and_says_who_holds_it() {
    let faults = MachineFaults::new();
    let server = faults.start(&[]);
    faults.set_memory(PLENTY, 1);
    let id = create(&server, 1).await;
    let said = event(&server, &id, "stays queued").await;
    let message = said["message"].as_str().expect("a text");
    assert!(message.contains("1 of 1048576 MiB are free (held: "), "{message}");
    assert!(message.contains("MiB by the server"), "{message}");
    assert_eq!(said["data"]["code"], "out_of_memory");
    assert_eq!(said["data"]["next_attempt_in_seconds"], 1);
    assert_eq!(server.job(&id).await["status"], "queued");
    faults.set_memory(PLENTY, PLENTY);
    server.ended(&id, "succeeded").await;

    // One that needs more than there is fails, at once.
    faults.set_memory(1, 1);
    let too_large = create(&server, 1).await;
    let job = server.ended(&too_large, "failed").await;
    assert_eq!(job["error"]["code"], "out_of_memory");
    let message = job["error"]["message"].as_str().expect("a text");
    assert!(message.contains("there are 1 MiB in all"), "{message}");
}

#[tokio::test]
async fn a_job_without_a_file_descriptor_or_room_waits_until_there_is_one() {
    let faults = MachineFaults::new();
    let server = faults.start(&[]);
    let first = create(&server, 50).await;
    let second = create(&server, 1).await;
    server.under_way(&first).await;
    // No file can be opened in the server from now on.
    let pid = Pid::from_raw(server.pid() as i32);
    let none = Rlimit { current: Some(3), maximum: Some(1024) };
    let before = prlimit(pid, Resource::Nofile, none).expect("sets");
    server.post(&format!("/v1/fine_tuning/jobs/{first}/cancel"), json!({})).await.ok();
    event(&server, &second, "stays queued").await;
    assert_eq!(server.job(&second).await["status"], "queued");
    let enough = Rlimit { current: Some(1024), ..before };
    prlimit(pid, Resource::Nofile, Rlimit { maximum: Some(1024), ..enough }).expect("sets");
    server.ended(&second, "succeeded").await;

    // A full disk, while a job is staged and while it trains.
    let full = Fault { call: "write", errno: ENOSPC };
    let work_folder = server.data_dir().join("work").display().to_string();
    faults.fail_always(full, &work_folder);
    let staged = create(&server, 1).await;
    let said = event(&server, &staged, "stays queued").await;
    assert_eq!(said["data"]["code"], "insufficient_storage");
    faults.heal();
    server.ended(&staged, "succeeded").await;
    let trained = create(&server, 12).await;
    server.under_way(&trained).await;
    faults.fail_always(full, &work_folder);
    let said = event(&server, &trained, "stays queued").await;
    assert_eq!(said["data"]["code"], "insufficient_storage");
    faults.heal();
    server.ended(&trained, "succeeded").await;
}

#[tokio::test]
async fn a_job_that_waits_too_long_fails() {
    let faults = MachineFaults::new();
    let server = faults.start(&[("HONE_RESOURCE_WAIT", "500ms")]);
    faults.set_memory(PLENTY, 1);
    let id = create(&server, 1).await;
    let job = server.ended(&id, "failed").await;
    assert_eq!(job["error"]["code"], "out_of_memory");
    let message = job["error"]["message"].as_str().expect("a text");
    assert!(message.contains("given up after") && message.contains("--resource-wait"), "{message}");
}

#[tokio::test]
async fn a_job_that_waits_can_be_paused_resumed_and_cancelled() {
    let faults = MachineFaults::new();
    let server = faults.start(&[]);
    faults.set_memory(PLENTY, 1);
    let id = create(&server, 1).await;
    event(&server, &id, "tries again in 30 s").await;
    let path = format!("/v1/fine_tuning/jobs/{id}");
    assert_eq!(server.post(&format!("{path}/pause"), json!({})).await.ok()["status"], "paused");
    faults.set_memory(PLENTY, PLENTY);
    // Whoever resumes it does not wait for the 30 s.
    let began = Instant::now();
    server.post(&format!("{path}/resume"), json!({})).await.ok();
    server.ended(&id, "succeeded").await;
    assert!(began.elapsed() < Duration::from_secs(28), "{:?}", began.elapsed());
    faults.set_memory(PLENTY, 1);
    let other = create(&server, 1).await;
    event(&server, &other, "stays queued").await;
    server.post(&format!("/v1/fine_tuning/jobs/{other}/cancel"), json!({})).await.ok();
    server.ended(&other, "cancelled").await;
}

#[tokio::test]
async fn a_model_that_answers_nothing_makes_room_for_a_job() {
    let faults = MachineFaults::new();
    let server = faults.start(&[]);
    let chat = json!({"model": TINY, "max_tokens": 1,
        "messages": [{"role": "user", "content": "What comes after 3?"}]});
    server.post("/v1/chat/completions", chat.clone()).await.ok();
    faults.set_memory(PLENTY, 1);
    // The model is there already.
    server.post("/v1/chat/completions", chat.clone()).await.ok();
    let id = create(&server, 1).await;
    event(&server, &id, "stays queued").await;
    let reply = server.post("/v1/chat/completions", chat.clone()).await;
    assert_eq!(reply.status, StatusCode::SERVICE_UNAVAILABLE, "{}", reply.text);
    faults.set_memory(PLENTY, PLENTY);
    server.ended(&id, "succeeded").await;
    server.post("/v1/chat/completions", chat).await.ok();
}

#[cfg(feature = "fail-points")]
#[tokio::test]
async fn a_trainer_waits_for_an_earlier_one_before_it_judges_the_memory() {
    let folder = tempfile::tempdir().expect("a folder");
    let rules = format!("{};checkpoint_renamed=stall", folder.path().display());
    let faults = MachineFaults::new();
    let server = faults.start(&[(hone::util::fail_point::VARIABLE, &rules)]);
    let id = create(&server, 4).await;
    let began = Instant::now();
    while !folder.path().join("checkpoint_renamed.visits").exists() {
        assert!(began.elapsed() < TIMEOUT, "no checkpoint is written");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    // The trainer outlives its server, and holds what memory there is.
    faults.set_memory(PLENTY, 1);
    let server = server.kill_and_restart();
    event(&server, &id, "An earlier trainer of this job is ending").await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(server.job(&id).await["status"], "running");
    faults.set_memory(PLENTY, PLENTY);
    std::fs::write(folder.path().join("checkpoint_renamed.go"), "").expect("writes");
    server.ended(&id, "succeeded").await;
    let events = server.events(&id).await;
    let waited = |event: &Value| event["data"]["code"] == "out_of_memory";
    assert!(!events.iter().any(waited), "{events:#?}");
}

#[cfg(feature = "fail-points")]
#[tokio::test]
async fn an_earlier_trainer_that_hangs_is_ended() {
    let folder = tempfile::tempdir().expect("a folder");
    // It hangs in the middle of a checkpoint, and does not hear that its server is gone.
    let rules = format!("{};checkpoint_renamed=stall", folder.path().display());
    let server = Server::start_with(&[(hone::util::fail_point::VARIABLE, &rules)]);
    let id = create(&server, 4).await;
    let began = Instant::now();
    while !folder.path().join("checkpoint_renamed.visits").exists() {
        assert!(began.elapsed() < TIMEOUT, "no checkpoint is written");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let server = server.kill_and_restart();
    server.ended(&id, "succeeded").await;
}
