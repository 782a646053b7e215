//! `/v1/completions`: texts to continue, and texts to score as evaluation harnesses do.

use serde_json::{Value, json};

use crate::http::chat_stream::{CHATML, Scripted, chunks, scripted, stream_of};
use crate::support::scripted_model::{BASE, Token};
use crate::support::server::{Server, TINY};

const PATH: &str = "/v1/completions";

/// A request to the tiny model, with further fields.
fn text(more: Value) -> Value {
    let mut body = json!({"model": TINY, "prompt": "What comes after 3?", "temperature": 0});
    for (key, value) in more.as_object().expect("an object") {
        body[key] = value.clone();
    }
    body
}

#[tokio::test]
async fn a_completion_has_openais_shape_and_defaults() {
    let server = Server::start();
    let reply = server.post(PATH, text(json!({"logit_bias": {"2": -100}}))).await.ok();
    assert_eq!((&reply["object"], &reply["model"]), (&json!("text_completion"), &json!(TINY)));
    assert!(reply["id"].as_str().is_some_and(|id| id.starts_with("cmpl-")));
    let choice = &reply["choices"][0];
    assert_eq!((&choice["index"], &choice["finish_reason"]), (&json!(0), &json!("length")));
    assert_eq!(choice.get("logprobs"), Some(&Value::Null));
    assert_eq!(reply["usage"]["completion_tokens"], 16, "as many unless more are asked for");

    let none = server.post(PATH, text(json!({"max_tokens": 0}))).await.ok();
    assert_eq!(none["choices"][0]["text"], "");
    assert_eq!(none["usage"]["completion_tokens"], 0);
    // A new text where there is no prompt.
    server.post(PATH, json!({"model": TINY})).await.ok();
    server.post(PATH, text(json!({"prompt": ""}))).await.ok();
}

#[tokio::test]
async fn an_empty_prompt_is_answered_by_what_an_empty_prompt_was_trained_with() {
    let server = Server::start();
    let line = json!({"prompt": "", "completion": "Yes, it is."});
    let values = json!({"n_epochs": 30, "batch_size": 2, "learning_rate": 1e-2});
    let id = server.create_job(&format!("{line}\n").repeat(10), values).await;
    let job = server.ended(&id, "succeeded").await;
    let body = json!({"model": job["fine_tuned_model"], "prompt": "", "temperature": 0});
    let reply = server.post(PATH, body).await.ok();
    let choice = &reply["choices"][0];
    assert_eq!(
        (&choice["text"], &choice["finish_reason"]),
        (&json!("Yes, it is."), &json!("stop"))
    );
}

#[tokio::test]
async fn prompts_are_texts_or_tokens_one_or_many() {
    let server = Server::start();
    let echoed = async |prompt: Value, n: u32| {
        let body = text(json!({"prompt": prompt, "echo": true, "max_tokens": 0, "n": n}));
        let reply = server.post(PATH, body).await.ok();
        let choices = reply["choices"].as_array().expect("a list").clone();
        for (index, choice) in choices.iter().enumerate() {
            assert_eq!(choice["index"], index);
        }
        let texts =
            choices.iter().map(|choice| choice["text"].as_str().expect("a text").to_owned());
        (texts.collect::<Vec<String>>(), reply["usage"]["prompt_tokens"].clone())
    };
    assert_eq!(echoed(json!("é, a 😀"), 1).await.0, ["é, a 😀"]);
    assert_eq!(echoed(json!(["a", "b c"]), 2).await.0, ["a", "a", "b c", "b c"]);
    assert_eq!(echoed(json!([68, 69, 70]), 1).await, (vec!["abc".to_uppercase()], json!(3)));
    assert_eq!(echoed(json!([[68], [69, 70]]), 1).await, (vec!["A".into(), "BC".into()], json!(3)));
    // A text with a control token of the model's is its own template's work.
    let chat = "<|im_start|>user\nHi<|im_end|>\n";
    assert_eq!(echoed(json!(chat), 1).await.0, [chat]);
    let tokens = server.post(PATH, text(json!({"prompt": chat, "max_tokens": 1}))).await.ok();
    assert!(tokens["usage"]["prompt_tokens"].as_u64().is_some_and(|count| count < 9), "{tokens}");
}

