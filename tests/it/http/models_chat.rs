//! `/v1/models` and `/v1/chat/completions`: what there is, and what it answers.

use reqwest::Method;
use serde_json::{Value, json};

use crate::support::server::{Server, TINY, chat_lines};

/// A question to a model, with further fields.
pub fn ask(model: &str, more: Value) -> Value {
    let mut body = json!({"model": model, "max_tokens": 8, "temperature": 0,
        "messages": [{"role": "user", "content": "What comes after 3?"}]});
    for (key, value) in more.as_object().expect("an object") {
        body[key] = value.clone();
    }
    body
}

#[tokio::test]
async fn base_models_and_tuned_ones_are_listed_and_deleted_as_openai_does() {
    let server = Server::start();
    let id = server.create_job(&chat_lines(12), json!({"n_epochs": 2})).await;
    let job = server.ended(&id, "succeeded").await;
    let tuned = job["fine_tuned_model"].as_str().expect("a model").to_owned();
    let list = server.get("/v1/models").await.ok();
    let ids: Vec<&Value> =
        list["data"].as_array().expect("a list").iter().map(|model| &model["id"]).collect();
    assert_eq!(ids, [TINY, tuned.as_str()]);
    for model in list["data"].as_array().expect("a list") {
        assert_eq!(model["object"], "model");
        assert!(model["created"].is_i64() && model["owned_by"].is_string(), "{model}");
    }
    let encoded = tuned.replace(':', "%3A");
    let one = server.get(&format!("/v1/models/{encoded}")).await.ok();
    assert_eq!((&one["id"], &one["job_id"]), (&json!(tuned), &json!(id)));

    let error = server.delete(&format!("/v1/models/{TINY}")).await.error(403);
    assert_eq!(error["code"], "permission_denied");
    let deleted = server.delete(&format!("/v1/models/{tuned}")).await.ok();
    assert_eq!(deleted, json!({"id": tuned, "object": "model", "deleted": true}));
    server.get(&format!("/v1/models/{tuned}")).await.error(404);
    let error = server.post("/v1/chat/completions", ask(&tuned, json!({}))).await.error(404);
    assert_eq!(error["code"], "model_not_found");
    server.delete(&format!("/v1/models/{tuned}")).await.error(404);
}

#[tokio::test]
async fn a_model_id_with_a_slash_is_looked_up_encoded_or_not() {
    let server = Server::start();
    for path in ["Qwen%2FQwen2.5-0.5B", "Qwen/Qwen2.5-0.5B"] {
        let error = server.get(&format!("/v1/models/{path}")).await.error(404);
        assert_eq!(error["code"], "model_not_found");
        let message = error["message"].as_str().expect("a text");
        assert!(message.contains("\"Qwen/Qwen2.5-0.5B\""), "{message}");
    }
}

