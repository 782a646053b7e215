//! `POST /v1/fine_tuning/jobs?dry_run=true`: what a job would be, and that it is so.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};

use crate::support::server::{Reply, Server, TINY, chat_lines, gone};

const ROUTE: &str = "/v1/fine_tuning/jobs?dry_run=true";

/// Preferences between two answers.
fn preference_lines(count: usize) -> String {
    let mut lines = String::new();
    for number in 0..count {
        let line = json!({
            "input": {"messages": [{"role": "user", "content": format!("After {number}?")}]},
            "preferred_output": [{"role": "assistant", "content": format!("{}.", number + 1)}],
            "non_preferred_output": [{"role": "assistant", "content": "I do not want to say."}],
        });
        lines.push_str(&format!("{line}\n"));
    }
    lines
}

/// A body with what every job needs, and `more`.
fn body(training_file: &str, more: Value) -> Value {
    let mut body = json!({"model": TINY, "training_file": training_file, "seed": 1});
    body.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
    body
}

/// Work folders of dry runs.
fn folders(server: &Server) -> Vec<PathBuf> {
    let work = server.data_dir().join("work");
    let entries = std::fs::read_dir(work).expect("reads").map(|entry| entry.expect("one").path());
    entries.filter(|path| path.display().to_string().contains("dry-run")).collect()
}

/// What the job's events say of its data.
async fn statistics(server: &Server, id: &str) -> Value {
    let events = server.events(id).await;
    let data = events.iter().map(|event| &event["data"]);
    data.into_iter().find(|data| data["loss_tokens"].is_u64()).expect("statistics").clone()
}

/// Makes a dry run and then the job, which must be what the dry run has said; both.
async fn dry_then_job(server: &Server, body: &Value) -> (Value, Value) {
    let dry = server.post(ROUTE, body.clone()).await.ok();
    assert_eq!((&dry["is_valid"], &dry["error"]), (&json!(true), &Value::Null), "{dry:#}");
    let job = server.post("/v1/fine_tuning/jobs", body.clone()).await.ok();
    let id = job["id"].as_str().expect("an id");
    let job = server.ended(id, "succeeded").await;
    for key in
        ["model", "training_file", "validation_file", "hyperparameters", "method", "total_steps"]
    {
        assert_eq!(dry[key], job[key], "{key}");
    }
    assert_eq!(dry["trained_tokens"], job["trained_tokens"]);
    assert_eq!(job["trained_steps"], dry["total_steps"]);
    let found = statistics(server, id).await;
    for key in ["examples", "tokens", "loss_tokens"] {
        assert_eq!(dry["training"][key], found[key], "{key}");
    }
    let share =
        found["loss_tokens"].as_f64().expect("one") / found["tokens"].as_f64().expect("one");
    assert_eq!(dry["loss_token_share"], share);
    let events = server.events(id).await;
    let said: Vec<&Value> = events.iter().map(|event| &event["message"]).collect();
    for explanation in dry["explanations"].as_array().expect("a list") {
        assert!(said.contains(&explanation), "{explanation}");
    }
    assert!(folders(server).is_empty());
    (dry, job)
}

