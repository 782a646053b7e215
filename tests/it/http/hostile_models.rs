//! A folder of a model is a file that others have written: whatever it says, it costs the server little and is refused
//! with the field that is wrong, and other models answer meanwhile.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::server::{Server, peak_memory};
use crate::support::templates::{Models, PLAIN, ask};

const CHAT: &str = "/v1/chat/completions";

/// What a folder may cost the server.
const MOST_MIB: u64 = 200;
const MOST_TIME: Duration = Duration::from_secs(2);

/// Changes a JSON file of a folder.
fn change(folder: &Path, file: &str, change: impl FnOnce(&mut Value)) {
    let path = folder.join(file);
    let mut value = serde_json::from_slice(&std::fs::read(&path).expect("reads")).expect("JSON");
    change(&mut value);
    std::fs::write(path, value.to_string()).expect("writes");
}

/// Puts a pipe to which nobody writes where a file is read.
fn put_pipe(path: &Path) {
    let _was_none = std::fs::remove_file(path);
    let made = Command::new("mkfifo").arg(path).status().expect("it runs");
    assert!(made.success());
}

/// Overwrites every number of the weights.
fn fill_weights(folder: &Path, value: f32) {
    let path = folder.join("model.safetensors");
    let mut bytes = std::fs::read(&path).expect("reads");
    let (length, _) = bytes.split_first_chunk::<8>().expect("a header");
    let start = 8 + u64::from_le_bytes(*length) as usize;
    bytes[start..].as_chunks_mut::<4>().0.fill(value.to_le_bytes());
    std::fs::write(path, bytes).expect("writes");
}

#[tokio::test]
async fn a_models_folder_costs_little_and_is_refused_by_the_field_that_is_wrong() {
    let models = Models::new();
    let mut cases = Vec::new();
    let sizes = [
        ("num_hidden_layers", json!(1_000_000_000)),
        ("num_hidden_layers", json!(1_000_000)),
        ("num_hidden_layers", json!(-1)),
        ("hidden_size", json!(1_u64 << 40)),
        ("num_attention_heads", json!(1_u64 << 31)),
        ("vocab_size", json!(1_u64 << 40)),
        ("head_dim", json!(1_u64 << 31)),
        ("intermediate_size", json!(0)),
        ("max_position_embeddings", json!(1e300)),
        ("rms_norm_eps", json!(-1)),
        ("rms_norm_eps", json!(1e300)),
        ("rope_theta", json!(-5)),
        ("partial_rotary_factor", json!(1e30)),
    ];
    for (number, (key, value)) in sizes.into_iter().enumerate() {
        let name = format!("size-{number}");
        let folder = models.add(&name, json!(PLAIN));
        change(&folder, "config.json", |config| {
            if ["rope_theta", "partial_rotary_factor"].contains(&key) {
                config["rope_parameters"][key] = value;
            } else {
                config[key] = value;
            }
        });
        let said = if key == "partial_rotary_factor" { "turn" } else { key };
        cases.push((name, said));
    }
    for file in ["model.safetensors", "generation_config.json", "chat_template.jinja"] {
        let name = format!("pipe-{}", &file[..5]);
        put_pipe(&models.add(&name, json!(PLAIN)).join(file));
        cases.push((name, "not a regular file"));
    }
    let grows = json!({"type": "Replace", "pattern": {"String": "a"}, "content": "aa"});
    change(&models.add("grows", json!(PLAIN)), "tokenizer.json", |tokenizer| {
        tokenizer["normalizer"] = json!({"type": "Sequence", "normalizers": vec![grows; 60]});
    });
    cases.push(("grows".to_owned(), "normalizer"));
    fill_weights(&models.add("nan", json!(PLAIN)), f32::NAN);
    cases.push(("nan".to_owned(), "not numbers"));
    let endless = [
        ("indent", "{{ messages | tojson(indent=1000000000) }}"),
        (
            "doubles",
            "{% set n = namespace(a=[1]) %}{% for i in range(60) %}{% set n.a = n.a + n.a %}{% endfor %}",
        ),
        (
            "nests",
            "{% set n = namespace(x=none) %}{% for i in range(60) %}{% set n.x = [n.x, n.x] %}{% endfor %}{{ n.x }}",
        ),
        (
            "counts",
            "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        ),
        ("pads", "{{ 'a'.center(1000000000) }}{{ '%1000000000d' % 1 }}"),
    ];
    for (name, template) in endless {
        models.add(name, json!(format!("{template}{PLAIN}")));
        cases.push((name.to_owned(), "template"));
    }
    models.add("good", json!(PLAIN));

    let data = tempfile::tempdir().expect("a folder");
    let server = Server::start_over(data.path(), models.path());
    server.post(CHAT, ask("good", &json!({}))).await.ok();
    let before = peak_memory(server.pid());
    for (name, said) in cases {
        let began = Instant::now();
        let reply = server.post(CHAT, ask(&name, &json!({"max_tokens": 2}))).await;
        let took = began.elapsed();
        let error = reply.error(400);
        let message = error["message"].as_str().expect("a text");
        let is_template = said == "template";
        assert!(is_template || error["code"] == "invalid_model", "{name}: {error}");
        assert!(message.contains(said), "{name}: {message}");
        assert!(took < MOST_TIME, "{name}: {took:?}");
        let grown = peak_memory(server.pid()) - before;
        assert!(grown < MOST_MIB, "{name}: {grown} MiB");
        let more = json!({"max_tokens": 1});
        server.post(CHAT, ask("good", &more)).await.ok();
    }
}
