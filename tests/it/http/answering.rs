//! Answers to many at once: what each gets does not depend on the others, and what the server holds for
//! them stays within its limits.

use std::path::Path;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use serde_json::{Value, json};

use crate::http::models_chat::ask;
use crate::support::server::{Server, TINY, chat_lines, make_key};

const CHAT: &str = "/v1/chat/completions";

/// A number of `GET /metrics`.
pub async fn metric(server: &Server, name: &str) -> f64 {
    let text = server.get("/metrics").await;
    assert_eq!(text.status, 200);
    let line = text.text.lines().find_map(|line| line.strip_prefix(&format!("{name} ")));
    let line = line.unwrap_or_else(|| panic!("no {name} in {}", text.text));
    line.parse().expect("a number")
}

/// Waits until a metric is as wanted.
pub async fn until_metric(server: &Server, name: &str, wanted: impl Fn(f64) -> bool) {
    let began = Instant::now();
    loop {
        let value = metric(server, name).await;
        if wanted(value) {
            return;
        }
        assert!(began.elapsed() < Duration::from_secs(60), "{name} stays {value}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

fn about(subject: &str, more: Value) -> Value {
    let mut body = ask(TINY, json!({"max_tokens": 24}));
    body["messages"][0]["content"] = json!(format!("Tell me about {subject}."));
    for (key, value) in more.as_object().expect("an object") {
        body[key] = value.clone();
    }
    body
}

#[tokio::test]
async fn many_at_once_get_what_each_gets_alone_also_across_adapters() {
    let server = Server::start();
    let mut models = vec![TINY.to_owned()];
    for multiplier in [1, 8] {
        let values = json!({"n_epochs": 2, "learning_rate_multiplier": multiplier});
        let id = server.create_job(&chat_lines(12), values).await;
        let job = server.ended(&id, "succeeded").await;
        models.push(job["fine_tuned_model"].as_str().expect("a model").to_owned());
    }
    let mut bodies = Vec::new();
    for index in 0..12 {
        let model = &models[index % models.len()];
        let subject = "the sea, ".repeat(1 + index * 3);
        let mut more = json!({"model": model});
        if index % 4 == 3 {
            more = json!({"model": model, "temperature": 1.2, "seed": index, "n": 2});
        }
        bodies.push(about(&subject, more));
    }
    let mut alone = Vec::new();
    for body in &bodies {
        alone.push(server.post(CHAT, body.clone()).await.ok()["choices"].clone());
    }
    for _ in 0..2 {
        let together = bodies.iter().map(|body| server.post(CHAT, body.clone()));
        for (reply, alone) in join_all(together).await.iter().zip(&alone) {
            assert_eq!(reply.ok()["choices"], *alone);
        }
    }
    assert_eq!(metric(&server, "hone_serve_base_models").await, 1.0);
    until_metric(&server, "hone_serve_texts_running", |running| running == 0.0).await;
}

#[tokio::test]
async fn the_next_turn_of_a_conversation_is_read_from_where_it_goes_on() {
    let system = "You answer in rhymes. ".repeat(6);
    let turn = |words: &[&str]| {
        let mut messages = vec![json!({"role": "system", "content": system})];
        for (index, content) in words.iter().enumerate() {
            let role = if index % 2 == 0 { "user" } else { "assistant" };
            messages.push(json!({"role": role, "content": content}));
        }
        ask(TINY, json!({"messages": messages}))
    };
    let turns = [turn(&["One"]), turn(&["One", "Two", "Three"]), turn(&["Another"])];
    let warm = Server::start();
    let mut before = 0.0;
    for (index, body) in turns.iter().enumerate() {
        let reply = warm.post(CHAT, body.clone()).await.ok();
        let cold = Server::start();
        assert_eq!(cold.post(CHAT, body.clone()).await.ok()["choices"], reply["choices"]);
        assert_eq!(metric(&cold, "hone_serve_cached_tokens_total").await, 0.0);
        let cached = metric(&warm, "hone_serve_cached_tokens_total").await;
        if index > 0 {
            assert!(cached - before > 50.0, "turn {index}: {cached} after {before}");
        }
        assert_eq!(
            reply["usage"]["prompt_tokens_details"]["cached_tokens"].as_f64(),
            Some(cached - before),
            "the request is told as well"
        );
        before = cached;
    }
}

#[tokio::test]
async fn a_client_that_goes_frees_its_place() {
    let server = Server::start();
    let body = about("eternity", json!({"max_tokens": 400, "n": 8, "logit_bias": {"2": -100}}));
    let gone = tokio::time::timeout(Duration::from_millis(150), server.post(CHAT, body)).await;
    drop(gone);
    until_metric(&server, "hone_serve_requests_total", |count| count == 1.0).await;
    until_metric(&server, "hone_serve_texts_running", |running| running == 0.0).await;
    server.post(CHAT, about("now", json!({}))).await.ok();
}

/// So much memory for models, which take the same of it on every CPU.
fn within(memory: &str) -> [(&str, &str); 2] {
    [("HONE_SERVE_MEMORY", memory), ("HONE_CPU", "portable")]
}

/// A folder of two base models.
fn two_models(folder: &Path) {
    let tiny = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(TINY);
    for name in ["first", "second"] {
        let to = folder.join(name);
        std::fs::create_dir(&to).expect("made");
        for file in std::fs::read_dir(&tiny).expect("read") {
            let file = file.expect("an entry");
            std::fs::copy(file.path(), to.join(file.file_name())).expect("copied");
        }
    }
}

#[tokio::test]
async fn models_share_the_memory_that_they_are_given_and_the_one_unused_for_longest_goes() {
    let folder = tempfile::tempdir().expect("a folder");
    let (data, models) = (folder.path().join("data"), folder.path().join("models"));
    std::fs::create_dir(&models).expect("made");
    two_models(&models);
    let asked = async |server: &Server, model: &str| server.post(CHAT, ask(model, json!({}))).await;
    for (memory, kept) in [("1MB", 2.0), ("500kB", 1.0)] {
        std::fs::create_dir(&data).expect("made");
        let server = Server::start_over_with(&data, &models, &within(memory));
        let first = asked(&server, "first").await.ok()["choices"].clone();
        assert_eq!(asked(&server, "second").await.ok()["choices"], first);
        until_metric(&server, "hone_serve_base_models", |count| count == kept).await;
        assert_eq!(asked(&server, "first").await.ok()["choices"], first);
        drop(server);
        std::fs::remove_dir_all(&data).expect("removed");
    }
    std::fs::create_dir(&data).expect("made");
    let server = Server::start_over_with(&data, &models, &within("100kB"));
    let error = asked(&server, "first").await.error(500);
    let message = error["message"].as_str().expect("a text");
    assert!(message.contains("--serve-memory") && message.contains("first"), "{message}");
    assert_eq!(error["code"], "out_of_memory");
}

#[tokio::test]
async fn a_model_for_which_there_is_no_memory_now_is_asked_for_again_later() {
    let folder = tempfile::tempdir().expect("a folder");
    two_models(folder.path());
    let data = tempfile::tempdir().expect("a folder");
    // One of them, and the keys and values of what it answers.
    let server = Server::start_over_with(data.path(), folder.path(), &within("500kB"));
    let second = ask("second", json!({}));
    let refused = Mutex::new(None);
    let is_refused = || refused.lock().expect("a lock").is_some();
    // Its texts overlap, so that the first model always answers something.
    let keeps_busy = async || {
        while !is_refused() {
            let long = json!({"max_tokens": 300, "n": 4, "logit_bias": {"2": -100}});
            server.post(CHAT, ask("first", long)).await.ok();
        }
    };
    let asks_for_another = async || {
        until_metric(&server, "hone_serve_texts_running", |running| running > 0.0).await;
        let reply = server.post(CHAT, second.clone()).await;
        *refused.lock().expect("a lock") = Some(reply);
    };
    tokio::join!(keeps_busy(), keeps_busy(), keeps_busy(), asks_for_another());
    let reply = refused.into_inner().expect("a lock").expect("a reply");
    let error = reply.error(503);
    assert_eq!(error["code"], "model_loading");
    assert!(error["message"].as_str().expect("a text").contains("\"second\""), "{error}");
    let seconds = reply.headers["retry-after"].to_str().expect("a text").parse::<u64>();
    assert!(seconds.is_ok_and(|seconds| seconds > 0), "{:?}", reply.headers);
    server.post(CHAT, second).await.ok();
}

#[tokio::test]
async fn more_texts_than_memory_holds_are_answered_all_the_same() {
    let bodies: Vec<Value> = (0..6)
        .map(|index| about(&"rain, ".repeat(10 + index), json!({"max_tokens": 120})))
        .collect();
    let roomy = Server::start_with(&within("1GB"));
    // The model and two pages of keys and values.
    let tight = Server::start_with(&within("450kB"));
    let mut wanted = Vec::new();
    for body in &bodies {
        wanted.push(roomy.post(CHAT, body.clone()).await.ok()["choices"].clone());
    }
    let got = join_all(bodies.iter().map(|body| tight.post(CHAT, body.clone()))).await;
    for (reply, wanted) in got.iter().zip(&wanted) {
        assert_eq!(reply.ok()["choices"], *wanted);
    }
}

#[tokio::test]
async fn a_job_waits_while_requests_are_answered_and_goes_on_after_them() {
    let server = Server::start();
    let steps = json!({"n_epochs": 50, "batch_size": 1});
    let id = server.create_job(&chat_lines(400), steps).await;
    server.until(&id, |job| job["trained_steps"].as_u64().is_some_and(|step| step > 0)).await;
    let long = json!({"max_tokens": 300, "n": 8, "logit_bias": {"2": -100}});
    server.post(CHAT, about("patience", long)).await.ok();
    until_metric(&server, "hone_train_yields_total", |count| count >= 1.0).await;
    until_metric(&server, "hone_train_yielded_seconds_total", |seconds| seconds > 0.0).await;
    let trained = |job: &Value| job["trained_steps"].as_u64().unwrap_or_default();
    let now = trained(&server.job(&id).await);
    server.until(&id, |job| trained(job) > now + 5).await;
    server.post(&format!("/v1/fine_tuning/jobs/{id}/cancel"), json!({})).await.ok();
}

#[tokio::test]
async fn with_other_priorities_a_job_is_not_told_to_wait() {
    for priority in ["share", "train"] {
        let server = Server::start_with(&[("HONE_SERVE_PRIORITY", priority)]);
        let id = server.create_job(&chat_lines(12), json!({"n_epochs": 2})).await;
        let many = (0..4).map(|index| server.post(CHAT, about(&index.to_string(), json!({}))));
        for reply in join_all(many).await {
            reply.ok();
        }
        server.ended(&id, "succeeded").await;
        assert_eq!(metric(&server, "hone_train_yields_total").await, 0.0, "{priority}");
    }
}

/// A chat whose answer is long.
fn long_chat(number: usize, n: usize) -> Value {
    let mut body = ask(TINY, json!({"max_tokens": 200, "n": n, "logit_bias": {"2": -100}}));
    body["messages"][0]["content"] = json!(format!("Tell me about the number {number}."));
    body
}

#[tokio::test]
async fn a_project_is_answered_while_another_one_has_more_to_be_answered_than_runs() {
    let mut server = Server::start();
    let (theirs, ours) =
        (make_key(server.data_dir(), "team-a"), make_key(server.data_dir(), "team-b"));
    server.act_with(&theirs);
    let alone = server.post(CHAT, long_chat(0, 1)).await.ok()["choices"][0]["message"].clone();
    let of_theirs = Server::client_of(&theirs);
    let url = format!("{}{CHAT}", server.base);
    let all = (0..24).map(|number| {
        let request = of_theirs.post(&url).json(&long_chat(number, 8));
        tokio::spawn(async move { request.send().await.expect("a reply").json::<Value>().await })
    });
    let all: Vec<_> = all.collect();
    until_metric(&server, "hone_serve_texts_waiting", |waiting| waiting >= 10.0).await;
    until_metric(&server, "hone_serve_texts_running", |running| running >= 64.0).await;

    server.act_with(&ours);
    for number in 0..3 {
        let began = Instant::now();
        let body = ask(TINY, json!({"max_tokens": 2}));
        server.post(CHAT, body).await.ok();
        let waiting = metric(&server, "hone_serve_texts_waiting").await;
        println!("answer {number} after {:?}, {waiting} prompts wait", began.elapsed());
        assert!(waiting >= 10.0, "answer {number} came after those of the other project");
    }
    // Nor does the other project lose anything by that.
    for (number, reply) in join_all(all).await.into_iter().enumerate() {
        let reply = reply.expect("no panic").expect("JSON");
        let choices = reply["choices"].as_array().unwrap_or_else(|| panic!("{reply}"));
        assert_eq!(choices.len(), 8);
        if number == 0 {
            assert!(choices.iter().all(|choice| choice["message"] == alone), "{choices:#?}");
        }
    }
}
