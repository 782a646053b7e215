//! The rule of training: a supervised span begins exactly where the prompt ends that serving would send, and ends
//! with the token at which serving stops. Held over templates with one trait each (`tests/data/template_traits`),
//! kinds of lines, token by token, with transformers as the judge of prompts, texts and losses.

use std::path::{Path, PathBuf};
use std::process::Command;

use hone::train::data::sequence::Sequence;
use hone::train::data::tokenize::{EncodeError, encode_file};
use hone::train::engine::{BackendKind, LossSums, load_for_training};
use hone::train::model::base_model::BaseModel;
use hone::train::model::lora::LoraSettings;
use hone::train::model::trainable::Trainable;
use serde_json::{Value, json};

/// What a template and a kind of line come to, where that is not training.
const REFUSED: &[(&str, &str, &str)] = &[
    ("no_system_messages", "system message", "takes no system messages"),
    ("system_before_last_question", "tool call", "no tool"),
    ("system_before_last_question", "tool call with reasoning", "no tool"),
    ("turns_alternate", "two users in a row", "roles must alternate"),
];

/// Templates that have no place for calls or for reasoning: they refuse such lines by their own name.
const NO_CALLS: &str = "does not write tools";
const NO_REASONING: &str = "does not write the reasoning";

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/template_traits")
}

/// Every template by name.
fn templates() -> Vec<(String, String)> {
    let mut found: Vec<(String, String)> = std::fs::read_dir(folder())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .map(|path| {
            let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
            (name, std::fs::read_to_string(path).unwrap())
        })
        .collect();
    found.sort();
    found
}

/// The kinds of lines: name, messages, whether tools come with them.
pub(super) fn kinds() -> Vec<(&'static str, Value, bool)> {
    let user = |text: &str| json!({"role": "user", "content": text});
    let answer = |text: &str| json!({"role": "assistant", "content": text});
    let call = json!({"role": "assistant", "content": null, "tool_calls": [{"id": "call_0123456789abcdef",
        "type": "function", "function": {"name": "add", "arguments": "{\"x\": 1, \"y\": [2, 3.5]}"}}]});
    let mut thoughtful = call.clone();
    thoughtful["reasoning_content"] = "add them".into();
    let result = json!({"role": "tool", "tool_call_id": "call_0123456789abcdef", "content": "4"});
    let mut untrained = answer("first");
    untrained["weight"] = 0.into();
    vec![
        ("one turn", json!([user("hi"), answer("Yes.")]), false),
        (
            "three turns",
            json!([user("a"), answer("b"), user("c"), answer(" d\n"), user("e"), answer("f")]),
            false,
        ),
        (
            "system message",
            json!([{"role": "system", "content": "Be brief."}, user("hi"), answer("Yes."),
            user("more"), answer("No.")]),
            false,
        ),
        (
            "reasoning key",
            json!([
                user("2+2"),
                json!({"role": "assistant", "content": "4",
            "reasoning_content": "two and two"})
            ]),
            false,
        ),
        (
            "reasoning in contents of two turns",
            json!([
                user("q"),
                answer("<think>\nplan\n</think>\n\nanswer"),
                user("r"),
                answer("<think>plan2</think>answer2")
            ]),
            false,
        ),
        ("tool call", json!([user("add"), call, result, answer("It is 4.")]), true),
        (
            "tool call with reasoning",
            json!([user("add"), thoughtful, result, answer("It is 4.")]),
            true,
        ),
        ("untrained turn", json!([user("a"), untrained, user("b"), answer("second")]), false),
        (
            "list of parts",
            json!([
                json!({"role": "user", "content": [{"type": "text", "text": "one"},
            {"type": "text", "text": "two"}]}),
                answer("three")
            ]),
            false,
        ),
        ("two users in a row", json!([user("a"), user("b"), answer("c")]), false),
    ]
}

pub(super) fn tools() -> Value {
    json!([{"type": "function", "function": {"name": "add", "description": "sums é",
        "parameters": {"type": "object", "properties": {"x": {"type": "integer"}}}}}])
}

/// The tiny model with a template, in a folder of its own.
fn model(template: &str, into: &Path) -> BaseModel {
    let tiny = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/tiny-llama");
    for file in std::fs::read_dir(tiny).unwrap() {
        let file = file.unwrap().path();
        std::fs::copy(&file, into.join(file.file_name().unwrap())).unwrap();
    }
    std::fs::write(into.join("chat_template.jinja"), template).unwrap();
    BaseModel::open(into).unwrap()
}

/// What hone trains of a line; the problem where it refuses it.
pub(super) fn encoded(
    base: &BaseModel,
    messages: &Value,
    tools: &Value,
) -> Result<Vec<Sequence>, String> {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("one.jsonl");
    let mut line = json!({"messages": messages});
    if !tools.is_null() {
        line["tools"] = tools.clone();
    }
    std::fs::write(&file, line.to_string()).unwrap();
    match encode_file(&file, base, 1 << 16) {
        Ok(mut encoded) => Ok(encoded.examples.remove(0).views),
        Err(EncodeError::Diagnostics(problems)) => Err(problems.listed[0].to_string()),
        Err(error) => panic!("{error}"),
    }
}

