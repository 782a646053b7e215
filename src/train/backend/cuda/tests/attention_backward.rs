//! Backward of attention.

use super::super::attention_tiles::{AttentionTiles, TileTable};
use super::{Input, Program, difference, noise};
use crate::train::backend::cpu::backend::CpuBackend;
use crate::train::backend::cpu::isa::Isa;
use crate::train::backend::{AttentionOps, AttentionShape, Matrices, Segment};

/// Both sides read the same numbers, which bf16 holds. The kernel rounds probabilities and gradients of scores to
/// bf16 before it multiplies them, and reads the output as bf16: each rounding moves a number by up to 2⁻⁹ of
/// itself. Over many terms they average out (about 2⁻⁹ of the largest gradient remains), over few they add up. A wrong
/// element is far beyond.
const TOLERANCE: f32 = 1.0 / 128.0;

/// Where gradients are small (a single visible key has none), rounding is measured by this instead.
const SMALL: f32 = 0.1;

struct Case {
    segments: Vec<Segment>,
    shape: AttentionShape,
    /// Factor on queries: large ones make probabilities near 0 and 1.
    sharpness: f32,
    /// What the first column of each head takes from each score.
    below_zero: f32,
}

/// Heads, heads of keys, width of a head.
fn shape(heads: usize, kv_heads: usize, head_dim: usize) -> AttentionShape {
    let scale = 1.0 / (head_dim as f32).sqrt();
    AttentionShape { heads, kv_heads, head_dim, scale, window: None, soft_cap: None }
}

/// Segments of these lengths, each with the prefixes (indexes of segments) that it sees.
fn segments(lengths: &[(usize, &[usize])]) -> Vec<Segment> {
    let mut made: Vec<Segment> = Vec::new();
    for (length, before) in lengths {
        let start = made.last().map_or(0, |segment| segment.rows.end);
        let before = before.iter().map(|index| made[*index].rows.clone()).collect();
        made.push(Segment { rows: start..start + length, before });
    }
    made
}

#[test]
fn the_cuda_kernels_of_attention_backward_compute_what_the_cpu_does() {
    let Some(program) = Program::compile("kernels") else { return };
    let case = |lengths: &[(usize, &[usize])], shape| Case {
        segments: segments(lengths),
        shape,
        sharpness: 1.0,
        below_zero: 0.0,
    };
    let prefixes: &[(usize, &[usize])] = &[(70, &[]), (20, &[0]), (71, &[0]), (1, &[0, 1])];
    let cases = [
        // One tile, and one token.
        case(&[(64, &[])], shape(1, 1, 64)),
        case(&[(1, &[])], shape(2, 2, 128)),
        // Lengths that are not multiples of anything, grouped queries, both widths.
        case(&[(131, &[])], shape(4, 2, 64)),
        case(&[(97, &[])], shape(3, 1, 128)),
        // Heads narrower than the kernel's width.
        case(&[(33, &[]), (3, &[])], shape(2, 2, 16)),
        case(&[(70, &[])], shape(2, 1, 80)),
        // Several texts, a window within and across tiles.
        Case {
            shape: AttentionShape { window: Some(37), ..shape(4, 2, 64) },
            ..case(&[(70, &[]), (5, &[]), (125, &[])], shape(4, 2, 64))
        },
        // Prefixes that segments share, beyond a window, with capped scores.
        case(prefixes, shape(2, 1, 64)),
        Case {
            shape: AttentionShape { window: Some(80), soft_cap: Some(2.0), ..shape(2, 1, 80) },
            ..case(prefixes, shape(2, 1, 80))
        },
        // A window of one: each token sees itself.
        Case {
            shape: AttentionShape { window: Some(1), ..shape(1, 1, 64) },
            ..case(&[(66, &[])], shape(1, 1, 64))
        },
        Case { sharpness: 30.0, ..case(&[(90, &[])], shape(2, 2, 64)) },
        // e to the power of minus the log-sum-exp is more than a float holds.
        Case { below_zero: 125.0, ..case(prefixes, shape(2, 1, 64)) },
    ];
    for (number, case) in cases.iter().enumerate() {
        check(&program, case, number as u64);
    }
}

fn check(program: &Program, case: &Case, seed: u64) {
    let Case { segments, shape, sharpness, below_zero } = case;
    let tokens = segments.last().map_or(0, |segment| segment.rows.end);
    let (width, kv_width) = (shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim);
    let cpu = CpuBackend::new(Isa::best().for_f32());
    let numbers = |columns: usize, factor: f32, number: u64| -> Vec<f32> {
        let numbers = noise(tokens * columns, 10 * seed + number);
        numbers.iter().map(|x| rounded(factor * x)).collect()
    };
    let (mut queries, mut keys) = (numbers(width, *sharpness, 0), numbers(kv_width, 1.0, 1));
    if *below_zero > 0.0 {
        for head in queries.chunks_exact_mut(shape.head_dim) {
            head[0] = rounded(below_zero / shape.scale);
        }
        for head in keys.chunks_exact_mut(shape.head_dim) {
            head[0] = -1.0;
        }
    }
    let matrix =
        |columns: usize, values: &[f32]| cpu.matrix(tokens, columns, values).expect("a matrix");
    let (queries, keys) = (matrix(width, &queries), matrix(kv_width, &keys));
    let values = matrix(kv_width, &numbers(kv_width, 1.0, 2));
    let gradient = matrix(width, &numbers(width, 1.0, 3));
    let (output, log_sums) =
        cpu.attention(&queries, &keys, &values, segments, shape).expect("computes");
    let want = cpu
        .attention_backward(
            &gradient, &queries, &keys, &values, &output, &log_sums, segments, shape,
        )
        .expect("computes");

    let tiles = AttentionTiles::new(segments, shape.window);
    let mut input = Input::default();
    let kernel_width = if shape.head_dim <= 64 { 64 } else { 128 };
    input.ints(&[kernel_width, tokens, shape.heads, shape.kv_heads, shape.head_dim]);
    input.floats(&[shape.scale]);
    input.ints(&[shape.window.unwrap_or(i32::MAX as usize)]);
    input.floats(&[shape.soft_cap.unwrap_or(0.0)]);
    let tables = [&tiles.keys, &tiles.queries];
    for table in tables {
        input.ints(&[table.tiles.len(), table.visits.len()]);
    }
    for table in tables {
        write_table(&mut input, table);
    }
    for matrix in [&queries, &keys, &values, &output, &gradient] {
        input.bf16(matrix.values());
    }
    input.floats(log_sums.values());
    let made = program.results("attention_backward", &input.0);

    let mut rest = &made[..];
    for (name, want) in ["queries", "keys", "values"].iter().zip(&want) {
        let (got, others) = rest.split_at(want.values().len());
        rest = others;
        let (worst, largest) = difference(got, want.values());
        let largest = largest.max(SMALL);
        println!("case {seed}, {name}: {:.1e} of the largest", worst / largest);
        assert!(
            worst < TOLERANCE * largest,
            "{shape:?}, {segments:?}: gradient of {name} differs by {worst}, the largest is {largest}"
        );
    }
    assert!(rest.is_empty());
}

/// The nearest number that bf16 holds.
fn rounded(x: f32) -> f32 {
    half::bf16::from_f32(x).to_f32()
}

fn write_table(input: &mut Input, table: &TileTable) {
    for tile in &table.tiles {
        input.ints(&[tile.row, tile.rows, tile.first_visit, tile.visits]);
    }
    for visit in &table.visits {
        input.ints(&[visit.row, visit.rows]);
        input.0.extend(i32::try_from(visit.distance).expect("an int").to_le_bytes());
    }
}
