//! The emulator: what it finds.

use super::{ORDERS, Program};

#[test]
fn the_emulator_finds_faults_of_kernels() {
    let Some(program) = Program::compile("faults") else { return };
    let neighbours: Vec<f32> = (0..64).map(|thread| ((thread + 32) % 64) as f32).collect();
    for order in ORDERS {
        // Two kernels without a fault.
        for kernel in ["neighbours_with_a_barrier", "copy_that_is_waited_for"] {
            assert_eq!(program.run(kernel, order, &[]).as_deref(), Ok(&neighbours[..]), "{kernel}");
        }
        // What ends the program.
        for (kernel, message) in [
            ("barrier_in_a_branch", "not all threads come to a barrier"),
            ("barriers_at_two_places", "not all threads come to a barrier"),
            ("shuffle_in_a_branch", "not all lanes come to a warp operation"),
            ("write_beyond_shared_memory", "heap-buffer-overflow"),
            ("write_beyond_global_memory", "heap-buffer-overflow"),
            ("load_a_row_that_is_not_aligned", "is not aligned"),
        ] {
            let said = program.run(kernel, order, &[]).expect_err(kernel);
            assert!(said.contains(message), "{kernel}: {said}");
        }
        // What comes out as NaN.
        for kernel in ["read_uninitialised_shared_memory", "copy_that_is_not_waited_for"] {
            let result = program.run(kernel, order, &[]).expect("it runs");
            assert!(result.iter().all(|x| x.is_nan()), "{kernel}: {result:?}");
        }
    }
    // A race comes out differently in different orders.
    let racing = ORDERS.map(|order| {
        let result = program.run("neighbours_without_a_barrier", order, &[]).expect("it runs");
        result.iter().map(|x| x.to_bits()).collect::<Vec<u32>>()
    });
    assert_ne!(racing[0], racing[1]);
}