/// A conversation as transformers' users write it: arguments are values, or texts where the template joins them.
fn as_transformers(template: &str, messages: &Value) -> Value {
    let mut messages = messages.clone();
    for message in messages.as_array_mut().unwrap() {
        if let Some(reasoning) = message.get("reasoning_content").cloned() {
            message["thinking"] = reasoning;
        }
        if template == "content_of_parts"
            && let Some(text) = message["content"].as_str()
        {
            message["content"] = json!([{"type": "text", "text": text}]);
        }
        let is_read = template.starts_with("content_of");
        if !is_read && let Some(parts) = message["content"].as_array() {
            let texts: Vec<&str> =
                parts.iter().map(|part| part["text"].as_str().unwrap()).collect();
            message["content"] = texts.concat().into();
        }
        if template == "call_ids_of_nine_letters" && message.get("tool_call_id").is_some() {
            message["tool_call_id"] = NINE_LETTERS.into();
        }
        for call in
            message.get_mut("tool_calls").and_then(Value::as_array_mut).into_iter().flatten()
        {
            if template == "call_ids_of_nine_letters" {
                call["id"] = NINE_LETTERS.into();
            }
            if template != "arguments_as_text" {
                let text = call["function"]["arguments"].as_str().unwrap().to_owned();
                call["function"]["arguments"] = serde_json::from_str(&text).unwrap();
            }
        }
    }
    messages
}

/// What the id of the calls above becomes: letters of its SHA-256.
pub(super) const NINE_LETTERS: &str = "puhpw42TU";

#[test]
fn what_is_trained_is_what_serving_sends_and_what_ends_it_for_every_trait_and_kind() {
    let mut cases = Vec::new();
    let mut losses = Vec::new();
    let mut trained = 0;
    let mut unknown = Vec::new();
    for (name, template) in templates() {
        let folder = tempfile::tempdir().unwrap();
        let base = model(&template, folder.path());
        let settings = Trainable::Lora(LoraSettings::new(4, 8.0));
        let mut engine = load_for_training(
            &base.config,
            base.weights.as_ref(),
            &settings,
            1,
            BackendKind::CpuF32,
        )
        .unwrap();
        for (kind, messages, has_tools) in kinds() {
            let given = if has_tools { tools() } else { Value::Null };
            let views = match encoded(&base, &messages, &given) {
                Ok(views) => views,
                Err(problem) => {
                    let known = REFUSED.iter().filter(|(a, b, _)| *a == name && *b == kind);
                    let mut wanted: Vec<&str> = known.map(|(_, _, wanted)| *wanted).collect();
                    wanted.extend(has_tools.then_some(NO_CALLS));
                    wanted.extend(kind.contains("reasoning").then_some(NO_REASONING));
                    let is_known = wanted.iter().any(|wanted| problem.contains(wanted));
                    if !is_known {
                        unknown.push(format!("{name}, {kind}: {problem}"));
                    }
                    assert!(problem.starts_with("line 1"), "{problem}");
                    continue;
                }
            };
            trained += 1;
            let views: Vec<Value> = views
                .iter()
                .map(|view| {
                    let sums = LossSums::total(&engine.evaluate(&[view]).unwrap());
                    losses.push(sums.loss / sums.tokens as f64);
                    let mask: Vec<u8> =
                        view.loss_mask.iter().map(|counts| u8::from(*counts)).collect();
                    json!({"ids": view.input_ids, "mask": mask})
                })
                .collect();
            cases.push(json!({"name": name, "template": template, "kind": kind, "tools": given,
                "settings": {}, "messages": as_transformers(&name, &messages), "views": views}));
        }
    }
    assert!(unknown.is_empty(), "refused:\n{}", unknown.join("\n"));
    assert!(trained >= 180, "{trained} of {} are trained", templates().len() * kinds().len());

    let Ok(python) = std::env::var("HONE_TEST_PYTHON") else { return };
    let folder = tempfile::tempdir().unwrap();
    let [cases_file, losses_file] =
        ["cases.json", "losses.json"].map(|name| folder.path().join(name));
    std::fs::write(&cases_file, json!(cases).to_string()).unwrap();
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let said = Command::new(python)
        .arg(root.join("tests/python/template_rule.py"))
        .arg(root.join("tests/data/tiny-llama"))
        .args([&cases_file, &losses_file])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&said.stdout) + String::from_utf8_lossy(&said.stderr);
    assert!(said.status.success(), "{text}");
    let judged: Vec<f64> = serde_json::from_slice(&std::fs::read(&losses_file).unwrap()).unwrap();
    assert_eq!(judged.len(), losses.len());
    for (number, (ours, theirs)) in losses.iter().zip(&judged).enumerate() {
        assert!(
            (ours - theirs).abs() < 1e-5 * theirs.abs().max(1.0),
            "view {number}: {ours} and {theirs}"
        );
    }
}
