//! Models that reason: what is taught is what is answered, with the reasoning apart.

use serde_json::{Value, json};

use crate::http::chat_stream::{chunks, stream_of};
use crate::support::server::Server;
use crate::support::templates::Models;

fn template(name: &str) -> Value {
    let folder =
        std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/template_traits");
    std::fs::read_to_string(folder.join(format!("{name}.jinja"))).expect("a template").into()
}

/// Trains `answer` until the model knows it; the tuned model's name.
async fn taught(server: &Server, model: &str, answer: &Value) -> String {
    let line = json!({"messages": [{"role": "user", "content": "hi"}, answer]});
    let file = server.upload(&format!("{line}\n").repeat(10)).await;
    let values = json!({"n_epochs": 40, "learning_rate": 0.01, "batch_size": 2});
    let body = json!({"model": model, "training_file": file, "seed": 1, "hyperparameters": values});
    let job = server.post("/v1/fine_tuning/jobs", body).await.ok();
    let job = server.ended(job["id"].as_str().expect("an id"), "succeeded").await;
    job["fine_tuned_model"].as_str().expect("a name").to_owned()
}

fn question(model: &str) -> Value {
    json!({"model": model, "temperature": 0, "max_tokens": 100,
        "messages": [{"role": "user", "content": "hi"}]})
}

/// What a stream says: reasoning and answer.
async fn streamed(server: &Server, model: &str) -> (String, String) {
    let (mut reasoning, mut answer) = (String::new(), String::new());
    for chunk in chunks(&stream_of(server, "/v1/chat/completions", question(model)).await) {
        let delta = &chunk["choices"][0]["delta"];
        reasoning += delta["reasoning_content"].as_str().unwrap_or_default();
        answer += delta["content"].as_str().unwrap_or_default();
    }
    (reasoning, answer)
}

#[tokio::test]
async fn a_model_that_reasons_answers_what_it_was_taught_and_shows_its_reasoning_apart() {
    let models = Models::new();
    // Qwen3 writes a block before the last answer; R1 opens it in the prompt and drops it from every answer.
    let traits =
        ["empty_block_before_last_answer", "reasoning_stripped_everywhere_prompt_opens_block"];
    for name in traits {
        models.add(name, template(name));
    }
    let data = tempfile::tempdir().expect("a folder");
    let server = Server::start_over(data.path(), models.path());
    for name in traits {
        for (answer, reasoning) in [
            (json!({"role": "assistant", "content": "Yes, hello."}), ""),
            (
                json!({"role": "assistant", "content": "Yes.", "reasoning_content": "a plan"}),
                "a plan",
            ),
            (
                json!({"role": "assistant", "content": "<think>\na plan\n</think>\n\nYes."}),
                "a plan",
            ),
        ] {
            let model = taught(&server, name, &answer).await;
            let reply = server.post("/v1/chat/completions", question(&model)).await.ok();
            let message = &reply["choices"][0]["message"];
            let said = answer["content"].as_str().expect("a text").rsplit('\n').next();
            assert_eq!(message["content"].as_str(), said, "{name}: {message}");
            let thought = message["reasoning_content"].as_str().unwrap_or_default();
            assert_eq!(thought, reasoning, "{name}: {message}");
            assert_eq!(reply["choices"][0]["finish_reason"], "stop", "{name}");
            let usage = &reply["usage"];
            let thinking = usage["completion_tokens_details"]["reasoning_tokens"].as_u64();
            let all = usage["completion_tokens"].as_u64();
            // An empty block is written, too.
            assert!(thinking > Some(0) || reasoning.is_empty(), "{name}: {usage}");
            assert!(thinking < all, "{name}: {usage}");
            let (thought, answered) = streamed(&server, &model).await;
            assert_eq!((thought.as_str(), Some(answered.as_str())), (reasoning, said), "{name}");
            // A client that sends the reply back is understood.
            let mut body = question(&model);
            let list = body["messages"].as_array_mut().expect("a list");
            list.extend([message.clone(), json!({"role": "user", "content": "again"})]);
            server.post("/v1/chat/completions", body).await.ok();
        }
    }
}

#[tokio::test]
async fn reasoning_that_a_template_would_lose_is_refused_by_line_and_key() {
    let server = Server::start();
    let line = json!({"messages": [{"role": "user", "content": "2+2"},
        {"role": "assistant", "content": "4", "reasoning_content": "two and two"}]});
    let file = server.upload(&format!("{line}\n").repeat(10)).await;
    let body = json!({"model": "tiny-llama", "training_file": file});
    let dry = server.post("/v1/fine_tuning/jobs?dry_run=true", body).await.ok();
    assert_eq!(dry["is_valid"], false, "{dry}");
    let problem = &dry["problems"][0];
    assert_eq!(
        (&problem["line"], &problem["key"]),
        (&json!(1), &json!("messages[1].reasoning_content"))
    );
}
