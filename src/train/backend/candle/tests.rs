//! What the golden cases of the whole engine do not reach.

use std::path::Path;

use super::*;
use crate::train::backend::cpu::backend::CpuBackend;
use crate::train::backend::cpu::isa::Isa;
use crate::train::backend::{
    AttentionOps, AttentionShape, BackendError, LayerOps, Matrices, Segment,
};
use crate::train::rng::Stream;

fn candle() -> CandleBackend {
    CandleBackend::new(Device::Cpu)
}

/// Numbers between -1 and 1 that are the same each time.
fn noise(rows: usize, columns: usize, seed: u64) -> Vec<f32> {
    let stream = Stream::new(seed, "noise", 0);
    (0..rows * columns).map(|at| 2.0 * stream.unit(at as u64) - 1.0).collect()
}

#[test]
fn no_other_file_moves_numbers_between_host_and_device() {
    // What makes a tensor of host values or reads one, also inside of candle.
    let ways = [
        "from_slice",
        "from_vec",
        "from_iter",
        "Tensor::new",
        "arange",
        "tril",
        "triu",
        "cumsum",
        "Tensor::rand",
        "rand_like",
        "randn_like",
        "to_vec",
        "to_scalar",
        "to_device",
    ];
    // With a plain number instead of a tensor these send it up.
    let comparisons = ["eq", "ne", "lt", "le", "gt", "ge", "maximum", "minimum"];
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/train/backend/candle");
    let mut looked_at = 0;
    for entry in std::fs::read_dir(folder).expect("the folder") {
        let path = entry.expect("an entry").path();
        if path.ends_with("transfers.rs") || path.ends_with("tests.rs") {
            continue;
        }
        looked_at += 1;
        let text = std::fs::read_to_string(&path).expect("reads");
        for (number, line) in text.lines().enumerate() {
            let code = line.split("//").next().unwrap_or_default();
            for way in ways {
                assert!(!code.contains(way), "{}:{}: {way}", path.display(), number + 1);
            }
            for comparison in comparisons {
                for (at, call) in code.match_indices(&format!(".{comparison}(")) {
                    let with = &code[at + call.len()..];
                    assert!(with.starts_with('&'), "{}:{}: {call}", path.display(), number + 1);
                }
            }
        }
    }
    assert!(looked_at >= 5, "the folder was not found");
}

#[test]
fn attention_in_blocks_of_queries_is_attention() {
    let shapes = [(None, None), (Some(3), None), (None, Some(2.0)), (Some(5), Some(1.5))];
    for (window, soft_cap) in shapes {
        let shape =
            AttentionShape { heads: 4, kv_heads: 2, head_dim: 6, scale: 0.7, window, soft_cap };
        let tokens = 11;
        let transfers = HostTransfers::new(Device::Cpu);
        let matrix = |columns: usize, seed: u64| {
            transfers.floats(&noise(tokens, columns, seed), (tokens, columns)).expect("makes")
        };
        let (queries, keys, values) = (matrix(24, 1), matrix(12, 2), matrix(12, 3));
        let gradient = matrix(24, 4);
        let run = |max_scores: usize| {
            // Masks of most blocks are made anew, of the first ones they are kept.
            let attention = CandleAttention::new(max_scores, 4);
            let inputs = [&queries, &keys, &values];
            let output = attention.forward(&transfers, inputs, 1, &shape).expect("computes");
            let along = (&gradient * &output).expect("computes");
            let along = along.reshape((tokens, 4, 6)).and_then(|along| along.sum(2));
            let of_output = [&gradient, &along.expect("computes")];
            let gradients = attention.backward(&transfers, of_output, inputs, 1, &shape);
            let mut all = vec![output];
            all.extend(gradients.expect("computes"));
            all.iter().map(|one| transfers.read(one).expect("reads")).collect::<Vec<_>>()
        };
        let whole = run(usize::MAX);
        // One query at a time, three (the last block is shorter), and all of them.
        for max_scores in [0, 3 * 4 * tokens, tokens * 4 * tokens] {
            for (blocked, whole) in run(max_scores).iter().zip(&whole) {
                assert_eq!(blocked.len(), whole.len());
                for (blocked, whole) in blocked.iter().zip(whole) {
                    assert!((blocked - whole).abs() < 1e-5, "{max_scores}: {blocked} {whole}");
                }
            }
        }
    }
}

