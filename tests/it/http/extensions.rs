//! Routes of hone's own beside a job: its adapter as an archive, its metrics, its report.

use std::collections::BTreeMap;
use std::io::Read;

use reqwest::Method;
use serde_json::{Value, json};

use crate::support::server::{Server, chat_lines};

/// Two epochs of six steps.
fn short() -> Value {
    json!({"n_epochs": 2, "batch_size": 2})
}

/// A run that lasts until it is cancelled.
fn long() -> Value {
    json!({"n_epochs": 50, "batch_size": 1})
}

/// The bytes of an archive of a job's adapter, and the name to save them under.
pub async fn archive(server: &Server, id: &str, query: &str) -> (Vec<u8>, String) {
    let url = format!("{}/v1/fine_tuning/jobs/{id}/adapter{query}", server.base);
    let reply = server.client.get(url).send().await.expect("a reply");
    assert_eq!(reply.status(), 200);
    let headers = reply.headers().clone();
    assert_eq!(headers["content-type"], "application/x-tar");
    let bytes = reply.bytes().await.expect("bytes").to_vec();
    assert_eq!(headers["content-length"], bytes.len().to_string().as_str());
    (bytes, headers["content-disposition"].to_str().expect("a text").to_owned())
}

/// The files of an archive.
pub fn unpacked(bytes: &[u8]) -> BTreeMap<String, Vec<u8>> {
    let mut files = BTreeMap::new();
    for entry in tar::Archive::new(bytes).entries().expect("an archive") {
        let mut entry = entry.expect("an entry");
        let name = entry.path().expect("a path").display().to_string();
        let mut content = Vec::new();
        entry.read_to_end(&mut content).expect("reads");
        files.insert(name, content);
    }
    files
}

#[tokio::test]
async fn the_archive_of_an_adapter_holds_the_files_that_are_results() {
    let server = Server::start();
    let id = server.create_job(&chat_lines(12), short()).await;
    let job = server.ended(&id, "succeeded").await;
    let (bytes, disposition) = archive(&server, &id, "?format=peft").await;
    assert!(disposition.contains(&format!("filename=\"{id}.tar\"")), "{disposition}");
    assert!(archive(&server, &id, "").await.0 == bytes, "the same bytes each time");
    let mut expected = BTreeMap::new();
    for name in [
        "adapter_config.json",
        "adapter_model.safetensors",
        "certificate.json",
        "chat_template.jinja",
    ] {
        expected.insert(name.to_owned(), server.result_file(&job, name).await);
    }
    assert!(unpacked(&bytes) == expected);

    // Of each checkpoint as well.
    let path = format!("/v1/fine_tuning/jobs/{id}/checkpoints");
    let checkpoints = server.get(&path).await.ok();
    let first = checkpoints["data"].as_array().expect("a list").last().expect("one").clone();
    assert_eq!(first["step_number"], 6);
    let (bytes, disposition) = archive(&server, &id, "?step=6").await;
    assert!(disposition.contains(&format!("filename=\"{id}-step-6.tar\"")), "{disposition}");
    let weights = server.result_file(&first, "adapter_model.safetensors").await;
    let found = unpacked(&bytes);
    assert!(found["adapter_model.safetensors"] == weights);
    assert!(weights != expected["adapter_model.safetensors"], "training has gone on since");

    let path = format!("/v1/fine_tuning/jobs/{id}/adapter");
    for (query, param, text) in [
        ("format=ggml", "format", "\"peft\", \"merged\", \"gguf-lora\", \"gguf\""),
        ("format=PEFT", "format", "\"peft\""),
        ("format=gguf&quantization=q4_0", "quantization", "\"f16\", \"q8_0\""),
        ("quantization=f16", "quantization", "\"gguf\""),
        ("step=last", "step", "step_number"),
        ("step=-1", "step", "step_number"),
    ] {
        let error = server.get(&format!("{path}?{query}")).await.error(400);
        assert_eq!(error["param"], param, "{query}");
        assert!(error["message"].as_str().is_some_and(|message| message.contains(text)), "{error}");
    }
    let error = server.get(&format!("{path}?step=5")).await.error(404);
    assert!(error["message"].as_str().is_some_and(|text| text.contains("/checkpoints")), "{error}");

    let model = job["fine_tuned_model"].as_str().expect("a model");
    server.delete(&format!("/v1/models/{model}")).await.ok();
    let error = server.get(&path).await.error(404);
    assert_eq!(error["message"], "the job's model was deleted");
}

/// A message that begins with the name of a model, in which a part is drawn.
fn without_name(message: &str) -> String {
    let rest = message.trim_start_matches('"').split_once('"').map(|(_name, rest)| rest);
    format!("\"MODEL\"{}", rest.unwrap_or_default())
}

