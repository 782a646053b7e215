//! `benches/gpu` is sure before a GPU is at hand: the real scripts run whole on the CPU, over this build.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

/// Most seconds of a run: some twenty on tiny sizes, and more where many tests share two cores.
const MOST_SECONDS: f64 = 540.0;

/// A script of `benches/gpu`; `None` where there is no Python for it.
fn script(name: &str) -> Option<Command> {
    let is_there = |python: &Path| {
        let asked = Command::new(python)
            .args(["-c", "import sys, lzma, venv; sys.exit(sys.version_info < (3, 10))"])
            .output();
        asked.is_ok_and(|output| output.status.success())
    };
    let mut pythons = vec![PathBuf::from("python3")];
    pythons.extend(std::env::var_os("HONE_TEST_PYTHON").map(PathBuf::from));
    let Some(python) = pythons.into_iter().find(|python| is_there(python)) else {
        eprintln!("not run: there is no Python 3.10 or newer");
        return None;
    };
    let mut command = Command::new(python);
    command
        .arg("-B")
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/gpu").join(name))
        .env("PYTHONDONTWRITEBYTECODE", "1");
    Some(command)
}

fn succeed(command: &mut Command) -> String {
    let output = command.output().expect("it starts");
    assert!(output.status.success(), "{}", said(&output));
    String::from_utf8(output.stdout).expect("UTF-8")
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// A package of this build, not compressed, with this test program as the checks or another one.
fn pack(folder: &Path, checks: &Path) -> Option<PathBuf> {
    let package = folder.join("package");
    succeed(
        script("pack")?
            .args(["--loose", "--hone", env!("CARGO_BIN_EXE_hone"), "--checks"])
            .arg(checks)
            .arg("--out")
            .arg(&package),
    );
    Some(package)
}

/// Runs phases over a package; the results and the page.
fn run(package: &Path, folder: &Path, only: &[&str]) -> (Value, String) {
    let out = folder.join("results");
    let mut command = script("run").expect("a Python");
    // With the phases last, the package would be one of them.
    command.args(["--device", "cpu", "--out"]).arg(&out).arg(package);
    if !only.is_empty() {
        command.arg("--only").args(only);
    }
    let printed = succeed(&mut command);
    let page = std::fs::read_to_string(out.join("gpu.md")).expect("a page");
    assert!(printed.contains(&page), "the page is printed: {printed}");
    let results = std::fs::read(out.join("gpu.json")).expect("results");
    (serde_json::from_slice(&results).expect("JSON"), page)
}

fn positive(value: &Value) -> f64 {
    value.as_f64().filter(|value| *value > 0.0).unwrap_or_else(|| panic!("{value}"))
}

fn check_goldens(phases: &Value, page: &str) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/golden");
    let cases = std::fs::read_dir(folder).expect("cases").count();
    for precision in ["bf16", "f32"] {
        let phase = &phases[format!("goldens_{precision}")];
        assert_eq!(phase["status"], "done", "{phase}");
        assert_eq!(
            (&phase["cases_in_all"], &phase["cases_measured"]),
            (&cases.into(), &cases.into())
        );
        assert_eq!(phase["precision"], precision);
        for what in ["base_logits", "step_losses", "gradients", "trained_adapter"] {
            let largest = &phase["largest"][what];
            let relative = positive(&largest["relative"]);
            assert!(page.contains(largest["case"].as_str().expect("a case")));
            // 32-bit floats keep what the golden tests ask for; bfloat16 stays in sight of it.
            if precision == "f32" {
                assert!(positive(&largest["of_allowed"]) <= 1.0, "{what}: {largest}");
            } else if what != "trained_adapter" {
                assert!(relative < 0.5, "{what}: {largest}");
            }
        }
        assert!(
            page.contains(&format!("- {precision}: {cases} of {cases} cases measured")),
            "{page}"
        );
    }
}

