//! The kernels are CUDA: NVIDIA's compiler takes them. It needs no GPU.

use std::process::Command;

use super::{kernels_folder, root};

#[test]
#[ignore = "long: tests/long runs it"]
fn nvrtc_compiles_the_kernels_for_each_architecture() {
    let variables = ["HONE_TEST_PYTHON", "HONE_TEST_NVRTC"].map(std::env::var_os);
    let [Some(python), Some(library)] = variables else {
        eprintln!(
            "not run: HONE_TEST_PYTHON and HONE_TEST_NVRTC are not set; tests/long sets them"
        );
        return;
    };
    let output = Command::new(python)
        .arg(root().join("tests/python/compile_kernels.py"))
        .arg(library)
        .arg(kernels_folder())
        .output()
        .expect("Python starts");
    let said = String::from_utf8_lossy(&output.stdout);
    println!("{said}");
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    for architecture in ["sm_80", "sm_90"] {
        for kernel in ["rms_norm_backward", "attention_backward_keys<128>"] {
            let compiled = said.lines().any(|line| {
                line.starts_with(&format!("{architecture} {kernel}: "))
                    && line.ends_with("no spills")
            });
            assert!(compiled, "{kernel} for {architecture}: {said}");
        }
    }
}
