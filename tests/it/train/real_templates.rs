//! Templates that others wrote: what hone trains of each kind of line is what transformers renders, token by token,
//! or its refusal is right. `HONE_CHAT_TEMPLATES` names a folder of `.jinja` files; without it the project's own
//! templates of many families are judged.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use chrono::{NaiveDate, NaiveTime};
use hone::train::model::base_model::BaseModel;
use hone::train::model::chat_template::TemplateSettings;
use serde_json::{Value, json};

use super::template_rule::{NINE_LETTERS, encoded, kinds, tools};

/// The day that templates write as today's.
const DATE: &str = "2026-03-04";

/// Tokens that templates make of variables, so that they do not stand in their texts.
const BUILT_TOKENS: [&str; 8] =
    ["<s>", "</s>", "<|user|>", "<|assistant|>", "<|system|>", "<|tool|>", "[e~[", "]~b]"];

/// Brackets around the names of control tokens, and what may stand in a name beside letters and digits.
const BRACKETS: [(&str, &str, &str); 3] =
    [("<", ">", "_/-:.|｜▁"), ("〈", "〉", "_/|"), ("[", "]", "_/")];

/// Marks inside of a turn, which models with such templates have as tokens that are not special.
const MARKS: [&str; 3] = ["think", "tool", "code"];

/// The control tokens that a template writes.
fn control_tokens(template: &str) -> BTreeSet<String> {
    let mut found: BTreeSet<String> = BUILT_TOKENS.map(str::to_owned).into();
    for (opening, closing, others) in BRACKETS {
        // In square brackets stand lists as well; the names of tokens are capitals there.
        let belongs = |letter: char| match opening {
            "[" => letter.is_ascii_uppercase() || others.contains(letter),
            _ => letter.is_alphanumeric() || others.contains(letter),
        };
        for (at, _) in template.match_indices(opening) {
            let rest = &template[at + opening.len()..];
            let Some(end) = rest.find(closing) else { continue };
            let name = &rest[..end];
            if name.chars().all(belongs) && (3..40).contains(&name.len()) {
                found.insert(format!("{opening}{name}{closing}"));
            }
        }
    }
    found
}

/// The tiny model with a template and tokens for all that it writes, in a folder of its own.
fn model(template: &str, into: &Path) -> Result<BaseModel, String> {
    let tiny = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/tiny-llama");
    for file in std::fs::read_dir(tiny).unwrap() {
        let file = file.unwrap().path();
        std::fs::copy(&file, into.join(file.file_name().unwrap())).unwrap();
    }
    let change = |name: &str, change: &dyn Fn(&mut Value)| {
        let path = into.join(name);
        let mut value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        change(&mut value);
        std::fs::write(path, value.to_string()).unwrap();
    };
    change("tokenizer.json", &|tokenizer| {
        let added = tokenizer["added_tokens"].as_array_mut().unwrap();
        added.truncate(1);
        let vocabulary = tokenizer["model"]["vocab"].as_object_mut().unwrap();
        let first = vocabulary.values().filter_map(Value::as_u64).max().unwrap() + 1;
        vocabulary.retain(|token, _| !token.starts_with("<|"));
        let added = tokenizer["added_tokens"].as_array_mut().unwrap();
        for (id, token) in (first..).zip(control_tokens(template)) {
            let is_special = !MARKS.iter().any(|mark| {
                token.starts_with('<') && token[1..].trim_start_matches('/').starts_with(mark)
            });
            added.push(json!({"id": id, "content": token, "single_word": false, "lstrip": false,
                "rstrip": false, "normalized": false, "special": is_special}));
        }
    });
    change("tokenizer_config.json", &|config| {
        config["bos_token"] = "<s>".into();
        config["eos_token"] = "</s>".into();
        config.as_object_mut().unwrap().remove("chat_template");
    });
    change("config.json", &|config| {
        config["vocab_size"] = 1000.into();
        for key in ["bos_token_id", "eos_token_id"] {
            config.as_object_mut().unwrap().remove(key);
        }
    });
    std::fs::write(into.join("chat_template.jinja"), template).unwrap();
    let mut base = BaseModel::open(into).map_err(|error| error.to_string())?;
    let date = NaiveDate::parse_from_str(DATE, "%Y-%m-%d").unwrap();
    let settings = TemplateSettings {
        date: Some(date.and_time(NaiveTime::MIN)),
        ..TemplateSettings::default()
    };
    base.template = base.template.map(|template| template.with_settings(settings));
    Ok(base)
}

#[test]
fn what_is_trained_with_the_templates_of_a_folder_is_what_transformers_renders() {
    let Ok(python) = std::env::var("HONE_TEST_PYTHON") else { return };
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let templates = std::env::var_os("HONE_CHAT_TEMPLATES")
        .map_or_else(|| root.join("tests/data/templates"), PathBuf::from);
    let folder = tempfile::tempdir().unwrap();
    let mut cases = Vec::new();
    for entry in std::fs::read_dir(templates).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "jinja") {
            continue;
        }
        let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
        let into = folder.path().join(&name);
        std::fs::create_dir(&into).unwrap();
        let base = model(&std::fs::read_to_string(&path).unwrap(), &into);
        let stops: Vec<u32> =
            base.iter().flat_map(|base| base.tokenizer.stop_ids()).copied().collect();
        for (kind, messages, has_tools) in kinds() {
            let given = if has_tools { tools() } else { Value::Null };
            let mut case = json!({"template": name, "kind": kind, "folder": into, "tools": given, "stops": stops,
                "messages": messages, "nine_letter_ids": {"call_0123456789abcdef": NINE_LETTERS}});
            let views = base.as_ref().map_err(Clone::clone);
            match views.and_then(|base| encoded(base, &messages, &given)) {
                Ok(views) => {
                    let views = views.iter().map(|view| {
                        let mask: Vec<u8> =
                            view.loss_mask.iter().map(|counts| u8::from(*counts)).collect();
                        json!({"ids": view.input_ids, "mask": mask})
                    });
                    case["views"] = views.collect();
                }
                Err(problem) => case["refusal"] = problem.into(),
            }
            cases.push(case);
        }
    }
    assert!(!cases.is_empty(), "there are templates");
    let cases_file = folder.path().join("cases.json");
    std::fs::write(&cases_file, json!(cases).to_string()).unwrap();
    let said = Command::new(python)
        .arg(root.join("tests/python/real_templates.py"))
        .arg(&cases_file)
        .arg(DATE)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&said.stdout) + String::from_utf8_lossy(&said.stderr);
    assert!(said.status.success(), "{text}");
    println!("{text}");
}
