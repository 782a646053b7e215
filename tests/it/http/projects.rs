//! Projects: what one has is not there for another, on any route.

use std::collections::BTreeSet;

use reqwest::Method;
use serde_json::{Value, json};

use crate::support::server::{Reply, Server, TINY, chat_lines, make_key};

/// A body that every route with an id in its path takes, as far as it takes one.
fn any_body() -> Value {
    json!({"part_ids": ["part_0"], "name": "another"})
}

async fn ask(server: &Server, method: &Method, path: &str) -> Reply {
    let request = server.client.request(method.clone(), format!("{}{path}", server.base));
    let request = if *method == Method::POST { request.json(&any_body()) } else { request };
    Reply::read(request.send().await.expect("a reply")).await
}

fn text(value: &Value) -> &str {
    value.as_str().expect("a text")
}

#[tokio::test]
async fn what_is_of_another_project_is_404_on_every_route() {
    let mut server = Server::start_with(&[("HONE_WEBHOOK_ALLOW", "127.0.0.1")]);
    let (ours, theirs) =
        (make_key(server.data_dir(), "team-a"), make_key(server.data_dir(), "team-b"));
    server.act_with(&ours);
    let job_id = server.create_job(&chat_lines(12), json!({"n_epochs": 2})).await;
    let job = server.ended(&job_id, "succeeded").await;
    let upload = json!({"filename": "a.jsonl", "purpose": "fine-tune", "bytes": 9,
        "mime_type": "application/jsonl"});
    let upload = server.post("/v1/uploads", upload).await.ok();
    let endpoint = json!({"name": "ours", "url": "http://127.0.0.1:9/hook",
        "event_types": ["fine_tuning.job.succeeded"]});
    let endpoint = server.post("/v1/webhook_endpoints", endpoint).await.ok();
    let model = text(&job["fine_tuned_model"]);
    let ids = [
        ("file_id", text(&job["training_file"])),
        ("fine_tuned_model_checkpoint", model),
        ("fine_tuning_job_id", job_id.as_str()),
        ("model", model),
        ("upload_id", text(&upload["id"])),
        ("webhook_endpoint_id", text(&endpoint["id"])),
    ];
    let document = server.get("/openapi.json").await.ok();
    let mut tried = BTreeSet::new();
    for (template, item) in document["paths"].as_object().expect("paths") {
        let Some((before, rest)) = template.split_once('{') else {
            continue;
        };
        let (parameter, after) = rest.split_once('}').expect("a whole parameter");
        let after = &after.replace("{permission_id}", "cp_none");
        let id = ids.iter().find(|(name, _id)| *name == parameter);
        let (_name, id) = id.unwrap_or_else(|| panic!("{template}: the test has no {parameter}"));
        for method in item.as_object().expect("methods").keys() {
            let method: Method = method.to_uppercase().parse().expect("a method");
            for prefix in [before, before.strip_prefix("/v1").expect("versioned")] {
                server.act_with(&theirs);
                let refused = ask(&server, &method, &format!("{prefix}{id}{after}")).await;
                let unknown = ask(&server, &method, &format!("{prefix}none-{id}{after}")).await;
                assert_eq!(refused.status, 404, "{method} {template}: {}", refused.text);
                let unknown = unknown.error(404).to_string().replace(&format!("none-{id}"), id);
                assert_eq!(refused.error(404).to_string(), unknown, "{method} {template}");
            }
            tried.insert(format!("{method} {template}"));
        }
    }
    assert!(tried.len() >= 20, "{tried:#?}");

    // Nothing of it has happened.
    server.act_with(&ours);
    assert_eq!(server.job(&job_id).await, job);
    let page = server.get(&format!("/v1/fine_tuning/jobs/{job_id}/checkpoints")).await.ok();
    let checkpoint = text(&page["data"][0]["fine_tuned_model_checkpoint"]);
    for id in [model, checkpoint] {
        let chat = json!({"model": id, "messages": [{"role": "user", "content": "Hi"}],
            "max_tokens": 2});
        server.act_with(&ours);
        server.post("/v1/chat/completions", chat.clone()).await.ok();
        server.act_with(&theirs);
        let error = server.post("/v1/chat/completions", chat).await.error(404);
        assert_eq!(error["code"], "model_not_found");
        server.get(&format!("/v1/models/{id}")).await.error(404);
    }
    server.act_with(&ours);
    let content = format!("/v1/files/{}/content", text(&job["training_file"]));
    assert_eq!(server.get(&content).await.text, chat_lines(12));
    let path = format!("/v1/webhook_endpoints/{}", text(&endpoint["id"]));
    assert_eq!(server.get(&path).await.ok()["name"], "ours");
    let cancelled = format!("/v1/uploads/{}/cancel", text(&upload["id"]));
    assert_eq!(server.send(Method::POST, &cancelled).await.ok()["status"], "cancelled");
    assert_eq!(server.delete(&format!("/v1/models/{model}")).await.ok()["deleted"], true);
}

