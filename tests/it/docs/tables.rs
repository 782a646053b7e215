//! The tables of the pages are those of the binary: settings, hyperparameters, routes and metrics.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use serde_json::{Value, json};

use super::pages::{Page, code_spans, root};
use crate::support::server::{Server, TINY, chat_lines};

#[test]
fn the_table_of_settings_is_that_of_the_binary() {
    let output = Command::new(env!("CARGO_BIN_EXE_hone")).args(["serve", "--help"]).output();
    let help = String::from_utf8(output.expect("it runs").stdout).expect("UTF-8");
    let mut of_binary = BTreeMap::new();
    for option in help.split("\n      --").skip(1) {
        let flag = option.split_whitespace().next().expect("a name");
        let after = |start: &str| {
            let found = option.split_once(start).map(|(_before, after)| after);
            let end = |text: &str| text.find([']', '=']).unwrap_or(text.len());
            found.map(|text| text[..end(text)].trim().to_owned())
        };
        of_binary.insert(format!("--{flag}"), (after("[env: "), after("[default: ")));
    }
    assert!(of_binary.len() > 8, "{help}");

    let table = Page::read("docs/operating.md").table(1, "variable");
    let mut of_page = BTreeMap::new();
    for row in &table[1..] {
        let span = |cell: usize| code_spans(&row[cell]).first().map(|text| (*text).to_owned());
        let Some(flag) = span(0) else { continue };
        let plain = row[2].trim_matches('`').to_owned();
        let default = of_binary.get(&flag).and_then(|(_variable, default)| default.clone());
        of_page.insert(flag, (span(1), default.map(|_| plain)));
    }
    assert_eq!(of_page, of_binary);
}

#[tokio::test]
async fn the_table_of_hyperparameters_is_what_the_server_knows() {
    let server = Server::start();
    let file = server.upload(&chat_lines(10)).await;
    let mut known = BTreeSet::new();
    for method in ["supervised", "dpo"] {
        let body = json!({"model": TINY, "training_file": file, "method":
            {"type": method, method: {"hyperparameters": {"unheard_of": 1}}}});
        let error = server.post("/v1/fine_tuning/jobs", body).await.error(400);
        let message = error["message"].as_str().expect("a text").to_owned();
        let first = message.find("n_epochs").unwrap_or_else(|| panic!("{message}"));
        known.extend(message[first..].split(", ").map(str::to_owned));
    }
    let table = Page::read("docs/hyperparameters.md").table(3, "test");
    let named: BTreeSet<String> =
        table[1..].iter().flat_map(|row| code_spans(&row[0])).map(str::to_owned).collect();
    assert_eq!(named, known);
}

#[test]
fn the_tables_of_routes_are_those_of_the_document() {
    let document = std::fs::read_to_string(root().join("openapi/openapi.json")).expect("reads");
    let document: Value = serde_json::from_str(&document).expect("JSON");
    let mut of_document = BTreeSet::from(["GET /metrics".to_owned()]);
    for (path, methods) in document["paths"].as_object().expect("paths") {
        for method in methods.as_object().expect("methods").keys() {
            of_document.insert(format!("{} {path}", method.to_uppercase()));
        }
    }
    let mut of_page = BTreeSet::new();
    for table in Page::read("docs/api.md").tables() {
        for row in &table[1..] {
            let route = code_spans(&row[0]).first().copied().expect("a route");
            of_page.insert(route.split('?').next().expect("a path").to_owned());
        }
    }
    assert_eq!(of_page, of_document);
}

#[tokio::test]
async fn the_table_of_metrics_names_what_the_server_shows() {
    let server = Server::start();
    let shown = server.get("/metrics").await.text;
    let shown: BTreeSet<&str> =
        shown.split_whitespace().filter(|it| it.starts_with("hone_")).collect();
    let table = Page::read("docs/operating.md").table(0, "metric");
    for name in table[1..].iter().flat_map(|row| code_spans(&row[0])) {
        let is_shown = shown.contains(name) || shown.contains(name.trim_end_matches("_total"));
        assert!(is_shown, "{name} is not among {shown:?}");
    }
}

#[test]
fn the_table_of_what_a_step_costs_on_a_gpu_is_what_was_counted() {
    let text = std::fs::read(root().join("tests/data/cuda_counts.json")).expect("reads");
    let counts: Value = serde_json::from_slice(&text).expect("JSON");
    let mut counted = BTreeMap::new();
    for (case, one) in counts.as_object().expect("cases") {
        let of = |key: &str| one[key].as_f64().expect("a number");
        let gigabytes = |key: &str| format!("{:.1} GB", of(key) / 1e9);
        let cells = [
            format!("{:.0}", of("launches")),
            format!("{:.0}", of("small_uploads")),
            format!("{:.1} kB", of("bytes_up") / 1e3),
            format!("{:.1} kB", of("bytes_down") / 1e3),
            gigabytes("bytes_moved"),
            gigabytes("peak_bytes"),
            gigabytes("planned_bytes"),
        ];
        counted.insert(case.clone(), cells.to_vec());
    }
    let table = Page::read("docs/gpu.md").table(1, "launches");
    let of_page: BTreeMap<String, Vec<String>> =
        table[1..].iter().map(|row| (row[0].clone(), row[1..].to_vec())).collect();
    assert_eq!(of_page, counted);
}
