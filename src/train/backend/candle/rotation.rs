//! The rows of rotary tables that a pass turns by.

use std::cell::RefCell;

use candle_core::{Tensor, TensorId};

use crate::train::backend::Outcome;

/// Cosines and sines of the positions of one pass: all its layers turn by the same.
#[derive(Default)]
pub struct RotationCache {
    known: RefCell<PassRotations>,
}

#[derive(Default)]
struct PassRotations {
    /// The positions of the pass.
    positions: Option<TensorId>,
    /// By the table's cosines: cosines, sines and negative sines, `[tokens, half]` each.
    tables: Vec<(TensorId, [Tensor; 3])>,
}

impl RotationCache {
    /// Cosines and sines of a table at `positions`, and with `backward` those of the opposite angles.
    pub fn of(
        &self,
        [table_cos, table_sin]: [&Tensor; 2],
        positions: &Tensor,
        backward: bool,
    ) -> Outcome<[Tensor; 2]> {
        let known = &mut *self.known.borrow_mut();
        if known.positions != Some(positions.id()) {
            *known = PassRotations { positions: Some(positions.id()), tables: Vec::new() };
        }
        let id = table_cos.id();
        let found = known.tables.iter().find(|(of, _)| *of == id).map(|(_, rows)| rows.clone());
        let [cos, sin, negative] = match found {
            Some(rows) => rows,
            None => {
                let cos = table_cos.index_select(positions, 0)?;
                let sin = table_sin.index_select(positions, 0)?;
                let rows = [cos, sin.clone(), sin.neg()?];
                known.tables.push((id, rows.clone()));
                rows
            }
        };
        Ok(if backward { [cos, negative] } else { [cos, sin] })
    }
}
