//! `hone bench` measures what it says.

use std::path::Path;
use std::process::{Command, Output};

use hone::train::backend::cpu::isa::Isa;
use serde_json::{Value, json};

use crate::support::server::chat_lines;

/// Runs `hone bench train` over the tiny model.
fn train(arguments: &[&str]) -> Output {
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/tiny-llama");
    let model = model.to_str().expect("UTF-8");
    let work = ["train", "--steps", "3", "--warmup-steps", "1", "--model", model];
    bench(&[&work, arguments].concat())
}

fn bench(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_hone")).arg("bench").args(arguments).output().expect("runs")
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
    let dense = json(&train(&["--batch", "2", "--seq", "32", "--threads", "1", "--json"]));
    let chat = ["--mode", "chat", "--data", data, "--batch", "5", "--dtype", "f32", "--json"];
    let chat = json(&train(&chat));
    // The second step goes over the file's beginning again.
    let again = ["--mode", "chat", "--data", data, "--batch", "12", "--lora-layers", "1", "--json"];
    let again = json(&train(&again));
    for report in [&dense, &chat] {
        assert_eq!((&report["steps"], &report["timed_steps"]), (&3.into(), &2.into()));
        for key in ["tokens_per_s", "loss_tokens_per_s", "examples_per_s", "gflops_per_s"] {
            assert!(report[key].as_f64().is_some_and(|value| value > 0.0), "{key}: {report}");
        }
        for key in ["median_step_s", "first_step_s", "peak_rss_gb", "rss_after_load_gb", "load_s"] {
            assert!(report[key].is_number(), "{key}: {report}");
        }
        let of_all = report["timed_tokens"].as_f64().unwrap() / report["timed_s"].as_f64().unwrap();
        let told = report["tokens_per_s"].as_f64().unwrap();
        assert!((of_all / told - 1.0).abs() < 0.05, "{of_all} tokens/s: {report}");
        assert_eq!(report["losses"].as_array().map(Vec::len), Some(3));
    }
    assert_eq!(
        (&dense["mode"], &dense["seq_len"], &dense["threads"]),
        (&"dense".into(), &32.into(), &1.into())
    );
    assert_eq!((&dense["timed_tokens"], &dense["timed_loss_tokens"]), (&128.into(), &124.into()));
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
        json(&train(&arguments))["losses"][2].as_f64().expect("a loss")
    });
    assert!((backends[0] - backends[1]).abs() < 1e-4, "the same work: {backends:?}");
}

#[test]
fn bench_train_takes_tokens_as_they_are_and_several_batches_from_the_same_beginning() {
    let folder = tempfile::tempdir().expect("a folder");
    let data = folder.path().join("tokens.jsonl");
    let line = |start: usize, count: usize| {
        let input_ids: Vec<usize> = (start..start + count).collect();
        let loss_mask: Vec<bool> = (0..count).map(|index| index >= 4).collect();
        json!({"input_ids": input_ids, "loss_mask": loss_mask}).to_string() + "\n"
    };
    let lines: String = (0..6).map(|number| line(5 + 3 * number, 10 + number)).collect();
    std::fs::write(&data, &lines).expect("writes");
    let data = data.to_str().expect("UTF-8");
    let work = ["--mode", "tokens", "--data", data, "--rank", "4", "--dtype", "f32", "--json"];
    let output = train(&[&work[..], &["--batch", "2,3"]].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let said = String::from_utf8(output.stdout).expect("UTF-8");
    let reports: Vec<Value> =
        said.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    assert_eq!(reports.len(), 2, "{said}");
    let three = json(&train(&[&work[..], &["--batch", "3"]].concat()));
    assert_eq!((&reports[0]["batch"], &reports[1]["batch"]), (&2.into(), &3.into()));
    assert_eq!(reports[1]["losses"], three["losses"], "the second batch begins anew");
    assert_ne!(reports[0]["losses"], three["losses"]);
    // Steps 2 and 3 with three sequences each: 13 + 14 + 15 tokens, then 10 + 11 + 12.
    assert_eq!((&three["mode"], &three["lora_r"]), (&"tokens".into(), &4.into()));
    assert_eq!((&three["timed_tokens"], &three["timed_loss_tokens"]), (&75.into(), &51.into()));

    for (bad, wanted) in [
        ("{\"input_ids\": [1, 2], \"loss_mask\": [true]}", "2 tokens have a loss mask of 1"),
        ("{\"input_ids\": [1, 2], \"loss_mask\": [true, false]}", "no token is supervised"),
        ("{\"input_ids\": [1]}", "missing field `loss_mask`"),
        ("{\"input_ids\": [1, 999], \"loss_mask\": [false, true]}", "999"),
    ] {
        std::fs::write(data, format!("{}{bad}\n", line(5, 10))).expect("writes");
        let output = train(&work);
        assert!(!output.status.success(), "{bad}");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(said.contains(wanted), "{bad}: {said}");
    }
}

#[test]
#[cfg(not(feature = "cuda"))]
fn bench_train_on_a_gpu_says_that_this_build_has_none() {
    for dtype in ["auto", "f32"] {
        let output = train(&["--backend", "cuda", "--dtype", dtype]);
        assert!(!output.status.success());
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(said.contains("built without CUDA"), "{said}");
    }
}

#[test]
fn bench_train_says_which_examples_it_leaves_out() {
    let folder = tempfile::tempdir().expect("a folder");
    let data = folder.path().join("chat.jsonl");
    let long =
        chat_lines(1).replacen("\"content\":\"", &format!("\"content\":\"{}", "a ".repeat(400)), 1);
    std::fs::write(&data, chat_lines(3) + &long).expect("writes");
    let data = data.to_str().expect("UTF-8");
    let output = train(&["--mode", "chat", "--data", data, "--batch", "1", "--json"]);
    json(&output);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("1 of 4 examples are longer than 256 tokens"), "{said}");
}

