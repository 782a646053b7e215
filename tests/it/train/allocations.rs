//! A step of training works in the memory of the steps before it.

use std::path::Path;
use std::process::Command;

use hone::train::backend::AdamWStep;
use hone::train::data::sequence::Sequence;
use hone::train::engine::{BackendKind, Engine, MicroBatch, load};
use hone::train::model::base_model::BaseModel;
use hone::train::model::lora::LoraSettings;

/// Set in the process that counts: there no other test allocates beside it.
const COUNTS: &str = "HONE_TEST_COUNTS_ALLOCATIONS";

/// Tokens of a sequence: a matrix of activations takes 128 KiB and more.
const TOKENS: u32 = 512;

#[test]
fn no_step_after_the_first_of_its_length_allocates_a_matrix_or_touches_a_fresh_page() {
    if std::env::var_os(COUNTS).is_none() {
        let this = std::env::current_exe().expect("this binary");
        // The test's path without the crate's name, wherever its file lies.
        let (_crate, module) = module_path!().split_once("::").expect("a module of the crate");
        let name = format!(
            "{module}::no_step_after_the_first_of_its_length_allocates_a_matrix_or_touches_a_fresh_page"
        );
        let output = Command::new(this)
            .args(["--exact", &name, "--nocapture"])
            .env(COUNTS, "1")
            .env("RAYON_NUM_THREADS", "2")
            .output()
            .expect("runs");
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
        assert!(said.contains("1 passed"), "{said}");
        return;
    }
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/tiny-llama");
    let base = BaseModel::open(&model).expect("opens");
    for kind in [BackendKind::Cpu, BackendKind::CpuF32] {
        let lora = LoraSettings::new(8, 16.0);
        let weights = base.weights.as_ref();
        let mut engine = load(&base.config, weights, &lora, 3, kind).expect("loads");
        // In time each thread has had the largest of the tasks.
        for length in [TOKENS, 300, 77] {
            for _ in 0..6 {
                step(engine.as_mut(), length, 1);
            }
            let _profiler = dhat::Profiler::builder().testing().build();
            for number in 2..6 {
                let (bytes, faults) = (dhat::HeapStats::get().total_bytes, page_faults());
                step(engine.as_mut(), length, number);
                let bytes = dhat::HeapStats::get().total_bytes - bytes;
                // Lists of tokens, tasks and names are a part of the smallest matrix, `[tokens, 64]`.
                let most = (u64::from(2 * length) * 64 * 4).max(128 * 1024);
                assert!(bytes < most, "{kind:?}: a step over {length} tokens allocated {bytes}");
                // Recording the allocations touches pages itself; a matrix has 64 and more.
                let faults = page_faults() - faults;
                assert!(
                    faults < 48,
                    "{kind:?}: a step over {length} tokens touched {faults} pages"
                );
            }
        }
    }
}

/// One step over two sequences of so many tokens.
fn step(engine: &mut dyn Engine, length: u32, number: u64) {
    let sequence = |own: u32| Sequence {
        input_ids: (0..length).map(|place| (place * 7 + (place / 64) * own) % 300).collect(),
        loss_mask: (0..length).map(|place| place > 100 || place > length / 2).collect(),
    };
    let sequences = [sequence(1), sequence(2)];
    let batch: Vec<&Sequence> = sequences.iter().collect();
    let targets = batch.iter().map(|sequence| sequence.targets()).sum();
    engine.accumulate(&batch, MicroBatch::whole(number, targets)).expect("computes");
    let step = AdamWStep {
        learning_rate: 1e-3,
        beta1: 0.9,
        beta2: 0.999,
        epsilon: 1e-8,
        weight_decay: 0.0,
        clip: 1.0,
        step: number,
    };
    engine.step(&step).expect("moves");
}

/// Minor page faults of this process so far: `/proc/self/stat`, the tenth field, which is the eighth
/// behind the name in brackets.
fn page_faults() -> u64 {
    let stat = std::fs::read_to_string("/proc/self/stat").expect("Linux");
    let behind = stat.rsplit_once(") ").expect("a name").1;
    behind.split(' ').nth(7).and_then(|field| field.parse().ok()).expect("a number")
}