#[tokio::test]
async fn a_dry_run_says_what_the_job_then_is() {
    let server = Server::start();
    let chats = server.upload(&chat_lines(23)).await;
    let few = server.upload(&chat_lines(4)).await;
    let (dry, job) = dry_then_job(
        &server,
        &body(
            &chats,
            json!({"validation_file": few, "colour": "red", "hyperparameters":
                {"n_epochs": 2, "batch_size": 4, "lora_r": 4, "early_stopping_patience": 0}}),
        ),
    )
    .await;
    assert_eq!((&dry["total_steps"], &dry["steps_per_epoch"]), (&json!(12), &json!(6)));
    assert_eq!(dry["validation"]["examples"], 4);
    assert!(dry["notes"][0]["message"].as_str().is_some_and(|text| text.contains("\"colour\"")));
    assert!(dry["memory"]["needed_bytes"].as_u64().is_some_and(|bytes| bytes > 1 << 20));
    assert_eq!(dry["memory"]["fits"], true);
    assert!(dry["estimated_seconds"].as_f64().is_some_and(|seconds| seconds > 0.0), "{dry:#}");
    let mut shown = dry;
    // What differs from machine to machine, and what is an id.
    for (pointer, word) in [
        ("/estimated_seconds", "seconds"),
        ("/memory/free_bytes", "bytes"),
        ("/memory/needed_bytes", "bytes"),
        ("/memory/weights_bytes", "bytes"),
        ("/memory/activations_bytes", "bytes"),
        ("/memory/trained_bytes", "bytes"),
        ("/memory/logits_bytes", "bytes"),
    ] {
        let value = shown.pointer_mut(pointer).expect("it is there");
        assert!(value.is_number(), "{pointer}");
        *value = json!(word);
    }
    for key in ["training_file", "validation_file"] {
        assert!(shown[key].as_str().is_some_and(|id| id.starts_with("file-")));
        shown[key] = json!("file");
    }
    insta::assert_json_snapshot!(shown);

    // Everything left open; preferences; blocks of the model itself; examples that are too long; an
    // adapter that goes on.
    let (auto, _) = dry_then_job(&server, &body(&chats, json!({}))).await;
    assert_eq!(auto["hyperparameters"]["n_epochs"], 5);
    let pairs = server.upload(&preference_lines(11)).await;
    let dpo = json!({"method": {"type": "dpo", "dpo": {"hyperparameters": {"n_epochs": 2}}}});
    let (dpo, _) = dry_then_job(&server, &body(&pairs, dpo)).await;
    assert_eq!(dpo["training"]["examples"], 11);
    let last = json!({"hyperparameters": {"tuning": "last_layers", "n_epochs": 1}});
    let (last, _) = dry_then_job(&server, &body(&chats, last)).await;
    assert_eq!(last["estimated_seconds"], Value::Null, "candle's speed is not known beforehand");

    let long = "word ".repeat(400);
    let line = json!({"messages": [{"role": "user", "content": long},
        {"role": "assistant", "content": "b"}]});
    let mixed = server.upload(&format!("{line}\n{}{line}\n", chat_lines(12))).await;
    let short = json!({"hyperparameters": {"context_length": 64, "n_epochs": 1}});
    let (cut, _) = dry_then_job(&server, &body(&mixed, short)).await;
    assert_eq!(
        (&cut["training"]["examples"], &cut["training"]["left_out"]),
        (&json!(12), &json!(2))
    );
    let lines = cut["training"]["left_out_lines"].as_array().expect("a list");
    assert_eq!((&lines[0]["line"], &lines[1]["line"]), (&json!(1), &json!(14)));
    assert!(lines[0]["tokens"].as_u64().is_some_and(|tokens| tokens > 64));

    let model = job["fine_tuned_model"].clone();
    let on = json!({"model": model, "hyperparameters": {"n_epochs": 1}});
    let (on, _) = dry_then_job(&server, &body(&chats, on)).await;
    assert_eq!(on["method"]["supervised"]["hyperparameters"]["lora_r"], 4);
}