#[test]
fn the_time_to_the_first_step_counts_from_the_start_of_the_process() {
    // A shell that waits and then becomes the command is one process, which began before it waited.
    let script = "sleep 0.6; exec \"$0\" bench train --steps 1 --json --model \"$1\"";
    let output = Command::new("sh")
        .args(["-c", script, env!("CARGO_BIN_EXE_hone")])
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/tiny-llama"))
        .output()
        .expect("runs");
    let seconds = json(&output)["load_s"].as_f64().expect("seconds");
    assert!((0.6..20.0).contains(&seconds), "{seconds} s");
}

#[test]
fn bench_peak_measures_every_level_that_the_cpu_has() {
    let report = json(&bench(&["peak", "--threads", "1", "--json"]));
    assert_eq!(report["threads"], 1);
    let levels = report["gflops_per_s"].as_object().expect("levels");
    let wanted: Vec<&str> =
        Isa::ALL.into_iter().filter(|isa| isa.is_available()).map(Isa::name).collect();
    assert_eq!(levels.keys().collect::<Vec<_>>(), wanted);
    for (level, gflops_per_s) in levels {
        let gflops_per_s = gflops_per_s.as_f64().expect("a number");
        // No core is that fast: the loop would have been optimised away.
        assert!((0.01..3000.0).contains(&gflops_per_s), "{level}: {gflops_per_s} GFLOP/s");
    }
    let sentences = bench(&["peak", "--threads", "1"]);
    let sentences = String::from_utf8_lossy(&sentences.stdout);
    assert_eq!(sentences.lines().count(), wanted.len(), "{sentences}");
    assert!(sentences.lines().all(|line| line.ends_with(" GFLOP/s")), "{sentences}");
}

#[test]
fn bench_train_refuses_what_it_cannot_measure() {
    for (arguments, wanted) in [
        (&["--lora-layers", "9"][..], "the model has 2 blocks"),
        (&["--backend", "candle", "--dtype", "bf16"], "leave --dtype out"),
        (&["--mode", "chat"], "--data"),
        (&["--mode", "chat", "--data", "/nonexistent.jsonl"], "/nonexistent.jsonl"),
    ] {
        let output = train(arguments);
        assert!(!output.status.success(), "{arguments:?}");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(said.contains(wanted), "{arguments:?}: {said}");
    }
}

#[test]
fn bench_serve_says_how_fast_prompts_are_read_and_answers_written() {
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/tiny-llama");
    for (dtype, streams) in [("auto", 1), ("f32", 3), ("bf16", 3)] {
        let report = json(
            &Command::new(env!("CARGO_BIN_EXE_hone"))
                .args(["bench", "serve", "--json", "--prompt", "20", "--generate", "5"])
                .args(["--streams", &streams.to_string(), "--dtype", dtype, "--model"])
                .arg(&model)
                .output()
                .expect("runs"),
        );
        assert_eq!(report["streams"], streams);
        for key in ["prefill_tokens_per_s", "decode_tokens_per_s", "weights_gb_per_s"] {
            assert!(report[key].as_f64().is_some_and(|value| value > 0.0), "{key}: {report}");
        }
    }
    let too_long = bench(&["serve", "--prompt", "600", "--model", model.to_str().expect("UTF-8")]);
    assert!(String::from_utf8_lossy(&too_long.stderr).contains("context is 512"));
}
