//! `/v1/chat/completions` as server-sent events: OpenAI's chunks in their order, nothing shown that
//! must not be, an end to what nobody reads.

use std::path::Path;
use std::time::Instant;

use futures_util::StreamExt;
use serde_json::{Value, json};

use crate::http::models_chat::ask;
use crate::support::scripted_model::{self, Token};
use crate::support::server::{Server, TINY};

const CHAT: &str = "/v1/chat/completions";

/// ChatML without tools.
pub const CHATML: &str = include_str!("../../data/templates/chatml.jinja");

/// A server with models that write what is wanted, and the folder that they lie in.
pub struct Scripted {
    pub server: Server,
    pub _folders: [tempfile::TempDir; 2],
}

/// Starts one with a model `scripted`.
pub fn scripted(template: Option<&str>, answer: &[Token<'_>]) -> Scripted {
    let folders = [tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder")];
    scripted_model::write(folders[1].path(), "scripted", template, answer);
    Scripted { server: Server::start_over(folders[0].path(), folders[1].path()), _folders: folders }
}

/// What a stream says: its text as it is.
pub async fn stream_of(server: &Server, path: &str, mut body: Value) -> String {
    body["stream"] = json!(true);
    let request = server.client.post(format!("{}{path}", server.base)).json(&body);
    let reply = request.send().await.expect("a reply");
    assert_eq!(reply.status(), 200);
    assert_eq!(reply.headers()["content-type"], "text/event-stream");
    assert!(reply.headers().contains_key("x-request-id"));
    reply.text().await.expect("it ends")
}

/// The chunks of a stream that ends well.
pub fn chunks(text: &str) -> Vec<Value> {
    let body = text.strip_suffix("data: [DONE]\n\n").unwrap_or_else(|| panic!("no end: {text}"));
    let data = body.split_terminator("\n\n").map(|event| {
        let data = event.strip_prefix("data: ").unwrap_or_else(|| panic!("{event:?}"));
        serde_json::from_str(data).unwrap_or_else(|error| panic!("{error}: {data}"))
    });
    data.collect()
}

/// The deltas of one choice put together.
fn content(chunks: &[Value], index: usize) -> String {
    let choices = chunks.iter().flat_map(|chunk| chunk["choices"].as_array().expect("a list"));
    let of_index = choices.filter(|choice| choice["index"] == index);
    of_index.filter_map(|choice| choice["delta"]["content"].as_str()).collect()
}

fn question(more: Value) -> Value {
    ask("scripted", more)
}

#[tokio::test]
async fn a_stream_is_openais_chunks_to_the_byte() {
    let answer = [Token::Text("Four"), Token::Text(", of course")];
    let Scripted { server, _folders } = scripted(Some(CHATML), &answer);
    for include_usage in [false, true] {
        let options = json!({"stream_options": {"include_usage": include_usage}});
        let text = stream_of(&server, CHAT, question(options)).await;
        let first: Value =
            serde_json::from_str(&text[6..text.find('\n').expect("a line")]).expect("JSON");
        let (id, created) = (first["id"].as_str().expect("an id"), &first["created"]);
        assert!(id.starts_with("chatcmpl-") && created.is_i64());
        let usage = if include_usage { ",\"usage\":null" } else { "" };
        let chunk = |choices: &str, usage: &str| {
            format!(
                "data: {{\"id\":\"{id}\",\"object\":\"chat.completion.chunk\",\"created\":{created},\
                 \"model\":\"scripted\",\"choices\":[{choices}]{usage}}}\n\n"
            )
        };
        let delta = |delta: &str, reason: &str| {
            let choice = format!(
                "{{\"index\":0,\"delta\":{delta},\"logprobs\":null,\"finish_reason\":{reason}}}"
            );
            chunk(&choice, usage)
        };
        let mut wanted = delta(r#"{"role":"assistant","content":"","refusal":null}"#, "null");
        wanted += &delta(r#"{"content":"Four"}"#, "null");
        wanted += &delta(r#"{"content":", of course"}"#, "null");
        wanted += &delta("{}", "\"stop\"");
        if include_usage {
            let whole = server.post(CHAT, question(json!({}))).await.ok();
            wanted += &chunk("", &format!(",\"usage\":{}", whole["usage"]));
        }
        wanted += "data: [DONE]\n\n";
        assert_eq!(text, wanted);
    }
}

#[tokio::test]
async fn a_stream_says_what_the_whole_reply_says() {
    let server = Server::start();
    for more in [
        json!({}),
        json!({"temperature": 1.5, "seed": 7, "n": 3, "max_tokens": 20}),
        json!({"temperature": 0.7, "top_p": 0.5, "seed": 1, "frequency_penalty": 1.5}),
        json!({"temperature": 1, "seed": 5, "logprobs": true, "top_logprobs": 3, "n": 2}),
    ] {
        let whole = server.post(CHAT, ask(TINY, more.clone())).await.ok();
        let chunks = chunks(&stream_of(&server, CHAT, ask(TINY, more.clone())).await);
        for (index, choice) in whole["choices"].as_array().expect("a list").iter().enumerate() {
            assert_eq!(choice["message"]["content"], content(&chunks, index), "{more}");
            let mut parts = chunks.iter().map(|chunk| &chunk["choices"][0]);
            let last = parts.rfind(|part| part["index"] == index).expect("a last one");
            assert_eq!(last["finish_reason"], choice["finish_reason"]);
            let tokens: Vec<Value> = chunks
                .iter()
                .filter(|chunk| chunk["choices"][0]["index"] == index)
                .filter_map(|chunk| chunk["choices"][0]["logprobs"]["content"].as_array())
                .flatten()
                .cloned()
                .collect();
            let wanted = choice["logprobs"]["content"].as_array().cloned().unwrap_or_default();
            assert_eq!(tokens, wanted, "{more}");
        }
    }
}

#[tokio::test]
async fn a_character_over_several_tokens_comes_whole_and_its_bytes_with_each_token() {
    let bytes = "é😀".as_bytes();
    let mut answer = vec![Token::Text("caf")];
    answer.extend(bytes.iter().map(|byte| Token::Byte(*byte)));
    answer.push(Token::Text(" au lait"));
    let Scripted { server, _folders } = scripted(Some(CHATML), &answer);
    let asked = question(json!({"logprobs": true, "max_tokens": 50}));
    let chunks = chunks(&stream_of(&server, CHAT, asked.clone()).await);
    let deltas: Vec<&str> = chunks
        .iter()
        .filter_map(|chunk| chunk["choices"][0]["delta"]["content"].as_str())
        .collect();
    assert_eq!(deltas, ["", "caf", "é", "😀", " au lait"]);
    let tokens = |chunk: &Value| chunk["choices"][0]["logprobs"]["content"].clone();
    assert_eq!(tokens(&chunks[3]).as_array().map(Vec::len), Some(4), "with the character");
    let whole = server.post(CHAT, asked).await.ok();
    let tokens = whole["choices"][0]["logprobs"]["content"].as_array().expect("a list").clone();
    let spelt: Vec<u8> = tokens
        .iter()
        .flat_map(|token| token["bytes"].as_array().expect("bytes"))
        .map(|byte| byte.as_u64().expect("a byte") as u8)
        .collect();
    assert_eq!(String::from_utf8(spelt).expect("UTF-8"), "café😀 au lait");
    assert_eq!(tokens[1]["token"], "\\xc3");
    // Half a character at the limit is shown as one that is missing.
    let cut = server.post(CHAT, question(json!({"max_tokens": 2}))).await.ok();
    assert_eq!(cut["choices"][0]["message"]["content"], "caf\u{fffd}");
    assert_eq!(cut["choices"][0]["finish_reason"], "length");
}

#[tokio::test]
async fn a_stop_text_is_never_sent_though_tokens_cut_it() {
    let answer = [Token::Text("one E"), Token::Text("ND"), Token::Text("S here")];
    let Scripted { server, _folders } = scripted(Some(CHATML), &answer);
    for (stop, shown, reason) in [
        (json!("ENDS"), "one ", "stop"),
        (json!(["x", "S h"]), "one END", "stop"),
        (json!("EN"), "one ", "stop"),
        (json!("here and"), "one ENDS here", "stop"),
        (json!("ENDURE"), "one ENDS here", "stop"),
    ] {
        let asked = question(json!({"stop": stop, "logprobs": true}));
        let text = stream_of(&server, CHAT, asked.clone()).await;
        assert_eq!(content(&chunks(&text), 0), shown, "{stop}");
        let whole = server.post(CHAT, asked).await.ok();
        let choice = &whole["choices"][0];
        assert_eq!(
            (&choice["message"]["content"], &choice["finish_reason"]),
            (&json!(shown), &json!(reason))
        );
        // The tokens that begin in what is shown.
        let tokens = choice["logprobs"]["content"].as_array().expect("a list");
        let before: String = tokens.iter().filter_map(|token| token["token"].as_str()).collect();
        assert!(before.starts_with(shown), "{before:?} for {shown:?}");
    }
}

#[tokio::test]
async fn a_client_that_goes_ends_the_generation() {
    let server = Server::start();
    // Nothing ends these answers but the context.
    let long = json!({"n": 8, "max_tokens": 400, "logit_bias": {"0": -100, "1": -100, "2": -100}});
    let start = Instant::now();
    server.post(CHAT, ask(TINY, long.clone())).await.ok();
    let whole = start.elapsed();
    for is_stream in [true, false] {
        let mut body = ask(TINY, long.clone());
        body["stream"] = json!(is_stream);
        let request = server.client.post(format!("{}{CHAT}", server.base)).json(&body);
        if is_stream {
            let mut bytes = request.send().await.expect("a reply").bytes_stream();
            bytes.next().await.expect("something").expect("bytes");
        } else {
            assert!(request.timeout(whole / 4).send().await.is_err(), "it takes longer");
        }
        let start = Instant::now();
        server.post(CHAT, ask(TINY, json!({"max_tokens": 1}))).await.ok();
        let waited = start.elapsed();
        assert!(waited < whole / 3, "{waited:?} after one that takes {whole:?}");
    }
}

#[tokio::test]
async fn an_error_is_a_reply_before_the_first_token_and_an_event_after_it() {
    let answer = [Token::Text("so "), Token::Broken("far"), Token::Text("never")];
    let Scripted { server, _folders } = scripted(Some(CHATML), &answer);
    let text = stream_of(&server, CHAT, question(json!({}))).await;
    let events: Vec<&str> = text.split_terminator("\n\n").collect();
    assert_eq!(events.len(), 4, "role, two tokens, the error: {text}");
    let error: Value =
        serde_json::from_str(events[3].strip_prefix("data: ").expect("data")).expect("JSON");
    assert_eq!(error["error"]["code"], "invalid_model", "{error}");
    assert!(!text.contains("[DONE]"));
    server.post(CHAT, question(json!({}))).await.error(400);

    let mut banned = serde_json::Map::new();
    for token in 0..scripted_model::BASE + answer.len() {
        banned.insert(token.to_string(), json!(-100));
    }
    for (more, param) in [
        (json!({"logit_bias": banned}), json!("logit_bias")),
        (json!({"max_tokens": 0}), json!("max_tokens")),
    ] {
        let mut body = question(more);
        body["stream"] = json!(true);
        let error = server.post(CHAT, body).await.error(400);
        assert_eq!(error["param"], param, "{error}");
    }
    let mut body =
        question(json!({"messages": [{"role": "user", "content": "word ".repeat(5000)}]}));
    body["stream"] = json!(true);
    assert_eq!(server.post(CHAT, body).await.error(400)["code"], "context_length_exceeded");
}

/// The template of a family.
fn template(name: &str) -> String {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/templates");
    std::fs::read_to_string(folder.join(format!("{name}.jinja"))).expect("there")
}

/// A question with a tool.
fn with_tool(more: Value) -> Value {
    let mut body = question(json!({"max_tokens": 50, "tools": [{"type": "function", "function": {
        "name": "look", "description": "Looks.",
        "parameters": {"type": "object", "properties": {"x": {"type": "integer"}}}}}]}));
    for (key, value) in more.as_object().expect("an object") {
        body[key] = value.clone();
    }
    body
}

#[tokio::test]
async fn calls_of_tools_are_read_out_of_what_each_family_writes() {
    let qwen = [
        Token::Text("I look.\n\n"),
        Token::Text("<tool_call>"),
        Token::Text("\n{\"name\": \"look\", "),
        Token::Text("\"arguments\": {\"x\": 1}}\n"),
        Token::Text("</tool_call>"),
    ];
    let mistral = [
        Token::Control("[TOOL_CALLS]"),
        Token::Text(" [{\"name\": \"look\", "),
        Token::Text("\"arguments\": {\"x\": 1}}]"),
    ];
    let llama = [Token::Text("{\"name\": \"look\", "), Token::Text("\"parameters\": {\"x\": 1}}")];
    for (family, answer, said) in [
        ("qwen2", &qwen[..], json!("I look.")),
        ("mistral", &mistral[..], Value::Null),
        ("llama3", &llama[..], Value::Null),
    ] {
        let Scripted { server, _folders } = scripted(Some(&template(family)), answer);
        let whole = server.post(CHAT, with_tool(json!({}))).await.ok();
        let choice = &whole["choices"][0];
        assert_eq!(choice["finish_reason"], "tool_calls", "{family}: {whole}");
        assert_eq!(choice["message"]["content"], said, "{family}");
        let calls = choice["message"]["tool_calls"].as_array().expect("a list");
        assert_eq!(calls.len(), 1);
        let function = json!({"name": "look", "arguments": "{\"x\":1}"});
        assert_eq!((&calls[0]["type"], &calls[0]["function"]), (&json!("function"), &function));

        let chunks = chunks(&stream_of(&server, CHAT, with_tool(json!({}))).await);
        assert_eq!(content(&chunks, 0), said.as_str().unwrap_or_default(), "{family}");
        let call =
            chunks.iter().find_map(|chunk| chunk["choices"][0]["delta"]["tool_calls"].as_array());
        let call = &call.expect("a call")[0];
        assert_eq!((&call["index"], &call["function"]), (&json!(0), &function));
        let id = call["id"].as_str().expect("an id").to_owned();
        assert_eq!(chunks.last().expect("chunks")["choices"][0]["finish_reason"], "tool_calls");

        // What the model called goes on in the conversation, as its template writes it.
        let messages = json!([
            {"role": "user", "content": "Look!"},
            {"role": "assistant", "content": null, "tool_calls": [
                {"id": id, "type": "function", "function": function}]},
            {"role": "tool", "tool_call_id": id, "content": "3"},
        ]);
        server.post(CHAT, with_tool(json!({"messages": messages}))).await.ok();

        // Without tools it is the text that it is.
        for more in [json!({"tools": null}), json!({"tool_choice": "none"})] {
            let plain = server.post(CHAT, with_tool(more)).await.ok();
            let message = &plain["choices"][0]["message"];
            assert!(
                message.get("tool_calls").is_none() && message["content"].is_string(),
                "{plain}"
            );
        }
        // The older spelling of tools has one of its own for calls.
        let functions = json!({"tools": null, "functions": [{"name": "look", "parameters": {}}]});
        let older = server.post(CHAT, with_tool(functions)).await.ok();
        assert_eq!(older["choices"][0]["message"]["function_call"], function);
        assert_eq!(older["choices"][0]["finish_reason"], "function_call");
    }
}