#[tokio::test]
async fn a_dry_run_makes_no_job_and_has_no_name() {
    let server = Server::start();
    let file = server.upload(&chat_lines(12)).await;
    let request = |body: Value| {
        let request = server.client.post(format!("{}{ROUTE}", server.base)).json(&body);
        let request = request.header("idempotency-key", "once");
        async { Reply::read(request.send().await.expect("a reply")).await.ok() }
    };
    let one = request(body(&file, json!({"hyperparameters": {"n_epochs": 1}}))).await;
    let other = request(body(&file, json!({"hyperparameters": {"n_epochs": 2}}))).await;
    assert_eq!(other["total_steps"].as_u64(), one["total_steps"].as_u64().map(|steps| 2 * steps));
    assert_eq!(server.get("/v1/fine_tuning/jobs").await.ok()["data"], json!([]));
    assert!(folders(&server).is_empty());
    // What is false is a job, and what is neither is refused.
    let path = "/v1/fine_tuning/jobs?dry_run=false";
    assert_eq!(server.post(path, body(&file, json!({}))).await.ok()["object"], "fine_tuning.job");
    let path = "/v1/fine_tuning/jobs?dry_run=maybe";
    assert_eq!(server.post(path, body(&file, json!({}))).await.error(400)["param"], "dry_run");
}

#[tokio::test]
async fn a_bad_request_is_refused_as_without_the_dry_run() {
    let server = Server::start();
    let file = server.upload(&chat_lines(12)).await;
    let mut told = Vec::new();
    for wrong in [
        json!({"model": "gpt-9"}),
        json!({"training_file": "file-none"}),
        json!({"validation_file": "file-none"}),
        json!({"seed": -1}),
        json!({"hyperparameters": {"nepochs": 1}}),
        json!({"hyperparameters": {"n_epochs": 51}}),
        json!({"method": {"type": "reinforcement"}}),
        json!({"integrations": [{"type": "wandb", "wandb": {"project": "p"}}]}),
        json!({"metadata": {"a": 1}}),
    ] {
        let body = body(&file, wrong);
        let dry = server.post(ROUTE, body.clone()).await;
        let job = server.post("/v1/fine_tuning/jobs", body).await;
        assert_eq!((dry.status, dry.json()), (job.status, job.json()));
        assert!(dry.status.is_client_error());
        told.push(dry);
    }
    assert_eq!(told.len(), 9);
    let reply = server.client.post(format!("{}{ROUTE}", server.base)).body("{").send().await;
    assert_eq!(Reply::read(reply.expect("a reply")).await.error(400)["code"], "invalid_json");
}

#[tokio::test]
async fn what_would_fail_the_job_is_said_as_the_job_says_it() {
    let server = Server::start();
    let good = server.upload(&chat_lines(12)).await;
    // The model's template has no place for tools.
    let tools = json!({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}],
        "tools": [{"type": "function", "function": {"name": "add"}}]});
    let (bad_json, token) = ("{\"messages\": [", tools.to_string());
    let broken = server.upload(&format!("{}{bad_json}\n{{}}\n", chat_lines(10))).await;
    let forbidden = server.upload(&format!("{}{token}\n{token}\n", chat_lines(10))).await;
    let nine = server.upload(&chat_lines(9)).await;
    let pairs = server.upload(&preference_lines(10)).await;
    let cases = [
        (body(&broken, json!({})), 2, 0),
        (body(&forbidden, json!({})), 2, 0),
        (body(&good, json!({"validation_file": broken})), 0, 2),
        (body(&forbidden, json!({"validation_file": forbidden})), 2, 2),
        (body(&nine, json!({})), 0, 0),
        (body(&pairs, json!({})), 0, 0),
        (body(&good, json!({"hyperparameters": {"context_length": 8}})), 0, 0),
        (
            body(&good, json!({"validation_file": nine, "hyperparameters": {"context_length": 8}})),
            0,
            0,
        ),
        (body(&good, json!({"hyperparameters": {"lora_target_modules": ["x_proj"]}})), 0, 0),
        (body(&good, json!({"hyperparameters": {"lora_layers": [99]}})), 0, 0),
        (
            body(&good, json!({"hyperparameters": {"tuning": "last_layers", "tuning_layers": 99}})),
            0,
            0,
        ),
    ];
    for (body, of_training, of_validation) in cases {
        let dry = server.post(ROUTE, body.clone()).await.ok();
        let job = server.post("/v1/fine_tuning/jobs", body).await.ok();
        let job = server.ended(job["id"].as_str().expect("an id"), "failed").await;
        assert_eq!((&dry["is_valid"], &dry["error"]), (&json!(false), &job["error"]), "{dry:#}");
        assert_eq!(dry["problem_count"], of_training + of_validation);
        let problems = dry["problems"].as_array().expect("a list");
        let of = |file: &str| problems.iter().filter(|problem| problem["file"] == file).count();
        assert_eq!((of("training_file"), of("validation_file")), (of_training, of_validation));
        for problem in problems {
            assert!([11, 12].contains(&problem["line"].as_u64().expect("a line")), "{problem}");
            assert!(problem["message"].as_str().is_some_and(|text| text.len() > 10), "{problem}");
        }
        if of_training + of_validation > 0 {
            assert_eq!((&dry["total_steps"], &dry["memory"]), (&Value::Null, &Value::Null));
        }
    }
}