#[test]
fn one_mask_of_attention_serves_all_shapes_and_only_large_ones_are_made_anew() {
    let attention = CandleAttention::new(1 << 20, 8);
    let transfers = HostTransfers::new(Device::Cpu);
    let mask = |queries, keys, window| {
        let mask = attention.mask(&transfers, queries, keys, window).expect("makes");
        transfers.read(&mask).expect("reads")
    };
    let no = f32::NEG_INFINITY;
    let all = [0.0, no, no, 0.0, 0.0, no, 0.0, 0.0, 0.0];
    assert_eq!(mask(3, 3, None), all);
    assert_eq!(mask(2, 3, None), all[3..]);
    assert_eq!(attention.kept_mask_elements(), 16);
    assert_eq!(mask(3, 3, Some(1)), [0.0, no, no, no, 0.0, no, no, no, 0.0]);
    assert_eq!(mask(1, 4, Some(2)), [no, no, 0.0, 0.0]);
    assert_eq!(attention.kept_mask_elements(), 3 * 16, "one for each window");
    assert_eq!(transfers.counts().to_device, 1, "four positions serve all of them");
    assert_eq!(mask(2, 5, None), [0.0, 0.0, 0.0, 0.0, no, 0.0, 0.0, 0.0, 0.0, 0.0]);
    assert_eq!(attention.kept_mask_elements(), 2 * 16 + 64, "one has grown");
    assert_eq!(mask(1, 9, Some(2)), [no, no, no, no, no, no, no, 0.0, 0.0]);
    assert_eq!(attention.kept_mask_elements(), 2 * 16 + 64, "a larger one is not kept");
}

#[test]
fn segments_that_attend_together_come_to_the_same_as_alone() {
    let prefix = Segment::alone(0..18);
    let behind = |rows, second: Option<std::ops::Range<usize>>| Segment {
        rows,
        before: std::iter::once(0..18).chain(second).collect(),
    };
    // Sequences behind a prefix, some of them behind a second one, and some without.
    let segments = [
        prefix,
        behind(18..24, None),
        behind(24..40, None),
        behind(40..45, Some(24..40)),
        behind(45..51, Some(24..40)),
        behind(51..56, None),
        Segment::alone(56..61),
        Segment::alone(61..66),
    ];
    let tokens = 66;
    let (heads, kv_heads, head_dim) = (4, 2, 6);
    for (window, soft_cap) in [(None, None), (Some(7), Some(1.5))] {
        let shape = AttentionShape { heads, kv_heads, head_dim, scale: 0.7, window, soft_cap };
        let run = |max_scores: usize| {
            let mut backend = candle();
            backend.attention = CandleAttention::new(max_scores, 1 << 10);
            let matrix = |columns: usize, seed: u64| {
                backend.matrix(tokens, columns, &noise(tokens, columns, seed)).expect("makes")
            };
            let (queries, keys, values) = (matrix(24, 1), matrix(12, 2), matrix(12, 3));
            let gradient = matrix(24, 4);
            let (output, saved) =
                backend.attention(&queries, &keys, &values, &segments, &shape).expect("computes");
            let gradients = backend
                .attention_backward(
                    &gradient, &queries, &keys, &values, &output, &saved, &segments, &shape,
                )
                .expect("computes");
            let groups = backend.grouped(&segments, &shape).expect("groups").groups.len();
            let mut all = vec![backend.values(&output).expect("reads")];
            all.extend(gradients.iter().map(|made| backend.values(made).expect("reads")));
            (groups, all)
        };
        let (groups, together) = run(1 << 27);
        let (alone_groups, alone) = run(0);
        assert_eq!((groups, alone_groups), (5, 8));
        for (together, alone) in together.iter().zip(&alone) {
            assert_eq!(together.len(), alone.len());
            for (together, alone) in together.iter().zip(alone) {
                assert!((together - alone).abs() < 1e-5, "{window:?}: {together} {alone}");
            }
        }
    }
}

