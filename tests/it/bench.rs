//! `hone bench train` measures what it says.

use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

use crate::server::chat_lines;

/// Runs the command over the tiny model.
fn bench(arguments: &[&str]) -> Output {
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/tiny-llama");
    Command::new(env!("CARGO_BIN_EXE_hone"))
        .args(["bench", "train", "--steps", "3", "--warmup-steps", "1", "--model"])
        .arg(model)
        .args(arguments)
        .output()
        .expect("runs")
}

fn json(output: &Output) -> Value {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("one JSON object")
}

#[test]
fn bench_train_says_speed_memory_and_losses_on_random_and_on_real_text() {
    let folder = tempfile::tempdir().expect("a folder");
    let data = folder.path().join("chat.jsonl");
    std::fs::write(&data, chat_lines(12)).expect("writes");
    let data = data.to_str().expect("UTF-8");
    let dense = json(&bench(&["--batch", "2", "--seq", "32", "--threads", "1", "--json"]));
    let chat = ["--mode", "chat", "--data", data, "--batch", "5", "--dtype", "f32", "--json"];
    let chat = json(&bench(&chat));
    // The second step goes over the file's beginning again.
    let again = ["--mode", "chat", "--data", data, "--batch", "12", "--lora-layers", "1", "--json"];
    let again = json(&bench(&again));
    for report in [&dense, &chat] {
        assert_eq!((&report["steps"], &report["timed_steps"]), (&3.into(), &2.into()));
        for key in ["tokens_per_s", "loss_tokens_per_s", "examples_per_s", "gflops_per_s"] {
            assert!(report[key].as_f64().is_some_and(|value| value > 0.0), "{key}: {report}");
        }
        for key in ["median_step_s", "first_step_s", "peak_rss_gb", "rss_after_load_gb", "load_s"] {
            assert!(report[key].is_number(), "{key}: {report}");
        }
        assert_eq!(report["losses"].as_array().map(Vec::len), Some(3));
    }
    assert_eq!(
        (&dense["mode"], &dense["seq_len"], &dense["threads"]),
        (&"dense".into(), &32.into(), &1.into())
    );
    // All but the first token of each sequence is learnt.
    let share =
        dense["loss_tokens_per_s"].as_f64().unwrap() / dense["tokens_per_s"].as_f64().unwrap();
    assert!((share - 31.0 / 32.0).abs() < 1e-3, "{dense}");
    assert_eq!((&chat["mode"], &chat["dtype"]), (&"chat".into(), &"fp32".into()));
    for (report, spares) in [(&dense, false), (&chat, false), (&again, true)] {
        let spared = report["frozen_tokens_spared"].as_u64().expect("a number");
        assert_eq!(spared > 0, spares, "{report}");
    }
    let backends = ["cpu", "candle"].map(|backend| {
        let arguments = ["--backend", backend, "--dtype", "f32", "--seq", "16", "--json"];
        json(&bench(&arguments))["losses"][2].as_f64().expect("a loss")
    });
    assert!((backends[0] - backends[1]).abs() < 1e-4, "the same work: {backends:?}");
}

#[test]
fn bench_train_refuses_what_it_cannot_measure() {
    for (arguments, wanted) in [
        (&["--lora-layers", "9"][..], "the model has 2 blocks"),
        (&["--backend", "candle", "--dtype", "bf16"], "leave --dtype out"),
        (&["--mode", "chat"], "--data"),
        (&["--mode", "chat", "--data", "/nonexistent.jsonl"], "/nonexistent.jsonl"),
    ] {
        let output = bench(arguments);
        assert!(!output.status.success(), "{arguments:?}");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(said.contains(wanted), "{arguments:?}: {said}");
    }
}