/// A file of so many bytes that takes a while to look at.
fn long_file(bytes: usize) -> String {
    let mut text = String::with_capacity(bytes + 1000);
    let mut number = 0u32;
    while text.len() < bytes {
        let content = format!("{number} ").repeat(100);
        let line = json!({"messages": [{"role": "user", "content": content},
            {"role": "assistant", "content": "yes"}]});
        text.push_str(&format!("{line}\n"));
        number += 7919;
    }
    text
}

/// Process ids of the server's children.
fn children(server: &Server) -> Vec<u32> {
    let mut found = Vec::new();
    for task in std::fs::read_dir(format!("/proc/{}/task", server.pid())).expect("threads") {
        let path = task.expect("a thread").path().join("children");
        let text = std::fs::read_to_string(path).unwrap_or_default();
        found.extend(text.split_whitespace().map(|id| id.parse::<u32>().expect("an id")));
    }
    found
}

/// Waits until a dry run's process is there, and returns its id.
async fn looking(server: &Server) -> u32 {
    for _ in 0..1000 {
        if let [one] = children(server)[..] {
            return one;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("no process has begun to look");
}

#[tokio::test]
async fn a_dry_run_whose_client_goes_away_goes_too_and_the_next_has_its_turn() {
    let server = Server::start();
    let long = server.upload(&long_file(24 << 20)).await;
    let short = server.upload(&chat_lines(12)).await;
    let request = server.client.post(format!("{}{ROUTE}", server.base));
    let request = request.json(&body(&long, json!({}))).timeout(Duration::from_secs(100));
    let asked = tokio::spawn(request.send());
    let process = looking(&server).await;
    let [folder] = &folders(&server)[..] else { panic!("one folder") };
    // Others are answered meanwhile, and a second dry run waits for its turn.
    let next = server.client.post(format!("{}{ROUTE}", server.base)).json(&body(&short, json!({})));
    let next = tokio::spawn(next.send());
    for _ in 0..20 {
        let began = std::time::Instant::now();
        server.get("/v1/fine_tuning/jobs").await.ok();
        assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
    }
    assert_eq!(children(&server), [process]);
    asked.abort();
    gone(folder).await;
    gone(Path::new(&format!("/proc/{process}"))).await;
    let reply = next.await.expect("no panic").expect("a reply");
    assert_eq!(Reply::read(reply).await.ok()["is_valid"], true);
    assert!(folders(&server).is_empty());
}

#[tokio::test]
async fn what_a_killed_server_was_looking_at_is_gone_after_the_next_start() {
    let server = Server::start();
    let long = server.upload(&long_file(8 << 20)).await;
    let request =
        server.client.post(format!("{}{ROUTE}", server.base)).json(&body(&long, json!({})));
    let asked = tokio::spawn(request.send());
    let process = looking(&server).await;
    let server = server.kill_and_restart();
    assert!(asked.await.expect("no panic").is_err());
    assert!(folders(&server).is_empty());
    gone(Path::new(&format!("/proc/{process}"))).await;
}