#[tokio::test]
async fn an_answer_has_openais_shape_and_is_the_same_each_time_when_greedy_or_seeded() {
    let server = Server::start();
    let chat = async |more: Value| server.post("/v1/chat/completions", ask(TINY, more)).await.ok();
    let reply = chat(json!({})).await;
    assert_eq!(reply["object"], "chat.completion");
    assert!(reply["id"].as_str().is_some_and(|id| id.starts_with("chatcmpl-")));
    let choice = &reply["choices"][0];
    assert_eq!((&choice["index"], &choice["message"]["role"]), (&json!(0), &json!("assistant")));
    assert_eq!(choice.get("logprobs"), Some(&Value::Null));
    assert_eq!(choice["message"].get("refusal"), Some(&Value::Null));
    let usage = &reply["usage"];
    let sum = usage["prompt_tokens"].as_u64().expect("a number")
        + usage["completion_tokens"].as_u64().expect("a number");
    assert_eq!(usage["total_tokens"], sum);
    assert_eq!(chat(json!({})).await["choices"], reply["choices"]);

    let seeded = json!({"temperature": 1.5, "seed": 7, "n": 3});
    let first = chat(seeded.clone()).await;
    assert_eq!(first["choices"].as_array().map(Vec::len), Some(3));
    assert_ne!(first["choices"][0]["message"], first["choices"][1]["message"]);
    assert_eq!(chat(seeded).await["choices"], first["choices"]);

    let short = chat(json!({"max_completion_tokens": 2, "max_tokens": 8})).await;
    if short["choices"][0]["finish_reason"] == "length" {
        assert_eq!(short["usage"]["completion_tokens"], 2, "max_completion_tokens wins");
    }
    let text = reply["choices"][0]["message"]["content"].as_str().expect("a text");
    let stop: String = text.chars().skip(3).take(2).collect();
    let stopped = chat(json!({"stop": stop})).await;
    let cut = stopped["choices"][0]["message"]["content"].as_str().expect("a text");
    assert!(text.starts_with(cut) && !cut.contains(&stop), "{cut:?} of {text:?}");
    assert_eq!(stopped["choices"][0]["finish_reason"], "stop");
    // Fields without an effect on the answer are taken.
    chat(json!({"user": "u", "store": false, "metadata": {}, "frequency_penalty": 0})).await;
}

#[tokio::test]
async fn what_chat_does_not_offer_or_cannot_read_is_refused_by_name() {
    let server = Server::start();
    for (more, param) in [
        (json!({"stream": "yes"}), "stream"),
        (json!({"stream_options": {"include_usage": true}}), "stream_options"),
        (json!({"logprobs": 3}), "logprobs"),
        (json!({"top_logprobs": 3}), "top_logprobs"),
        (json!({"logprobs": true, "top_logprobs": 21}), "top_logprobs"),
        (json!({"tools": [{"type": "function"}]}), "tools[0]"),
        (json!({"tool_choice": "required"}), "tool_choice"),
        (json!({"tool_choice": {"type": "function", "function": {"name": "f"}}}), "tool_choice"),
        (json!({"response_format": {"type": "json_object"}}), "response_format"),
        (json!({"modalities": ["text", "audio"]}), "modalities"),
        (json!({"audio": {"voice": "alloy", "format": "wav"}}), "audio"),
        (json!({"web_search_options": {}}), "web_search_options"),
        (json!({"presence_penalty": 3}), "presence_penalty"),
        (json!({"frequency_penalty": -2.1}), "frequency_penalty"),
        (json!({"logit_bias": {"2": 101}}), "logit_bias.2"),
        (json!({"logit_bias": [2]}), "logit_bias"),
        (json!({"temperature": 3}), "temperature"),
        (json!({"top_p": -1}), "top_p"),
        (json!({"max_tokens": 0}), "max_tokens"),
        (json!({"n": 0}), "n"),
        (json!({"stop": ["a", "b", "c", "d", "e"]}), "stop"),
        (json!({"messages": null}), "messages"),
        (json!({"messages": [{"role": "user"}]}), "messages[0].content"),
        (json!({"messages": [{"role": "king", "content": "x"}]}), "messages[0].role"),
    ] {
        let error = server.post("/v1/chat/completions", ask(TINY, more.clone())).await.error(400);
        assert_eq!(error["param"], param, "{more}: {error}");
    }
    let long = json!({"messages": [{"role": "user", "content": "word ".repeat(5000)}]});
    let error = server.post("/v1/chat/completions", ask(TINY, long)).await.error(400);
    assert_eq!(error["code"], "context_length_exceeded");
    server.send(Method::GET, "/v1/chat/completions").await.error(405);
}

#[tokio::test]
async fn chat_answers_while_a_job_trains() {
    let server = Server::start();
    let id = server.create_job(&chat_lines(12), json!({"n_epochs": 50, "batch_size": 1})).await;
    server.under_way(&id).await;
    for _ in 0..5 {
        server.post("/v1/chat/completions", ask(TINY, json!({}))).await.ok();
    }
    assert_eq!(server.job(&id).await["status"], "running");
}
