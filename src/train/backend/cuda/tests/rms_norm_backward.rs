//! Backward of RMS norm.

use candle_core::Device;

use super::{Input, Program, difference, noise};
use crate::train::backend::candle::CandleBackend;
use crate::train::backend::cpu::backend::CpuBackend;
use crate::train::backend::cpu::isa::Isa;
use crate::train::backend::{LayerOps, Matrices, Norm, NormKind, WeightTrainingOps};

/// f32 on both sides; sums run in another order.
const TOLERANCE: f32 = 4e-6;

struct Case {
    rows: usize,
    width: usize,
    rows_per_block: usize,
    has_residual: bool,
}

#[test]
fn the_cuda_kernel_of_rms_norm_backward_computes_what_the_cpu_does() {
    let Some(program) = Program::compile("kernels") else { return };
    let cases = [
        // One row and one warp, of which half has nothing to do.
        Case { rows: 1, width: 64, rows_per_block: 4, has_residual: false },
        // Per-head norms: many short rows; the last block has fewer.
        Case { rows: 37, width: 128, rows_per_block: 8, has_residual: true },
        // The hidden sizes of SmolLM2-135M and of Llama-3-8B.
        Case { rows: 9, width: 576, rows_per_block: 4, has_residual: true },
        Case { rows: 3, width: 4096, rows_per_block: 2, has_residual: false },
        // Widths that fill neither vectors nor warps evenly, and the largest.
        Case { rows: 5, width: 100, rows_per_block: 5, has_residual: true },
        Case { rows: 2, width: 1028, rows_per_block: 1, has_residual: true },
        Case { rows: 1, width: 8192, rows_per_block: 1, has_residual: false },
    ];
    for (number, case) in cases.iter().enumerate() {
        check(&program, case, number as u64);
    }
}

fn check(program: &Program, case: &Case, seed: u64) {
    let Case { rows, width, .. } = *case;
    let of_rows = |number| noise(rows * width, 10 * seed + number);
    let (x, gradient, residual) = (of_rows(0), of_rows(1), of_rows(2));
    let (weight, weight_gradient) = (noise(width, 10 * seed + 3), noise(width, 10 * seed + 4));
    let epsilon = 1e-3;

    let mut input = Input::default();
    // A thread holds four vectors of four floats.
    let threads = width.div_ceil(4 * 4).next_multiple_of(32);
    input.ints(&[rows, width, case.rows_per_block, threads, usize::from(case.has_residual)]);
    input.floats(&[epsilon]);
    input.floats(&x);
    input.floats(&weight);
    input.floats(&gradient);
    if case.has_residual {
        input.floats(&residual);
    }
    input.floats(&weight_gradient);
    let made = program.results("rms_norm_backward", &input.0);
    let (got, got_of_weight) = made.split_at(rows * width);

    let cpu = CpuBackend::new(Isa::best().for_f32());
    let norm = Norm {
        weight: cpu.vector(&weight).expect("a vector"),
        bias: None,
        width,
        kind: NormKind::Rms,
        epsilon,
    };
    let matrix = |values: &[f32]| cpu.matrix(rows, width, values).expect("a matrix");
    let mut want = cpu.norm_backward(matrix(&gradient), &matrix(&x), &norm).expect("computes");
    if case.has_residual {
        cpu.add(&mut want, &matrix(&residual)).expect("adds");
    }
    let want = cpu.values(&want).expect("reads");
    let (worst, largest) = difference(got, &want);
    assert!(worst < TOLERANCE * largest, "{rows} x {width}: {worst} of {largest}");

    // The CPU's kernels do not train weights.
    let candle = CandleBackend::new(Device::Cpu);
    let norm = Norm {
        weight: candle.vector(&weight).expect("a vector"),
        bias: None,
        width,
        kind: NormKind::Rms,
        epsilon,
    };
    let matrix = |values: &[f32]| candle.matrix(rows, width, values).expect("a matrix");
    let mut into = candle.matrix(1, width, &weight_gradient).expect("a matrix");
    let operands = (matrix(&gradient), matrix(&x));
    candle.norm_weight_gradient(&operands.0, &operands.1, &norm, &mut into).expect("computes");
    let want = candle.values(&into).expect("reads");
    let (worst, largest) = difference(got_of_weight, &want);
    assert!(worst < TOLERANCE * largest, "weight of {rows} x {width}: {worst} of {largest}");
}