fn check_jobs(phases: &Value, page: &str) {
    let jobs = &phases["jobs"];
    assert_eq!(jobs["status"], "done", "{jobs}");
    assert_eq!(jobs["twice_the_same_bytes"], true);
    assert_eq!(jobs["same_bytes_after_the_kill"], true);
    assert_eq!(jobs["processes_killed"], 1);
    assert!(jobs["killed_after_step"].as_u64().is_some_and(|step| step >= 10), "{jobs}");
    let continued = jobs["continued"].as_str().expect("a sentence");
    assert!(continued.contains("continues from the checkpoint"), "{continued}");
    let hashes = ["first_job", "same_job_again", "killed_job"].map(|job| &jobs[job]["sha256"]);
    for hash in hashes {
        let hash = hash["adapter_model.safetensors"].as_str().expect("a hash");
        assert_eq!(hash.len(), 64, "{hash}");
    }
    assert!(page.contains("| the same job twice, byte for byte | yes |"), "{page}");

    let refused = &phases["does_not_fit"];
    assert_eq!(refused["status"], "done", "{refused}");
    let error = &refused["job"]["error"];
    assert_eq!(error["code"], "out_of_memory");
    assert!(page.contains(error["message"].as_str().expect("a message")), "{page}");
}

fn check_speed(results: &Value, page: &str) {
    let phases = &results["phases"];
    let has_torch = !phases["machine"]["python"]["torch"].is_null();
    let asked = std::env::var_os("HONE_TEST_PYTHON").is_some();
    assert!(has_torch || !asked, "HONE_TEST_PYTHON has no torch: {}", phases["machine"]);
    let mut ratios = 0;
    for shape in ["tiny-tied", "tiny-untied"] {
        let phase = &phases[format!("speed_{shape}")];
        assert_eq!(phase["status"], "done", "{phase}");
        for (work, variants) in [("dense-1", 2), ("dense-2", 2), ("chats", 4)] {
            let row = &phase["works"][work];
            for key in
                ["tokens_per_s", "tflops_per_s", "share_of_peak", "median_step_s", "peak_rss_gb"]
            {
                positive(&row["hone"][key]);
            }
            // The base knows nothing: the loss is that of a guess among 320 tokens.
            let loss = positive(&row["hone"]["losses"][0]);
            assert!((loss - 320f64.ln()).abs() < 0.5, "{row}");
            if !has_torch {
                assert!(row["peft"].is_null(), "{row}");
                assert!(phase["peft"].as_str().is_some_and(|text| text.contains("not available")));
                continue;
            }
            let peft = row["peft"].as_object().expect("variants");
            assert_eq!(peft.len(), variants, "{row}");
            for (variant, theirs) in peft {
                positive(&theirs["tokens_per_s"]);
                let apart = theirs["first_loss_apart"].as_f64().expect("compared");
                assert!(apart < 0.02, "{variant}: the work differs: {row}");
                assert!(page.contains(&format!("PEFT, {variant}")), "{page}");
                ratios += 1;
            }
        }
    }
    assert_eq!(ratios, if has_torch { 16 } else { 0 });
}

#[test]
#[ignore = "long: tests/long runs it"]
fn the_gpu_script_runs_whole_on_the_cpu_and_its_page_says_what_it_measured() {
    let folder = tempfile::tempdir().expect("a folder");
    let this = std::env::current_exe().expect("this program");
    let Some(package) = pack(folder.path(), &this) else { return };
    let (results, page) = run(&package, folder.path(), &[]);
    let phases = &results["phases"];
    assert_eq!((&results["device"], &results["tiny"]), (&"cpu".into(), &true.into()));
    assert_eq!(results["package"]["cuda"], "13.0");
    let took = positive(&results["took_s"]);
    assert!(took < MOST_SECONDS, "{took} s: {page}");

    assert_eq!(phases["machine"]["status"], "done", "{}", phases["machine"]);
    let version = format!("hone {}", env!("CARGO_PKG_VERSION"));
    assert_eq!(phases["machine"]["hone"], version);
    positive(&phases["machine"]["peaks"]["f32"]);
    assert!(page.contains(&version), "{page}");
    check_goldens(phases, &page);
    check_jobs(phases, &page);
    check_speed(&results, &page);
    // There is no card: the page says so and names each phase.
    assert_eq!(phases["trace"]["status"], "not available");
    for phase in phases.as_object().expect("phases").values() {
        let row = format!(
            "| {} | {} |",
            phase["title"].as_str().unwrap(),
            phase["status"].as_str().unwrap()
        );
        assert!(page.contains(&row), "{row}: {page}");
    }
}