#[tokio::test]
async fn a_job_without_an_adapter_or_report_says_why_and_when() {
    let server = Server::start();
    let running = server.create_job(&chat_lines(200), long()).await;
    let waiting = server.create_job(&chat_lines(12), short()).await;
    let failed = server.create_job(&chat_lines(3), short()).await;
    let whole = server.create_job(&chat_lines(12), json!({"tuning": "full"})).await;
    server.under_way(&running).await;
    let get = async |id: &str, route: &str, status: u16| -> String {
        let error = server.get(&format!("/v1/fine_tuning/jobs/{id}/{route}")).await.error(status);
        error["message"].as_str().expect("a text").replace(id, "ID")
    };
    let told = [
        get(&running, "adapter", 404).await,
        get(&waiting, "adapter", 404).await,
        get(&failed, "adapter", 404).await,
        without_name(&get(&whole, "adapter", 400).await),
        get(&running, "report", 404).await,
        get(&waiting, "report", 404).await,
        get(&failed, "report", 404).await,
    ];
    insta::assert_snapshot!(told.join("\n"));
    for route in ["adapter", "metrics", "report"] {
        let path = format!("/v1/fine_tuning/jobs/ftjob-none/{route}");
        assert_eq!(server.get(&path).await.error(404)["code"], "fine_tune_not_found");
    }
    let path = format!("/v1/fine_tuning/jobs/{running}/cancel");
    server.send(Method::POST, &path).await.ok();
}

#[tokio::test]
async fn the_report_is_the_jobs_result_file() {
    let server = Server::start();
    let id = server.create_job(&chat_lines(12), short()).await;
    let job = server.ended(&id, "succeeded").await;
    let reply = server.get(&format!("/v1/fine_tuning/jobs/{id}/report")).await;
    assert_eq!(reply.ok()["trained_tokens"], job["trained_tokens"]);
    assert!(reply.text.into_bytes() == server.result_file(&job, "report.json").await);
    let files = job["result_files"].as_array().expect("a list");
    let id = &files[files.len() - 2];
    server.delete(&format!("/v1/files/{}", id.as_str().expect("an id"))).await.ok();
    let path = format!("/v1/fine_tuning/jobs/{}/report", job["id"].as_str().expect("an id"));
    assert_eq!(server.get(&path).await.error(404)["message"], "the job's report was deleted");
}

/// All of a job's metrics, read in pages of five.
async fn all_metrics(server: &Server, id: &str) -> Vec<Value> {
    let mut rows: Vec<Value> = Vec::new();
    loop {
        let after = rows.last().map_or(0, |row| row["step"].as_u64().expect("a step"));
        let path = format!("/v1/fine_tuning/jobs/{id}/metrics?limit=5&after={after}");
        let page = server.get(&path).await.ok();
        let data = page["data"].as_array().expect("a list");
        assert!(data.len() <= 5);
        rows.extend(data.clone());
        if page["has_more"] == false {
            return rows;
        }
        assert_eq!(data.len(), 5);
    }
}

#[tokio::test]
async fn metrics_are_the_numbers_of_the_csv_and_are_there_while_a_job_trains() {
    let server = Server::start();
    let training = server.create_job(&chat_lines(200), long()).await;
    server.under_way(&training).await;
    let early = all_metrics(&server, &training).await;
    assert!(early.len() >= 2, "{early:?}");
    assert_eq!(server.job(&training).await["status"], "running");
    server.send(Method::POST, &format!("/v1/fine_tuning/jobs/{training}/cancel")).await.ok();
    // What was seen stays.
    assert_eq!(all_metrics(&server, &training).await[..early.len()], early);

    let training_file = server.upload(&chat_lines(12)).await;
    let validation_file = server.upload(&chat_lines(3)).await;
    let body = json!({"model": crate::support::server::TINY, "training_file": training_file, "seed": 1,
        "validation_file": validation_file, "hyperparameters": short()});
    let job = server.post("/v1/fine_tuning/jobs", body).await.ok();
    let id = job["id"].as_str().expect("an id");
    let job = server.ended(id, "succeeded").await;
    let rows = all_metrics(&server, id).await;
    let csv = String::from_utf8(server.result_file(&job, "step_metrics.csv").await).expect("text");
    let mut lines = csv.lines();
    let names: Vec<&str> = lines
        .next()
        .expect("a header")
        .split(',')
        // The CSV has OpenAI's name for this one.
        .map(|name| if name == "train_accuracy" { "train_mean_token_accuracy" } else { name })
        .collect();
    let steps: Vec<&str> = lines.collect();
    assert_eq!((rows.len(), steps.len()), (12, 12));
    for (row, line) in rows.iter().zip(steps) {
        assert_eq!(row["object"], "fine_tuning.job.metrics");
        assert_eq!(row["total_steps"], 12);
        assert!(row["tokens_per_second"].as_f64().is_some_and(|speed| speed > 0.0), "{row}");
        assert!(row["grad_norm"].is_f64() && row["reward_margin"].is_null(), "{row}");
        for (name, cell) in names.iter().zip(line.split(',')) {
            match cell.parse::<f64>() {
                Ok(number) => {
                    let found = row[name].as_f64().unwrap_or_else(|| panic!("{name}: {row}"));
                    assert!((found - number).abs() < 1e-6, "{name}: {row} {line}");
                }
                Err(_empty) => assert!(row[name].is_null(), "{name}: {row}"),
            }
        }
    }
    assert!(rows[11]["full_valid_loss"].is_f64());
    for (query, param) in [
        ("after=last", "after"),
        ("after=-1", "after"),
        ("after=9223372036854775808", "after"),
        ("limit=0", "limit"),
    ] {
        let path = format!("/v1/fine_tuning/jobs/{id}/metrics?{query}");
        assert_eq!(server.get(&path).await.error(400)["param"], param, "{query}");
    }
    let beyond = server.get(&format!("/v1/fine_tuning/jobs/{id}/metrics?after=12")).await.ok();
    assert_eq!(beyond, json!({"object": "list", "data": [], "has_more": false}));
}