#[tokio::test]
async fn lists_hold_what_is_of_the_own_project_and_take_no_other_cursor() {
    let mut server = Server::start();
    // From the time before there were keys: of the project "default".
    let early = server.upload(&chat_lines(12)).await;
    let keys = ["default", "team-a", "team-b"].map(|name| make_key(server.data_dir(), name));
    let mut made = Vec::new();
    for key in &keys[1..] {
        server.act_with(key);
        let job = server.create_job(&chat_lines(12), json!({"n_epochs": 1})).await;
        made.push(server.ended(&job, "succeeded").await);
    }
    let all = async |server: &Server, path: &str| -> Vec<String> {
        let list = server.get(path).await.ok();
        let items = list["data"].as_array().expect("a list");
        items.iter().map(|item| text(&item["id"]).to_owned()).collect()
    };
    for (own, other, key) in [(&made[0], &made[1], &keys[1]), (&made[1], &made[0], &keys[2])] {
        server.act_with(key);
        assert_eq!(all(&server, "/v1/fine_tuning/jobs").await, [text(&own["id"])]);
        assert_eq!(all(&server, "/v1/fine_tuning/jobs?limit=1").await, [text(&own["id"])]);
        let models = all(&server, "/v1/models").await;
        assert!(models.iter().any(|id| id == TINY), "base models are everybody's: {models:?}");
        assert!(models.iter().any(|id| *id == text(&own["fine_tuned_model"])));
        assert!(!models.iter().any(|id| *id == text(&other["fine_tuned_model"])));
        let files: BTreeSet<String> = all(&server, "/v1/files").await.into_iter().collect();
        let mut expected: BTreeSet<String> = own["result_files"]
            .as_array()
            .expect("a list")
            .iter()
            .map(|id| text(id).to_owned())
            .collect();
        expected.insert(text(&own["training_file"]).to_owned());
        assert!(files.is_superset(&expected), "{files:?}");
        assert!(!files.contains(text(&other["training_file"])) && !files.contains(&early));
        for cursor in [
            format!("/v1/fine_tuning/jobs?after={}", text(&other["id"])),
            format!("/v1/files?after={}", text(&other["training_file"])),
        ] {
            assert_eq!(server.get(&cursor).await.error(400)["code"], "invalid_cursor");
        }
    }
    server.act_with(&keys[0]);
    assert_eq!(all(&server, "/v1/files").await, [early], "nothing of before is lost");
}

#[tokio::test]
async fn a_job_takes_files_and_models_of_its_own_project_alone() {
    let mut server = Server::start();
    let (ours, theirs) =
        (make_key(server.data_dir(), "team-a"), make_key(server.data_dir(), "team-b"));
    server.act_with(&ours);
    let job = server.create_job(&chat_lines(12), json!({"n_epochs": 1})).await;
    let job = server.ended(&job, "succeeded").await;
    let (our_file, our_model) = (job["training_file"].clone(), job["fine_tuned_model"].clone());
    server.act_with(&theirs);
    let their_file = server.upload(&chat_lines(12)).await;
    for (body, status, param) in [
        (json!({"model": TINY, "training_file": our_file}), 400, "training_file"),
        (
            json!({"model": TINY, "training_file": their_file, "validation_file": our_file}),
            400,
            "validation_file",
        ),
        (json!({"model": our_model, "training_file": their_file}), 404, "model"),
    ] {
        let error = server.post("/v1/fine_tuning/jobs", body).await.error(status);
        assert_eq!(error["param"], param);
    }
}

#[tokio::test]
async fn names_of_requests_are_each_projects_own() {
    let mut server = Server::start();
    let keys = ["team-a", "team-a", "team-b"].map(|name| make_key(server.data_dir(), name));
    let mut ids = Vec::new();
    let mut files = Vec::new();
    for (index, key) in keys.iter().enumerate() {
        server.act_with(key);
        // A project has more than one key.
        let file = match index {
            1 => String::clone(&files[0]),
            _ => server.upload(&chat_lines(12)).await,
        };
        let body = json!({"model": TINY, "training_file": file, "seed": 1,
            "hyperparameters": {"n_epochs": 1}});
        files.push(file);
        let request = server.client.post(format!("{}/v1/fine_tuning/jobs", server.base));
        let request = request.header("idempotency-key", "the same").json(&body);
        let job = Reply::read(request.send().await.expect("a reply")).await.ok();
        ids.push(text(&job["id"]).to_owned());
    }
    assert_eq!(ids[0], ids[1], "two keys of one project repeat each other's requests");
    assert_ne!(ids[0], ids[2]);
}

#[tokio::test]
async fn a_project_with_a_permission_uses_a_model_and_may_not_pass_it_on() {
    let mut server = Server::start();
    let (ours, theirs) =
        (make_key(server.data_dir(), "team-a"), make_key(server.data_dir(), "team-b"));
    server.act_with(&ours);
    let job = server.create_job(&chat_lines(12), json!({"n_epochs": 1})).await;
    let job = server.ended(&job, "succeeded").await;
    let model = text(&job["fine_tuned_model"]);
    let permissions = format!("/v1/fine_tuning/checkpoints/{model}/permissions");
    let chat = json!({"model": model, "messages": [{"role": "user", "content": "Hi"}],
        "max_tokens": 2});
    let grant = json!({"project_ids": ["team-b"]});
    let granted = server.post(&permissions, grant.clone()).await.ok();

    server.act_with(&theirs);
    server.post("/v1/chat/completions", chat.clone()).await.ok();
    assert_eq!(server.get(&format!("/v1/models/{model}")).await.ok()["id"], model);
    let file = server.upload(&chat_lines(12)).await;
    let going_on = json!({"model": model, "training_file": file,
        "hyperparameters": {"n_epochs": 1}});
    let going_on = server.post("/v1/fine_tuning/jobs", going_on).await.ok();
    server.ended(text(&going_on["id"]), "succeeded").await;
    server.get(&permissions).await.error(404);
    server.post(&permissions, grant).await.error(404);
    server.delete(&format!("/v1/models/{model}")).await.error(404);

    server.act_with(&ours);
    let one = format!("{permissions}/{}", text(&granted["data"][0]["id"]));
    assert_eq!(server.delete(&one).await.ok()["deleted"], true);
    server.act_with(&theirs);
    server.post("/v1/chat/completions", chat).await.error(404);
}