#[tokio::test]
async fn an_echoed_prompt_is_scored_as_harnesses_need() {
    let server = Server::start();
    let prompt = "The system: é on";
    let ask = text(json!({"prompt": prompt, "echo": true, "logprobs": 5, "max_tokens": 0}));
    let reply = server.post(PATH, ask.clone()).await.ok();
    let choice = &reply["choices"][0];
    assert_eq!((&choice["text"], &choice["finish_reason"]), (&json!(prompt), &json!("length")));
    let column = |name: &str| choice["logprobs"][name].as_array().expect("a list").clone();
    let (tokens, scores) = (column("tokens"), column("token_logprobs"));
    let (top, offsets) = (column("top_logprobs"), column("text_offset"));
    assert_eq!(tokens.len(), reply["usage"]["prompt_tokens"].as_u64().expect("a count") as usize);
    assert!([scores.len(), top.len(), offsets.len()].iter().all(|length| *length == tokens.len()));
    assert_eq!((&scores[0], &top[0], &offsets[0]), (&Value::Null, &Value::Null, &json!(0)));
    for place in 1..tokens.len() {
        let score = scores[place].as_f64().expect("a number");
        let top = top[place].as_object().expect("an object");
        assert!(score < 0.0 && (5..=6).contains(&top.len()), "{place}: {top:?}");
        assert_eq!(top[tokens[place].as_str().expect("a text")].as_f64(), Some(score));
    }
    // Offsets count characters: the two bytes of é stand at the same place.
    let accent = prompt.chars().position(|one| one == 'é').expect("there");
    let at_accent = offsets.iter().filter(|offset| **offset == json!(accent)).count();
    assert_eq!(at_accent, 2, "{tokens:?} {offsets:?}");
    assert!(tokens.contains(&json!("bytes:\\xc3")), "{tokens:?}");

    // The score of a token is what the model gives it as a continuation.
    let ids = [68, 69, 70, 71];
    let scored = |prompt: &[i32], more: Value| {
        let mut body = text(more);
        body["prompt"] = json!(prompt);
        body
    };
    let whole = scored(&ids, json!({"echo": true, "logprobs": 0, "max_tokens": 0}));
    let whole = server.post(PATH, whole).await.ok();
    let before =
        scored(&ids[..3], json!({"logprobs": 1, "max_tokens": 1, "logit_bias": {"71": 100}}));
    let before = server.post(PATH, before).await.ok();
    let forced = &before["choices"][0]["logprobs"];
    assert_eq!(forced["tokens"], json!(["D"]), "the bias decides, the score is the model's own");
    let (a, b) =
        (&whole["choices"][0]["logprobs"]["token_logprobs"][3], &forced["token_logprobs"][0]);
    let difference = a.as_f64().expect("a number") - b.as_f64().expect("a number");
    assert!(difference.abs() < 5e-3, "{a} {b}");
}

#[tokio::test]
async fn a_harness_finds_one_score_behind_each_prompt_even_where_the_text_ends() {
    // As lm-evaluation-harness asks: it takes the scores from the length of the context on, and
    // leaves out the last one, which is that of a token it did not ask about.
    let Scripted { server, _folders } = scripted(None, &[Token::Text("done")]);
    let done = BASE as u32;
    let body = json!({"model": "scripted", "prompt": [[68, done], [68, 69, 70]], "temperature": 0,
        "max_tokens": 1, "logprobs": 1, "seed": 1234, "echo": true});
    let reply = server.post(PATH, body).await.ok();
    for (index, (length, context, is_sure)) in [(2, 1, true), (3, 1, false)].iter().enumerate() {
        let columns = &reply["choices"][index]["logprobs"];
        let scores = columns["token_logprobs"].as_array().expect("a list");
        let top = columns["top_logprobs"].as_array().expect("a list");
        assert_eq!((scores.len(), top.len()), (length + 1, length + 1), "{columns}");
        for place in *context..scores.len() - 1 {
            let likeliest = top[place].as_object().expect("an object").values();
            let likeliest = likeliest.filter_map(Value::as_f64).fold(f64::NEG_INFINITY, f64::max);
            let is_greedy = scores[place].as_f64() == Some(likeliest);
            assert_eq!(is_greedy, *is_sure, "place {place} of {columns}");
        }
    }
}

#[tokio::test]
async fn a_text_begins_as_the_models_tokenizer_says_and_never_twice() {
    let Scripted { server, _folders } = scripted(None, &[Token::Text("done")]);
    let folder = _folders[1].path();
    let begun = folder.join("begun");
    std::fs::create_dir(&begun).expect("made");
    for entry in std::fs::read_dir(folder.join("scripted")).expect("a folder") {
        let path = entry.expect("an entry").path();
        std::fs::copy(&path, begun.join(path.file_name().expect("a name"))).expect("copied");
    }
    let mut tokenizer: Value =
        serde_json::from_slice(&std::fs::read(begun.join("tokenizer.json")).expect("there"))
            .expect("JSON");
    let first = json!({"SpecialToken": {"id": "<|im_start|>", "type_id": 0}});
    let text = |id: &str| json!({"Sequence": {"id": id, "type_id": 0}});
    tokenizer["post_processor"] = json!({"type": "TemplateProcessing",
        "single": [first, text("A")], "pair": [first, text("A"), text("B")],
        "special_tokens": {"<|im_start|>":
            {"id": "<|im_start|>", "ids": [1], "tokens": ["<|im_start|>"]}}});
    std::fs::write(begun.join("tokenizer.json"), tokenizer.to_string()).expect("written");
    for (model, prompt, tokens) in [
        ("scripted", "AB", json!(["A", "B"])),
        ("begun", "AB", json!(["<|im_start|>", "A", "B"])),
        ("begun", "<|im_start|>AB", json!(["<|im_start|>", "A", "B"])),
    ] {
        let body = json!({"model": model, "prompt": prompt, "echo": true, "logprobs": 0,
            "max_tokens": 0});
        let reply = server.post(PATH, body).await.ok();
        let choice = &reply["choices"][0];
        assert_eq!((&choice["text"], &choice["logprobs"]["tokens"]), (&json!(prompt), &tokens));
    }
}

