//! `kill -9` of the trainer, of the server, or of both at random moments: what comes out is byte for
//! byte what an undisturbed run makes.

use std::time::{Duration, SystemTime};

use hone::executor::MAX_ATTEMPTS;
use hone::train::rng::Stream;
use serde_json::{Value, json};

use crate::support::server::{Server, chat_lines};
use crate::train::real_model::models_dir;

/// Moments at which something is killed, over all jobs.
const KILLS: u64 = 24;

/// Kills that one job lives through.
const KILLS_OF_A_JOB: u64 = 4;

/// Random numbers that differ from run to run; the key is said, though moments never repeat exactly.
fn moments() -> Stream {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("a time");
    println!("the moments' key is {}", now.as_nanos() as u64);
    Stream::new(now.as_nanos() as u64, "kills", 0)
}

/// Everything that a job leaves and that must not depend on what happened to it.
async fn result(server: &Server, job: &Value) -> [Vec<u8>; 2] {
    [
        server.result_file(job, "adapter_model.safetensors").await,
        server.result_file(job, "step_metrics.csv").await,
    ]
}

/// What the events say but for the steps, newest first.
fn messages(events: &[Value]) -> Vec<&str> {
    let sentences = events.iter().filter(|event| event["type"] == "message");
    sentences.filter_map(|event| event["message"].as_str()).collect()
}

/// Kills what `kind` says and lets somebody go on.
fn kill(server: Server, kind: u64) -> Server {
    match kind % 3 {
        0 => {
            server.kill_trainer();
            server
        }
        1 => server.kill_and_restart(),
        _ => server.kill_all_and_restart(),
    }
}

#[tokio::test]
async fn kills_at_random_moments_change_no_byte_of_what_comes_out() {
    let mut server = Server::start();
    let all = json!({"n_epochs": 24, "batch_size": 2, "lora_r": 4});
    // What the frozen block below makes of a text is kept, and gone with the process.
    let last = json!({"n_epochs": 24, "batch_size": 2, "lora_r": 4, "lora_layers": 1});
    let mut runs = Vec::new();
    for hyperparameters in [all, last] {
        let job = server.create_job(&chat_lines(13), hyperparameters.clone()).await;
        let undisturbed = server.ended(&job, "succeeded").await;
        let wanted = result(&server, &undisturbed).await;
        runs.push((hyperparameters, undisturbed, wanted));
    }

    let mut runs = runs.iter().cycle();
    let moments = moments();
    let mut kills = 0;
    let mut interrupted = 0;
    while kills < KILLS {
        let (hyperparameters, undisturbed, wanted) = runs.next().expect("it goes round");
        let job = server.create_job(&chat_lines(13), hyperparameters.clone()).await;
        let mut crashes = 0;
        for _ in 0..KILLS_OF_A_JOB {
            let state = server.until(&job, |job| job["status"] != "queued").await;
            if !state["finished_at"].is_null() {
                break;
            }
            // From the start of the trainer to well into its run.
            let wait = moments.bits(2 * kills) % 400;
            tokio::time::sleep(Duration::from_millis(wait)).await;
            // A trainer that dies three times before its first checkpoint fails the job, as it should.
            let mut kind = moments.bits(2 * kills + 1);
            crashes += u32::from(kind.is_multiple_of(3));
            if crashes >= MAX_ATTEMPTS {
                kind = 1;
            }
            server = kill(server, kind);
            kills += 1;
        }
        let ended = server.ended(&job, "succeeded").await;
        assert_eq!(ended["trained_steps"], undisturbed["trained_steps"]);
        assert_eq!(ended["trained_tokens"], undisturbed["trained_tokens"]);
        let events = server.events(&job).await;
        for (made, wanted) in result(&server, &ended).await.iter().zip(wanted) {
            assert!(made == wanted, "other bytes after: {:#?}", messages(&events));
        }
        let goes_on = |text: &&&str| text.contains("continues from the checkpoint");
        interrupted += messages(&events).iter().filter(goes_on).count();
    }
    assert!(interrupted >= 5, "only {interrupted} kills hit a run with a checkpoint");
}

#[tokio::test]
#[ignore = "long: tests/long runs it"]
async fn kills_change_no_byte_of_a_real_models_adapter() {
    let Some(models_dir) = models_dir() else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let mut server = Server::start_over(folder.path(), &models_dir);
    let hyperparameters = json!({"n_epochs": 2, "batch_size": 2, "lora_r": 4});
    let create = async |server: &Server| {
        let file = server.upload(&chat_lines(12)).await;
        let body = json!({"model": "smollm2-135m-instruct", "training_file": file, "seed": 1,
            "hyperparameters": hyperparameters});
        let job = server.post("/v1/fine_tuning/jobs", body).await.ok();
        job["id"].as_str().expect("an id").to_owned()
    };
    let job = create(&server).await;
    let undisturbed = server.ended(&job, "succeeded").await;
    let wanted = result(&server, &undisturbed).await;

    let job = create(&server).await;
    for (kind, steps) in [2, 5, 9].into_iter().enumerate() {
        server.until(&job, |job| job["trained_steps"].as_u64() >= Some(steps)).await;
        server = kill(server, kind as u64);
    }
    let ended = server.ended(&job, "succeeded").await;
    let events = server.events(&job).await;
    assert!(result(&server, &ended).await == wanted, "{:#?}", messages(&events));
}
