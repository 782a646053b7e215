//! The OpenAPI document's request bodies against the server: it reads every documented field, and needs
//! every required one.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::support::server::{Server, TINY, chat_lines};

/// A request with a JSON body.
pub struct JsonRequest {
    /// As the document has it.
    pub template: &'static str,
    /// The template with ids of objects that exist.
    pub path: String,
    /// A body without errors.
    pub body: Value,
}

/// A value that no field takes, except for those below.
fn wrong_value(field: &str) -> Value {
    match field {
        // Any object is a row of a data set, or variables of a template.
        "item" | "chat_template_kwargs" => json!("a text"),
        "modalities" => json!(["audio"]),
        _ => json!({"wrong": {}}),
    }
}

/// A request to every route that takes one.
pub async fn requests(server: &Server) -> Vec<JsonRequest> {
    let endpoint = json!({"name": "hook", "url": "https://example.com/hook",
        "event_types": ["fine_tuning.job.failed"]});
    let made = server.post("/v1/webhook_endpoints", endpoint.clone()).await.ok();
    let id = made["id"].as_str().expect("an id");
    let job = server.create_job(&chat_lines(12), json!({"n_epochs": 1})).await;
    let job = server.ended(&job, "succeeded").await;
    let model = job["fine_tuned_model"].as_str().expect("a model");
    let grader = json!({"type": "string_check", "name": "g", "operation": "eq",
        "input": "{{sample.output_text}}", "reference": "a"});
    let request = |template: &'static str, body: Value| JsonRequest {
        template,
        path: template
            .replace("{webhook_endpoint_id}", id)
            .replace("{fine_tuned_model_checkpoint}", model)
            .replace("{upload_id}", "upload_none"),
        body,
    };
    vec![
        request(
            "/v1/chat/completions",
            json!({"model": TINY, "messages": [{"role": "user", "content": "Hi"}],
                "functions": [{"name": "f"}]}),
        ),
        request("/v1/completions", json!({"model": TINY})),
        request("/v1/fine_tuning/jobs", json!({"model": TINY, "training_file": "file-none"})),
        request(
            "/v1/fine_tuning/checkpoints/{fine_tuned_model_checkpoint}/permissions",
            json!({"project_ids": ["other"]}),
        ),
        request("/v1/fine_tuning/alpha/graders/validate", json!({"grader": grader})),
        request(
            "/v1/fine_tuning/alpha/graders/run",
            json!({"grader": grader, "model_sample": "a"}),
        ),
        request(
            "/v1/uploads",
            json!({"filename": "a.jsonl", "purpose": "fine-tune", "bytes": 1,
                "mime_type": "text/jsonl"}),
        ),
        request("/v1/uploads/{upload_id}/complete", json!({"part_ids": ["part_none"]})),
        request("/v1/webhook_endpoints", endpoint),
        request("/v1/webhook_endpoints/{webhook_endpoint_id}", json!({})),
        request("/v1/webhook_endpoints/{webhook_endpoint_id}/rotate_secret", json!({})),
        request(
            "/v1/webhook_endpoints/{webhook_endpoint_id}/test",
            json!({"event_type": "fine_tuning.job.failed"}),
        ),
    ]
}

/// The schema of a route's body in the document.
pub fn schema<'a>(document: &'a Value, template: &str) -> &'a Value {
    let content = &document["paths"][template]["post"]["requestBody"]["content"];
    let mut schema = &content["application/json"]["schema"];
    if let Some(alternatives) = schema["oneOf"].as_array() {
        schema = &alternatives[0];
    }
    let reference = schema["$ref"].as_str().expect("a component");
    document.pointer(&reference[1..]).expect("it is there")
}

#[tokio::test]
async fn the_server_reads_every_field_that_the_document_lists() {
    let server = Server::start();
    let document = server.get("/openapi.json").await.ok();
    let mut documented = BTreeSet::new();
    for (path, item) in document["paths"].as_object().expect("paths") {
        if !item["post"]["requestBody"]["content"]["application/json"].is_null() {
            documented.insert(path.as_str());
        }
    }
    let requests = requests(&server).await;
    let tried: BTreeSet<&str> = requests.iter().map(|request| request.template).collect();
    assert_eq!(tried, documented);
    for JsonRequest { template, path, body } in requests {
        let schema = schema(&document, template);
        for field in schema["properties"].as_object().expect("fields").keys() {
            let mut body = body.clone();
            body[field] = wrong_value(field);
            let error = server.post(&path, body).await.error(400);
            let param = error["param"].as_str().unwrap_or_default();
            let inner = param.strip_prefix(field.as_str()).unwrap_or("no prefix");
            assert!(inner.is_empty() || inner.starts_with(['.', '[']), "{path}: {field}: {error}");
        }
        // What the document demands is demanded, and what it does not is not.
        let required: Vec<&str> =
            schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        for field in body.as_object().expect("an object").keys() {
            let mut body = body.clone();
            body.as_object_mut().expect("an object").remove(field);
            let reply = server.post(&path, body).await;
            if required.contains(&field.as_str()) {
                let error = reply.error(400);
                assert_eq!(error["param"], *field, "{path}: {error}");
            } else {
                assert_ne!(
                    reply.json()["error"]["param"],
                    *field,
                    "{path}: {field} is not required"
                );
            }
        }
        // Elsewhere other fields are ignored, as OpenAI's API does; a job names them in an event.
        if template.starts_with("/v1/webhook_endpoints") {
            let mut body = body.clone();
            body["colour"] = json!("red");
            let error = server.post(&path, body).await.error(400);
            assert_eq!(error["param"], "colour", "{path}: {error}");
        }
    }
}