#[tokio::test]
async fn the_token_that_ends_an_answer_has_a_score_and_no_text() {
    let Scripted { server, _folders } = scripted(None, &[Token::Text("done")]);
    let body = json!({"model": "scripted", "prompt": "x", "temperature": 0, "logprobs": 0});
    let reply = server.post(PATH, body.clone()).await.ok();
    let choice = &reply["choices"][0];
    assert_eq!((&choice["text"], &choice["finish_reason"]), (&json!("done"), &json!("stop")));
    assert_eq!(choice["logprobs"]["tokens"], json!(["done", "<|im_end|>"]));
    assert_eq!(choice["logprobs"]["text_offset"], json!([0, 4]));
    assert_eq!(reply["usage"]["completion_tokens"], 1, "the end is not counted");
    // A model without a template does not chat.
    let error = server
        .post(
            "/v1/chat/completions",
            json!({"model": "scripted",
        "messages": [{"role": "user", "content": "x"}]}),
        )
        .await
        .error(400);
    assert!(
        error["message"].as_str().is_some_and(|text| text.contains("/v1/completions")),
        "{error}"
    );
}

#[tokio::test]
async fn a_streamed_completion_says_what_the_whole_one_says() {
    let answer = [Token::Text("one"), Token::Byte(0xc3), Token::Byte(0xa9), Token::Text(" two")];
    let Scripted { server, _folders } = scripted(Some(CHATML), &answer);
    for echo in [false, true] {
        let body = json!({"model": "scripted", "prompt": ["x y", "z"], "temperature": 0,
            "logprobs": 1, "echo": echo, "stream_options": {"include_usage": true}});
        let chunks = chunks(&stream_of(&server, PATH, body.clone()).await);
        let mut whole = body;
        whole.as_object_mut().expect("an object").remove("stream_options");
        let whole = server.post(PATH, whole).await.ok();
        let (last, others) = chunks.split_last().expect("chunks");
        assert_eq!((&last["choices"], &last["usage"]), (&json!([]), &whole["usage"]));
        assert!(others.iter().all(|chunk| chunk.get("usage") == Some(&Value::Null)));
        for (index, choice) in whole["choices"].as_array().expect("a list").iter().enumerate() {
            let parts = others.iter().map(|chunk| &chunk["choices"][0]);
            let parts: Vec<&Value> = parts.filter(|part| part["index"] == index).collect();
            let text: String = parts.iter().filter_map(|part| part["text"].as_str()).collect();
            assert_eq!(choice["text"], text);
            for column in ["tokens", "token_logprobs", "top_logprobs", "text_offset"] {
                let streamed = parts.iter().filter_map(|part| part["logprobs"][column].as_array());
                let streamed: Vec<Value> = streamed.flatten().cloned().collect();
                assert_eq!(choice["logprobs"][column], json!(streamed), "{column}");
            }
            assert_eq!(parts.last().expect("parts")["finish_reason"], choice["finish_reason"]);
        }
    }
}

#[tokio::test]
async fn what_completions_do_not_offer_or_cannot_read_is_refused_by_name() {
    let server = Server::start();
    for (more, param) in [
        (json!({"suffix": "x"}), "suffix"),
        (json!({"best_of": 3}), "best_of"),
        (json!({"logprobs": 6}), "logprobs"),
        (json!({"logprobs": true}), "logprobs"),
        (json!({"max_tokens": -1}), "max_tokens"),
        (json!({"echo": "yes"}), "echo"),
        (json!({"prompt": []}), "prompt"),
        (json!({"prompt": [[]]}), "prompt"),
        (json!({"prompt": [1, "a"]}), "prompt"),
        (json!({"prompt": [-1]}), "prompt"),
        (json!({"prompt": {"a": 1}}), "prompt"),
        (json!({"prompt": vec!["a"; 129]}), "prompt"),
        (json!({"stream_options": {"include_usage": true}}), "stream_options"),
        (json!({"logit_bias": {"x": 1}}), "logit_bias"),
        (json!({"temperature": 2.5}), "temperature"),
    ] {
        let error = server.post(PATH, text(more.clone())).await.error(400);
        assert_eq!(error["param"], param, "{more}: {error}");
    }
    for more in [json!({"prompt": [320]}), json!({"logit_bias": {"320": 1}})] {
        let error = server.post(PATH, text(more)).await.error(400);
        assert!(error["message"].as_str().is_some_and(|text| text.contains("0 to 319")), "{error}");
    }
    let full = text(json!({"prompt": vec![68; 512], "max_tokens": 0, "echo": true, "logprobs": 0}));
    server.post(PATH, full).await.ok();
    let error = server.post(PATH, text(json!({"prompt": vec![68; 512]}))).await.error(400);
    assert_eq!(error["code"], "context_length_exceeded");
    let error = server.post(PATH, json!({"prompt": "x"})).await.error(400);
    assert_eq!(error["param"], "model");
}
