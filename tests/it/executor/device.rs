//! Where jobs are trained is chosen when the server starts, and a device that is not there is
//! refused then, or fails the job that finds it gone.

use std::path::Path;
use std::process::{Command, Output};

use hone::device::Device;
use hone::domain::error_code::ErrorCode;
use hone::domain::job::{Hyperparameters, JobStatus};

use crate::support::executor::Workshop;
use crate::support::server::chat_lines;

/// A server that should not start, over a folder that it should not make.
fn refused(command: &str, flags: &[&str], variable: Option<&str>) -> String {
    let folder = tempfile::tempdir().expect("a folder");
    let data_dir = folder.path().join("data");
    let mut hone = Command::new(env!("CARGO_BIN_EXE_hone"));
    hone.arg(command).args(["--listen", "127.0.0.1:0", "--models-dir"]).arg(folder.path());
    hone.arg("--data-dir").arg(&data_dir).args(flags);
    if let Some(variable) = variable {
        hone.env("HONE_DEVICE", variable);
    }
    let Output { status, stdout, stderr } = hone.output().expect("runs");
    assert!(!status.success());
    assert!(stdout.is_empty() && !data_dir.exists(), "it began to serve");
    String::from_utf8(stderr).expect("UTF-8")
}

#[test]
fn a_text_that_names_no_device_is_refused_with_the_list() {
    let cases = [
        refused("serve", &["--device", "tpu"], None),
        refused("serve", &[], Some("tpu")),
        refused("demo", &["--device", "tpu"], None),
    ];
    for said in cases {
        assert!(said.contains("--device") && said.contains("tpu"), "{said}");
        assert!(said.contains("auto, cpu, cuda and cuda:N"), "{said}");
    }
}

#[cfg(not(feature = "cuda"))]
#[test]
fn a_cuda_device_is_refused_at_the_start_where_hone_is_built_without() {
    let cases = [
        (refused("serve", &["--device", "cuda"], None), "cuda:0"),
        (refused("serve", &[], Some("cuda:1")), "cuda:1"),
    ];
    for (said, device) in cases {
        assert!(said.contains("--device") && said.contains(device), "{said}");
        assert!(said.contains("built without CUDA") && said.contains("--features cuda"), "{said}");
        assert!(said.contains("device cpu"), "{said}");
    }
}

#[tokio::test]
async fn a_job_whose_device_is_gone_fails_and_names_it() {
    let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data");
    let mut workshop = Workshop::new(&models, Path::new(env!("CARGO_BIN_EXE_hone"))).await;
    // No machine has so many.
    workshop.device = Device::Cuda(97);
    let training_file = workshop.upload(&chat_lines(12)).await;
    let job = workshop.create("tiny-llama", &training_file, Hyperparameters::default()).await;
    let executor = workshop.start().await;
    let job = workshop.ended(&job).await;
    executor.shut_down().await;
    assert_eq!(job.status, JobStatus::Failed);
    let error = job.error.expect("an error");
    assert_eq!(error.code, ErrorCode::InternalError);
    assert!(error.message.contains("cuda:97") && error.message.contains("device cpu"), "{error:?}");
}

#[test]
fn the_image_for_cuda_keeps_the_kernels_that_the_driver_compiles() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docker/Dockerfile.cuda");
    let text = std::fs::read_to_string(path).expect("reads");
    let cache = text.split_whitespace().find_map(|word| word.strip_prefix("CUDA_CACHE_PATH="));
    let cache = cache.expect("the cache's folder is named");
    let volumes = text.lines().find_map(|line| line.strip_prefix("VOLUME ")).expect("volumes");
    let volumes: Vec<String> = serde_json::from_str(volumes).expect("a list");
    assert!(volumes.iter().any(|volume| Path::new(cache).starts_with(volume)), "{cache}");
}