#[test]
fn what_fails_in_the_gpu_script_says_why_and_the_rest_goes_on() {
    let folder = tempfile::tempdir().expect("a folder");
    let checks = folder.path().join("checks");
    std::fs::write(&checks, "#!/bin/sh\necho 'the device is on fire' >&2\nexit 3\n")
        .expect("writes");
    let Some(package) = pack(folder.path(), &checks) else { return };
    Command::new("chmod").arg("+x").arg(package.join("checks")).status().expect("chmod");
    let (results, page) = run(&package, folder.path(), &["goldens_f32", "does_not_fit"]);
    let failed = &results["phases"]["goldens_f32"];
    assert_eq!(failed["status"], "failed");
    assert_eq!(failed["why"], "exit code 3: the device is on fire");
    assert_eq!(failed["cases_measured"], 0);
    assert!(page.contains("failed: exit code 3: the device is on fire"), "{page}");
    assert_eq!(results["phases"]["does_not_fit"]["status"], "done");
    assert!(results["phases"]["jobs"].is_null(), "it was not asked for");
}

#[test]
fn a_package_that_is_too_large_to_send_is_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let Some(mut command) = script("pack") else { return };
    let case = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/golden/llama");
    command
        .args(["--hone", "/bin/sh", "--checks", "/bin/sh", "--goldens"])
        .arg(case)
        .arg("--out")
        .arg(folder.path().join("package"));
    let fits = succeed(&mut command);
    assert!(fits.contains("together, of 60 MB"), "{fits}");
    assert!(folder.path().join("package/package.tar.xz").exists());
    let output = command.args(["--most", "1"]).output().expect("it starts");
    assert!(!output.status.success());
    let said = said(&output);
    assert!(said.contains("more than 1 MB cannot be sent"), "{said}");
}

#[test]
fn a_recording_becomes_classes_of_kernels_launches_and_waits() {
    let Some(_) = script("run") else { return };
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/gpu");
    // The device's clock is 1,000 behind; the step is from 2,000 to 12,000.
    let lines = "T 0 1000\nK 100 900 before_the_step\nK 1000 3000 badd_f32\nK 2000 4000 sm80_xmma_gemm_bf16\n\
                 C 5000 6000 1 4096\nS 6000 6500 64\nD 1500 1600 cuLaunchKernel\nD 1600 1700 cuLaunchKernelEx\n\
                 D 2000 8000 cuStreamSynchronize\nD 8000 8100 cuMemAllocAsync\nE 3 records were dropped\n";
    let code = "import json, sys; sys.path.insert(0, sys.argv[1]); import trace; \
                print(json.dumps(trace.summary(sys.argv[2].splitlines(), 2000, 12000)))";
    let output = Command::new("python3")
        .args(["-B", "-c", code])
        .arg(folder)
        .arg(lines)
        .output()
        .expect("starts");
    assert!(output.status.success(), "{}", said(&output));
    let found: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!((&found["launches"], &found["kernels"]), (&2.into(), &2.into()));
    // Two kernels overlap by half; a copy and a set follow: 4.5 of 10 microseconds.
    assert_eq!(found["device_busy_share"], 0.45);
    let classes = &found["kernels_by_class"];
    assert_eq!(classes["products of matrices (cuBLAS)"]["count"], 1);
    assert_eq!(classes["products, sums, comparisons of elements"]["longest"][0], "badd_f32");
    assert_eq!(found["copies"]["copy host to device"]["bytes"], 4096);
    assert_eq!(found["host_waits"]["cuStreamSynchronize"]["share"], 0.6);
    assert_eq!(found["host_waits"].as_object().map(|waits| waits.len()), Some(1));
    assert_eq!(found["notes"][0], "3 records were dropped");
}
