//! Named templates, and that a tuned model is served and exported with the template that it was trained
//! with, whatever becomes of its base's files.

use serde_json::{Value, json};

use crate::http::extensions::{archive, unpacked};
use crate::support::server::{Server, chat_lines};
use crate::support::templates::{Models, PLAIN, ask, assert_prompt, messages, set_template, with};

const JOBS: &str = "/v1/fine_tuning/jobs";
const DRY_RUN: &str = "/v1/fine_tuning/jobs?dry_run=true";
const CHAT: &str = "/v1/chat/completions";

const PLAIN_PROMPT: &str = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n";

/// The plain template with another word before each role.
fn worded(word: &str) -> String {
    PLAIN.replace("<|im_start|>", &format!("<|im_start|>{word}"))
}

fn worded_prompt(word: &str) -> String {
    PLAIN_PROMPT.replace("<|im_start|>", &format!("<|im_start|>{word}"))
}

/// A template for tools.
fn tool_use() -> String {
    let tools =
        "<|im_start|>system\n{% for t in tools %}{{ t | tojson }}\n{% endfor %}<|im_end|>\n";
    let calls = "{% if m.tool_calls %}{% for c in m.tool_calls %}<tool_call>\n{\"name\": \"{{ \
        c.function.name }}\", \"arguments\": {{ c.function.arguments | tojson }}}\n</tool_call>\
        {% endfor %}{% else %}{{ m.content }}{% endif %}";
    format!("{tools}{}", PLAIN.replace("{{ m.content }}", calls))
}

fn tools() -> Value {
    json!([{"type": "function", "function": {"name": "add", "description": "sums",
        "parameters": {"type": "object", "properties": {"x": {"type": "integer"}}}}}])
}

fn tool_prompt() -> String {
    let tool = r#"{"type": "function", "function": {"name": "add", "description": "sums", "parameters": {"type": "object", "properties": {"x": {"type": "integer"}}}}}"#;
    format!("<|im_start|>system\n{tool}\n<|im_end|>\n{PLAIN_PROMPT}")
}

fn tool_lines(count: usize) -> String {
    let call = json!({"id": "callid001", "type": "function",
        "function": {"name": "add", "arguments": "{\"x\": 1}"}});
    let line = json!({"messages": [
        {"role": "user", "content": "add"},
        {"role": "assistant", "content": null, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "callid001", "content": "1"},
        {"role": "assistant", "content": "1"}], "tools": tools()});
    format!("{line}\n").repeat(count)
}

fn over(models: &Models) -> (Server, tempfile::TempDir) {
    let data = tempfile::tempdir().expect("a folder");
    (Server::start_over(data.path(), models.path()), data)
}

async fn create(server: &Server, model: &str, more: &Value) -> Value {
    let file = server.upload(&chat_lines(12)).await;
    let values = json!({"n_epochs": 1, "batch_size": 4, "learning_rate": 1e-3, "lora_r": 2});
    let body = json!({"model": model, "training_file": file, "seed": 1, "hyperparameters": values});
    let job = server.post(JOBS, with(body, more)).await.ok();
    server.ended(job["id"].as_str().expect("an id"), "succeeded").await
}

fn name_of(job: &Value) -> &str {
    job["fine_tuned_model"].as_str().expect("a name")
}

#[tokio::test]
async fn a_conversation_takes_the_template_that_transformers_would_take() {
    let models = Models::new();
    let list = json!([{"name": "default", "template": PLAIN},
        {"name": "tool_use", "template": tool_use()}, {"name": "rag", "template": worded("RAG-")},
        {"name": "broken", "template": "{% for"}]);
    models.add("list", list);
    let files = models.add("files", json!(worded("old-")));
    std::fs::write(files.join("chat_template.jinja"), PLAIN).expect("writes");
    std::fs::create_dir(files.join("additional_chat_templates")).expect("is made");
    let write = |name: &str, text: &str| {
        std::fs::write(files.join("additional_chat_templates").join(name), text).expect("writes");
    };
    write("tool_use.jinja", &tool_use());
    write("rag.jinja", &worded("RAG-"));
    let processor = models.add("processor", Value::Null);
    let text = json!({"chat_template": PLAIN}).to_string();
    std::fs::write(processor.join("chat_template.json"), text).expect("writes");
    models.add(
        "no-default",
        json!([{"name": "tool_use", "template": tool_use()},
        {"name": "rag", "template": worded("RAG-")}]),
    );
    let (server, _data) = over(&models);
    let with_tools = json!({"tools": tools()});
    for model in ["list", "files", "processor"] {
        assert_prompt(&server, model, &json!({}), PLAIN_PROMPT).await;
    }
    for model in ["list", "files", "no-default"] {
        assert_prompt(&server, model, &with_tools, &tool_prompt()).await;
        let more = json!({"chat_template": "rag"});
        assert_prompt(&server, model, &more, &worded_prompt("RAG-")).await;
        let file = server.upload(&tool_lines(10)).await;
        let body = json!({"model": model, "training_file": file});
        let dry = server.post(DRY_RUN, body).await.ok();
        assert_eq!(dry["is_valid"], true, "{model}: {dry:#}");
    }

    // What cannot be chosen is named.
    for (model, more, param, said) in [
        ("no-default", json!({}), "chat_template", "rag, tool_use"),
        ("list", json!({"chat_template": "rug"}), "chat_template", "default, rag, tool_use"),
        ("list", json!({"chat_template": "broken"}), "messages", "cannot be read"),
        ("processor", with_tools.clone(), "tools", "does not write tools"),
    ] {
        let error = server.post(CHAT, ask(model, &more)).await.error(400);
        assert_eq!(error["param"], param, "{model}: {error}");
        assert!(error["message"].as_str().is_some_and(|text| text.contains(said)), "{error}");
    }
    let file = server.upload(&chat_lines(12)).await;
    let body = json!({"model": "no-default", "training_file": file});
    let dry = server.post(DRY_RUN, body.clone()).await.ok();
    assert!(dry["problems"][0]["message"].to_string().contains("rag, tool_use"), "{dry:#}");
    let body = with(body, &json!({"chat_template": "rag"}));
    assert_eq!(server.post(DRY_RUN, body).await.ok()["is_valid"], true);

    // A tuned model has the templates of its base, or the one that its job named.
    let job = create(&server, "files", &json!({})).await;
    for name in ["files", name_of(&job)] {
        assert_prompt(&server, name, &with_tools, &tool_prompt()).await;
    }
    let job = create(&server, "files", &json!({"chat_template": "rag"})).await;
    assert_prompt(&server, name_of(&job), &json!({}), &worded_prompt("RAG-")).await;
    let values = json!({"n_epochs": 1, "batch_size": 4, "tuning": "full"});
    let whole = create(&server, "files", &json!({"hyperparameters": values})).await;
    assert_prompt(&server, name_of(&whole), &with_tools, &tool_prompt()).await;
    assert_prompt(&server, name_of(&whole), &json!({}), PLAIN_PROMPT).await;
}

