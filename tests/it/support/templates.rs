//! Base models with chat templates of a test's own, and what their prompts are.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::support::server::Server;

/// ChatML, with nothing to set.
pub const PLAIN: &str = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n\
    {% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";

/// A models folder with the tiny model under names of the test's own.
pub struct Models(tempfile::TempDir);

impl Models {
    /// An empty one.
    pub fn new() -> Self {
        Self(tempfile::tempdir().expect("a folder"))
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// The tiny model with this value of `chat_template` in `tokenizer_config.json`; its folder.
    pub fn add(&self, name: &str, template: Value) -> PathBuf {
        let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/tiny-llama");
        let folder = self.path().join(name);
        std::fs::create_dir(&folder).expect("a folder");
        for file in ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
        {
            std::fs::copy(from.join(file), folder.join(file)).expect("is copied");
        }
        set_template(&folder, template);
        folder
    }
}

/// Sets `chat_template` in a model's `tokenizer_config.json`; null takes it out.
pub fn set_template(folder: &Path, template: Value) {
    let path = folder.join("tokenizer_config.json");
    let mut config: Value =
        serde_json::from_slice(&std::fs::read(&path).expect("reads")).expect("JSON");
    match template {
        Value::Null => {
            config.as_object_mut().expect("an object").remove("chat_template");
        }
        template => config["chat_template"] = template,
    }
    std::fs::write(path, config.to_string()).expect("writes");
}

/// Fields put together, the later ones in the place of earlier ones.
pub fn with(mut body: Value, more: &Value) -> Value {
    let more = more.as_object().expect("an object").clone();
    body.as_object_mut().expect("an object").extend(more);
    body
}

/// A chat request of one message `hi`, with more fields.
pub fn ask(model: &str, more: &Value) -> Value {
    let body = json!({"model": model, "messages": [{"role": "user", "content": "hi"}],
        "temperature": 0, "max_tokens": 12});
    with(body, more)
}

/// Fails unless the prompt of a chat request has the tokens of `text`: in number, and in what the model
/// answers to them.
pub async fn assert_prompt(server: &Server, model: &str, more: &Value, text: &str) {
    let chat = server.post("/v1/chat/completions", ask(model, more)).await.ok();
    let body = json!({"model": model, "prompt": text, "temperature": 0, "max_tokens": 12});
    let plain = server.post("/v1/completions", body).await.ok();
    let case = format!("{model} with {more}: {chat}");
    assert_eq!(chat["usage"]["prompt_tokens"], plain["usage"]["prompt_tokens"], "{case}");
    assert_eq!(chat["choices"][0]["message"]["content"], plain["choices"][0]["text"], "{case}");
}

/// The messages of a job's events, oldest first.
pub async fn messages(server: &Server, id: &str) -> Vec<String> {
    let events = server.events(id).await;
    let texts = events.iter().rev().map(|event| event["message"].as_str().expect("a text"));
    texts.map(str::to_owned).collect()
}
