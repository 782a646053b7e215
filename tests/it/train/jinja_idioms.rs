//! Templates render as transformers renders them, idiom by idiom.
//!
//! `jinja_idioms.json` holds idioms of chat templates and what transformers makes of each, written by
//! `tests/python/jinja_idioms.py`. An idiom that transformers refuses is refused.

use std::path::{Path, PathBuf};
use std::process::Command;

use hone::dataset::parse_messages;
use hone::train::model::chat_template::ChatTemplate;
use serde::Deserialize;
use serde_json::json;

/// An idiom.
#[derive(Debug, Deserialize, PartialEq)]
struct Idiom {
    kind: String,
    template: String,
    /// A JSON object.
    variables: String,
    /// What transformers renders; nothing where it refuses.
    text: Option<String>,
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn file() -> PathBuf {
    root().join("tests/data/jinja_idioms.json")
}

fn idioms() -> Vec<Idiom> {
    serde_json::from_slice(&std::fs::read(file()).unwrap()).unwrap()
}

/// What hone renders, or why it does not.
fn rendered(template: &str, variables: &str) -> Result<String, String> {
    let template = ChatTemplate::new(template, &[], "", "").map_err(|error| error.to_string())?;
    template.render_variables(variables).map_err(|error| error.to_string())
}

#[test]
fn every_idiom_of_jinja_renders_as_in_transformers() {
    let idioms = idioms();
    assert!(idioms.len() > 500, "{} idioms", idioms.len());
    let mut wrong = Vec::new();
    for idiom in &idioms {
        let ours = rendered(&idiom.template, &idiom.variables);
        if ours.as_ref().ok() != idiom.text.as_ref() {
            wrong.push(format!(
                "{}: {}\n  with {}\n  transformers: {:?}\n  hone: {ours:?}",
                idiom.kind, idiom.template, idiom.variables, idiom.text
            ));
        }
    }
    assert!(wrong.is_empty(), "{} idioms differ:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn the_file_of_idioms_says_what_transformers_renders() {
    let Ok(python) = std::env::var("HONE_TEST_PYTHON") else {
        println!("skipped: HONE_TEST_PYTHON names a Python with transformers, see tests/run");
        return;
    };
    let script = root().join("tests/python/jinja_idioms.py");
    let output = Command::new(python).arg(script).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let judged: Vec<Idiom> = serde_json::from_slice(&output.stdout).unwrap();
    for (stored, judged) in idioms().iter().zip(&judged) {
        assert_eq!(stored, judged);
    }
    assert_eq!(idioms().len(), judged.len());
}

#[test]
fn numbers_in_arguments_of_tool_calls_are_those_of_python() {
    let source = "{% for message in messages %}{{ message.content or '' }}\
        {% for call in message.tool_calls or [] %}{{ call.function.name }}\
        {{ call.function.arguments | tojson }}<end>{% endfor %}{% endfor %}";
    let end = "<end>".to_owned();
    let mut template = ChatTemplate::new(source, std::slice::from_ref(&end), "", "").unwrap();
    template.set_stops(vec![end]);
    let arguments = r#"{"a":12345678901234567890123,"b":18446744073709551616,"c":0.00001,"d":1e16,"e":[1.0,-0.0,-0,1e-7]}"#;
    let call = json!({"id": "c", "type": "function",
        "function": {"name": "f", "arguments": arguments}});
    let messages = json!([{"role": "user", "content": "a"},
        {"role": "assistant", "content": null, "tool_calls": [call]}]);
    let rendered = template.render_for_training(&parse_messages(&messages).unwrap(), &[]).unwrap();
    let written = r#"af{"a": 12345678901234567890123, "b": 18446744073709551616, "c": 1e-05, "d": 1e+16, "e": [1.0, -0.0, 0, 1e-07]}<end>"#;
    assert_eq!(rendered[0].text, written);
}

#[test]
fn templates_that_never_end_or_grow_without_end_are_refused() {
    let expected = [
        (
            "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
            "come to an end",
        ),
        (
            "{% set ns = namespace(t='ab') %}{% for i in range(99) %}{% set ns.t = ns.t + ns.t %}{% endfor %}",
            "come to an end",
        ),
        (
            "{% set ns = namespace(l=[1]) %}{% for i in range(99) %}{% set ns.l = ns.l + ns.l %}{% endfor %}",
            "come to an end",
        ),
        (
            "{% set ns = namespace(l=[]) %}{% for i in range(9999) %}{% set ns.l = [ns.l] %}{% endfor %}",
            "come to an end",
        ),
        ("{{ 'a' * 99999999999 }}", "come to an end"),
        ("{{ ('a' * 999999)|replace('a', 'b' * 999999) }}", "come to an end"),
        ("{{ '%99999999999d' % 1 }}", "big"),
        ("{{ 'a'.center(99999999999) }}", "come to an end"),
        ("{{ 10 ** 9999999 }}", "come to an end"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "recursion"),
        ("{% for x in [[]] recursive %}{{ loop([[]]) }}{% endfor %}", "recursion"),
    ];
    for (template, reason) in expected {
        let error = rendered(template, "{}").unwrap_err();
        assert!(error.contains(reason), "{template}: {error}");
    }
    for (open, close) in [("(", ")"), ("[", "]"), ("not ", ""), ("-", ""), ("{'a': ", "}")] {
        let (open, close) = (open.repeat(50_000), close.repeat(50_000));
        let error = rendered(&format!("{{{{ {open}1{close} }}}}"), "{}").unwrap_err();
        assert!(error.contains("nested too deeply"), "{}: {error}", &open[..4]);
    }
    let chain = format!("{{{{ 1{} }}}}", " + 1".repeat(100_000));
    assert!(rendered(&chain, "{}").unwrap_err().contains("too many operators"));
    let blocks = "{% if true %}".repeat(30_000);
    assert!(rendered(&blocks, "{}").unwrap_err().contains("nested too deeply"));
}