#[test]
fn dropout_drops_the_same_elements_as_on_the_cpu() {
    let draws: Vec<Stream> = (0..40).map(|row| Stream::new(3, "dropout", row)).collect();
    let layers = [(0, 64), (5, 13), (6, 3)];
    let cpu = CpuBackend::new(Isa::Portable);
    // At 0.97 whole bytes drop.
    for rate in [0.1, 0.5, 0.97] {
        let candle = candle();
        let ours = candle.dropout_masks(&draws, &layers, rate).expect("draws");
        let theirs = cpu.dropout_masks(&draws, &layers, rate).expect("draws");
        for (((_layer, columns), ours), theirs) in layers.iter().zip(&ours).zip(&theirs) {
            let x = noise(draws.len(), *columns, 9);
            let here = candle.matrix(draws.len(), *columns, &x).expect("makes");
            let there = cpu.matrix(draws.len(), *columns, &x).expect("makes");
            let here =
                candle.values(&candle.apply_dropout(&here, ours).expect("drops")).expect("reads");
            let there =
                cpu.values(&cpu.apply_dropout(&there, theirs).expect("drops")).expect("reads");
            assert_eq!(here, there, "{rate} {columns}");
            assert!(here.contains(&0.0) || rate < 0.2);
        }
    }
}

#[test]
fn an_error_of_the_device_is_one_line_and_full_memory_is_told_from_other_faults() {
    let error = |text: &str| candle_core::Error::WithBacktrace {
        inner: Box::new(candle_core::Error::Msg(text.to_owned())),
        backtrace: Box::new(std::backtrace::Backtrace::force_capture()),
    };
    let lost = BackendError::from(error("DriverError(CUDA_ERROR_DEVICE_UNAVAILABLE, \"busy\")"));
    assert!(matches!(lost, BackendError::Backend { .. }));
    assert_eq!(
        lost.to_string(),
        "the candle backend failed: DriverError(CUDA_ERROR_DEVICE_UNAVAILABLE, \"busy\")"
    );
    for text in ["DriverError(CUDA_ERROR_OUT_OF_MEMORY, \"\")", "CUBLAS_STATUS_ALLOC_FAILED"] {
        assert!(
            matches!(BackendError::from(error(text)), BackendError::OutOfMemory { .. }),
            "{text}"
        );
    }
}

#[test]
fn scores_of_long_texts_take_no_more_memory_than_a_block_of_queries() {
    let alone = |heads, longest, vocabulary| {
        let tokens = longest;
        let shape = PassShape { heads, tokens, longest, shared: 0, vocabulary, head_rows: 256 };
        temporary_bytes(&shape)
    };
    let mask = 4 * 1024 * 1024;
    assert_eq!(alone(8, 1000, 1000), 6 * 4 * 8 * 1000 * 1000 + mask);
    assert_eq!(alone(8, 16, 50_000), 6 * 4 * 256 * 50_000 + 4 * 256, "the head takes more");
    let most = 6 * 4 * (1 << 27) + 4 * 4096 * 4096;
    assert_eq!(alone(32, 1 << 16, 50_000), most);
    assert_eq!(alone(32, 1 << 17, 50_000), most);
    let (heads, tokens, longest, vocabulary) = (8, 4096, 100, 1000);
    let shape = PassShape { heads, tokens, longest, shared: 20, vocabulary, head_rows: 256 };
    let filled = 6 * 4 * 8 * 2 * 4096 * (20 + 128) + 4 * 128 * 128;
    assert_eq!(temporary_bytes(&shape), filled, "many short ones attend together");
}

#[test]
fn a_larger_pass_has_more_rows_of_logits_at_once_up_to_what_attention_has_of_scores() {
    assert_eq!(head_rows(512, 128_256), 256);
    assert_eq!(head_rows(2048, 128_256), 1024);
    assert_eq!(head_rows(8192, 128_256), (1 << 27) / 128_256);
    assert_eq!(head_rows(4096, 49_152), 2048);
    assert_eq!(head_rows(64, 49_152), 256);
}

#[test]
fn products_beside_bf16_weights_may_round_and_those_beside_32_bit_weights_do_not() {
    assert!(computes_in_tf32(DType::BF16));
    assert!(!computes_in_tf32(DType::F32));
}

#[test]
fn columns_that_are_put_into_a_matrix_are_not_put_into_its_copies() {
    let backend = candle();
    let mut matrix = backend.zeros(2, 4).expect("makes");
    let copy = backend.copy(&matrix).expect("copies");
    let from = backend.matrix(2, 3, &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]).expect("makes");
    backend.scatter_columns(&mut matrix, &[3..4, 0..2], &from).expect("puts");
    assert_eq!(backend.values(&matrix).expect("reads"), [2.0, 3.0, 0.0, 1.0, 5.0, 6.0, 0.0, 4.0]);
    assert_eq!(backend.values(&copy).expect("reads"), [0.0; 8]);
}