#[tokio::test]
async fn a_template_that_changes_is_seen_and_a_tuned_model_keeps_its_own() {
    let models = Models::new();
    let folder = models.add("base", json!(PLAIN));
    let (server, data) = over(&models);
    assert_prompt(&server, "base", &json!({}), PLAIN_PROMPT).await;
    let first = create(&server, "base", &json!({})).await;

    std::fs::write(folder.join("chat_template.jinja"), worded("NEW-")).expect("writes");
    assert_prompt(&server, "base", &json!({}), &worded_prompt("NEW-")).await;
    assert_prompt(&server, name_of(&first), &json!({}), PLAIN_PROMPT).await;
    let second = create(&server, "base", &json!({})).await;
    assert_prompt(&server, name_of(&second), &json!({}), &worded_prompt("NEW-")).await;

    // One that cannot be read is said, until it can be.
    std::fs::write(folder.join("chat_template.jinja"), "{% for").expect("writes");
    let error = server.post(CHAT, ask("base", &json!({}))).await.error(400);
    assert!(error["message"].as_str().is_some_and(|text| text.contains("template")), "{error}");
    std::fs::remove_file(folder.join("chat_template.jinja")).expect("removes");
    set_template(&folder, json!(worded("THEN-")));
    assert_prompt(&server, "base", &json!({}), &worded_prompt("THEN-")).await;

    // After a restart as well, in what continues from it, and in what leaves.
    drop(server);
    let server = Server::start_over(data.path(), models.path());
    assert_prompt(&server, name_of(&second), &json!({}), &worded_prompt("NEW-")).await;
    assert_prompt(&server, name_of(&first), &json!({}), PLAIN_PROMPT).await;
    let next = create(&server, name_of(&second), &json!({})).await;
    assert_prompt(&server, name_of(&next), &json!({}), &worded_prompt("NEW-")).await;
    let id = second["id"].as_str().expect("an id");
    let (bytes, _) = archive(&server, id, "?format=merged").await;
    let merged = models.path().join("merged");
    std::fs::create_dir(&merged).expect("a folder");
    for (name, content) in unpacked(&bytes) {
        std::fs::write(merged.join(name), content).expect("writes");
    }
    assert_prompt(&server, "merged", &json!({}), &worded_prompt("NEW-")).await;
}

#[tokio::test]
async fn a_resumed_job_goes_on_with_the_template_that_it_began_with() {
    let models = Models::new();
    let folder = models.add("base", json!(PLAIN));
    let (server, _data) = over(&models);
    let file = server.upload(&chat_lines(40)).await;
    let values = json!({"n_epochs": 20, "batch_size": 2, "learning_rate": 1e-3});
    let body =
        json!({"model": "base", "training_file": file, "seed": 3, "hyperparameters": values});
    let undisturbed = server.post(JOBS, body.clone()).await.ok();
    let undisturbed = server.ended(undisturbed["id"].as_str().expect("an id"), "succeeded").await;

    let job = server.post(JOBS, body).await.ok();
    let id = job["id"].as_str().expect("an id");
    server.until(id, |job| job["trained_steps"].as_u64() > Some(10)).await;
    let pause = format!("{JOBS}/{id}/pause");
    server.send(reqwest::Method::POST, &pause).await.ok();
    server.until(id, |job| job["status"] == "paused").await;
    let done = server.job(id).await["trained_steps"].as_u64().expect("a number");
    std::fs::write(folder.join("chat_template.jinja"), worded("NEW-")).expect("writes");
    set_template(&folder, json!(worded("CONFIG-")));
    server.send(reqwest::Method::POST, &format!("{JOBS}/{id}/resume")).await.ok();
    let resumed = server.ended(id, "succeeded").await;
    let said = messages(&server, id).await;
    assert!(said.iter().any(|text| text.contains("goes on with the one")), "{said:?}");
    assert!(!said.iter().any(|text| text.contains("belongs to other data")), "{said:?}");
    assert!(done > 10, "it was under way");
    for name in ["adapter_model.safetensors", "step_metrics.csv", "chat_template.jinja"] {
        let one = server.result_file(&undisturbed, name).await;
        assert!(one == server.result_file(&resumed, name).await, "{name}: other bytes");
    }
    assert_prompt(&server, name_of(&resumed), &json!({}), PLAIN_PROMPT).await;
}