#[test]
fn rows_can_be_appended_to_none() {
    let backend = candle();
    let mut matrix = backend.zeros(0, 3).expect("makes");
    assert_eq!(backend.rows(&matrix), 0);
    let row = backend.matrix(1, 3, &[1.0, 2.0, 3.0]).expect("makes");
    backend.append_rows(&mut matrix, &row).expect("appends");
    backend.append_rows(&mut matrix, &row).expect("appends");
    assert_eq!(backend.values(&matrix).expect("reads"), [1.0, 2.0, 3.0, 1.0, 2.0, 3.0]);
}

#[test]
fn no_tensor_without_elements_is_allocated() {
    // A CUDA device refuses to allocate no bytes; a rope that turns nothing has such a table.
    let transfers = HostTransfers::new(Device::Cpu);
    let made = [
        transfers.floats(&[], (7, 0)).expect("makes"),
        transfers.indexes(&[]).expect("makes"),
        transfers.bytes(&[]).expect("makes"),
        transfers.zeros(0, 3).expect("makes"),
        transfers.zeros(7, 0).expect("makes"),
    ];
    let shapes: Vec<&[usize]> = made.iter().map(candle_core::Tensor::dims).collect();
    assert_eq!(shapes, [&[7, 0][..], &[0], &[0], &[0, 3], &[7, 0]]);
    for tensor in &made {
        let (storage, _layout) = tensor.storage_and_layout();
        let candle_core::Storage::Cpu(storage) = &*storage else { panic!("it lies on the CPU") };
        let bytes = match storage {
            candle_core::CpuStorage::F32(values) => 4 * values.len(),
            candle_core::CpuStorage::U32(values) => 4 * values.len(),
            candle_core::CpuStorage::U8(values) => values.len(),
            other => panic!("{other:?}"),
        };
        assert!(bytes > 0, "{:?}", tensor.shape());
    }
    assert_eq!(transfers.counts(), TransferCounts::default(), "nothing was moved");
}

#[test]
fn a_device_with_a_stream_for_each_thread_is_used_by_the_thread_that_loaded_the_model() {
    let transfers = HostTransfers::of_this_thread(Device::Cpu);
    let made = transfers.floats(&[1.0, 2.0], 2).expect("is the owner");
    assert_eq!(transfers.read(&made).expect("is the owner"), [1.0, 2.0]);
    let elsewhere = std::thread::spawn(move || {
        [
            transfers.read(&made).map(|_| ()),
            transfers.floats(&[1.0], 1).map(|_| ()),
            transfers.indexes(&[1]).map(|_| ()),
            transfers.zeros(1, 1).map(|_| ()),
        ]
    });
    for refused in elsewhere.join().expect("no panic") {
        let error = refused.expect_err("another thread").to_string();
        assert!(error.contains("load and train on one thread"), "{error}");
    }
    // A CPU has no streams.
    let transfers = HostTransfers::new(Device::Cpu);
    std::thread::spawn(move || transfers.zeros(1, 1).map(|_| ()).expect("any thread"))
        .join()
        .expect("no panic");
}

#[test]
fn weights_go_up_in_the_precision_in_which_they_compute() {
    let values = noise(16, 8, 5);
    for (precision, bytes) in [(DType::F32, 4), (DType::BF16, 2)] {
        let backend = CandleBackend::with_precision(Device::Cpu, precision);
        let weight = backend.weight(16, 8, &values, None, true).expect("makes").weight;
        assert_eq!(backend.transfer_counts().bytes_to_device, bytes * 16 * 8);
        assert_eq!(weight.dtype(), precision);
        // As the device would round them.
        let there = backend.matrix(16, 8, &values).expect("makes");
        let there = there.to_dtype(precision).and_then(|there| there.to_dtype(DType::F32));
        let there = backend.values(&there.expect("rounds")).expect("reads");
        let here = weight.to_dtype(DType::F32).expect("rounds");
        assert_eq!(backend.values(&here).expect("reads"), there);
    }
}
