//! Reads the pickle of a PyTorch checkpoint as data. Nothing is executed: candle's reader keeps calls
//! as values, and the calls that it may meet are on a list.
//!
//! Candle's reader believes its input: it takes memory for any length, copies what the memo holds as
//! often as it is told to, and nests as deep as the file wants. So the instructions are walked
//! through here first, with sizes and depths in the place of values, and a pickle that would cost
//! too much, calls something else or uses an instruction that PyTorch does not write is refused
//! before it is read.

use std::collections::HashMap;

use candle_core::pickle::{Object, OpCode, Stack};

/// Most memory that the values of a pickle may take, with everything that the memo copies. A
/// checkpoint's thousand tensors take about 10 MiB.
const MAX_VALUE_BYTES: u64 = 512 * 1024 * 1024;

/// How deep values may stand inside of each other; a tensor of a checkpoint stands at about 6.
const MAX_DEPTH: u32 = 64;

/// What one value takes, beside its text.
const VALUE_BYTES: u64 = size_of::<Object>() as u64;

/// The functions and classes that a file of tensors names. `torch` keeps one class of storage for
/// each type of element.
const KNOWN: &[(&str, &str)] = &[
    ("collections", "OrderedDict"),
    ("torch._utils", "_rebuild_tensor_v2"),
    ("torch._utils", "_rebuild_parameter"),
    ("torch", "FloatStorage"),
    ("torch", "HalfStorage"),
    ("torch", "BFloat16Storage"),
    ("torch", "DoubleStorage"),
    ("torch", "LongStorage"),
    ("torch", "IntStorage"),
    ("torch", "ShortStorage"),
    ("torch", "CharStorage"),
    ("torch", "ByteStorage"),
    ("torch", "BoolStorage"),
];

/// The value that `bytes` describe.
///
/// # Errors
/// What is wrong with it, as a part of a sentence about the file.
pub(super) fn read(bytes: &[u8]) -> Result<Object, String> {
    PickleMachine::default().through(bytes)?;
    let mut stack = Stack::empty();
    let mut rest = bytes;
    let value = stack.read_loop(&mut rest).and_then(|()| stack.finalize());
    value.map_err(|error| format!("its pickle cannot be read: {error}"))
}

/// What stands for a value.
#[derive(Debug, Clone, Copy)]
struct ValueCost {
    bytes: u64,
    depth: u32,
}

/// Candle's stack and memo, with costs instead of values; `None` is a mark.
#[derive(Default)]
struct PickleMachine {
    stack: Vec<Option<ValueCost>>,
    memo: HashMap<u32, ValueCost>,
    /// Of everything that was ever made.
    bytes: u64,
}

impl PickleMachine {
    fn through(&mut self, bytes: &[u8]) -> Result<(), String> {
        let mut input = PickleReader { bytes, at: 0 };
        loop {
            let at = input.at;
            let code = input.byte()?;
            let known = OpCode::try_from(code)
                .map_err(|code| format!("its pickle has the instruction {code:#04x} at byte {at}, which PyTorch does not write with its default protocol 2"))?;
            if known == OpCode::Stop {
                return Ok(());
            }
            self.step(known, &mut input)?;
            if self.bytes > MAX_VALUE_BYTES {
                let limit = MAX_VALUE_BYTES >> 20;
                return Err(format!("the values of its pickle take more than {limit} MiB"));
            }
        }
    }

    fn step(&mut self, code: OpCode, input: &mut PickleReader<'_>) -> Result<(), String> {
        match code {
            OpCode::Proto => {
                input.byte()?;
            }
            OpCode::Global => {
                let module = input.line()?;
                let name = input.line()?;
                if !KNOWN.contains(&(module, name)) {
                    return Err(format!(
                        "it wants Python to call \"{module}.{name}\", which no file of tensors needs. \
                         hone calls nothing that a file names; get the weights as safetensors"
                    ));
                }
                self.push_text(module.len() + name.len())?;
            }
            OpCode::BinInt1 => self.push_number(input, 1)?,
            OpCode::BinInt2 => self.push_number(input, 2)?,
            OpCode::BinInt => self.push_number(input, 4)?,
            OpCode::BinFloat => self.push_number(input, 8)?,
            OpCode::Long1 => {
                let length = input.byte()?;
                if length > 8 {
                    return Err(format!("its pickle has a number of {length} bytes"));
                }
                self.push_number(input, usize::from(length))?;
            }
            OpCode::BinUnicode => {
                let length = input.number()? as usize;
                input.take(length)?;
                self.push_text(length)?;
            }
            OpCode::NewTrue | OpCode::NewFalse | OpCode::None => self.push_text(0)?,
            OpCode::EmptyTuple | OpCode::EmptyList | OpCode::EmptyDict => self.push_text(0)?,
            OpCode::Mark => self.stack.push(None),
            OpCode::Tuple => {
                let all = self.pop_to_mark()?;
                self.push(all)?;
            }
            OpCode::Tuple1 | OpCode::BinPersId => self.push_around(1)?,
            OpCode::Tuple2 | OpCode::Reduce | OpCode::NewObj | OpCode::Build => {
                self.push_around(2)?;
            }
            OpCode::Tuple3 => self.push_around(3)?,
            OpCode::Append => {
                let one = self.pop()?;
                self.put_into_last(one)?;
            }
            OpCode::SetItem => {
                let both = around([self.pop()?, self.pop()?]);
                self.put_into_last(both)?;
            }
            OpCode::Appends | OpCode::SetItems => {
                let all = self.pop_to_mark()?;
                self.put_into_last(all)?;
            }
            OpCode::BinPut => {
                let place = u32::from(input.byte()?);
                self.put(place)?;
            }
            OpCode::LongBinPut => {
                let place = input.number()?;
                self.put(place)?;
            }
            OpCode::BinGet => {
                let place = u32::from(input.byte()?);
                self.get(place)?;
            }
            OpCode::LongBinGet => {
                let place = input.number()?;
                self.get(place)?;
            }
            // Candle reads `d` as another instruction than it is.
            OpCode::Dict => {
                return Err(
                    "its pickle has the instruction DICT, which PyTorch does not write".to_owned()
                );
            }
            OpCode::Stop => {}
        }
        Ok(())
    }

    fn push(&mut self, cost: ValueCost) -> Result<(), String> {
        if cost.depth > MAX_DEPTH {
            return Err(format!("the values of its pickle stand more than {MAX_DEPTH} deep"));
        }
        self.bytes += VALUE_BYTES;
        self.stack.push(Some(cost));
        Ok(())
    }

    fn push_text(&mut self, length: usize) -> Result<(), String> {
        self.bytes += length as u64;
        self.push(ValueCost { bytes: VALUE_BYTES + length as u64, depth: 1 })
    }

    fn push_number(&mut self, input: &mut PickleReader<'_>, bytes: usize) -> Result<(), String> {
        input.take(bytes)?;
        self.push_text(0)
    }

    /// A value around the last `count`.
    fn push_around(&mut self, count: usize) -> Result<(), String> {
        let mut inner = Vec::with_capacity(count);
        for _ in 0..count {
            inner.push(self.pop()?);
        }
        self.push(around(inner))
    }

    fn pop(&mut self) -> Result<ValueCost, String> {
        match self.stack.pop() {
            Some(Some(cost)) => Ok(cost),
            _ => Err("its pickle takes a value where there is none".to_owned()),
        }
    }

    /// What a value around everything behind the last mark costs.
    fn pop_to_mark(&mut self) -> Result<ValueCost, String> {
        let Some(mark) = self.stack.iter().rposition(Option::is_none) else {
            return Err("its pickle lacks a mark".to_owned());
        };
        let cost = around(self.stack.drain(mark + 1..).flatten());
        self.stack.pop();
        Ok(cost)
    }

    /// `more` moves into the last value.
    fn put_into_last(&mut self, more: ValueCost) -> Result<(), String> {
        let last = self.pop()?;
        // It is there already; it has only grown.
        self.bytes = self.bytes.saturating_sub(VALUE_BYTES);
        self.push(ValueCost {
            bytes: last.bytes.saturating_add(more.bytes),
            depth: last.depth.max(more.depth + 1),
        })
    }

    fn put(&mut self, place: u32) -> Result<(), String> {
        let Some(Some(cost)) = self.stack.last() else {
            return Err("its pickle keeps a value where there is none".to_owned());
        };
        self.bytes = self.bytes.saturating_add(cost.bytes);
        self.memo.insert(place, *cost);
        Ok(())
    }

    fn get(&mut self, place: u32) -> Result<(), String> {
        let Some(cost) = self.memo.get(&place).copied() else {
            return Err("its pickle asks for a value that it did not keep".to_owned());
        };
        self.bytes = self.bytes.saturating_add(cost.bytes);
        self.push(cost)
    }
}

/// What a value around others costs.
fn around(inner: impl IntoIterator<Item = ValueCost>) -> ValueCost {
    let mut cost = ValueCost { bytes: VALUE_BYTES, depth: 1 };
    for one in inner {
        cost.bytes = cost.bytes.saturating_add(one.bytes);
        cost.depth = cost.depth.max(one.depth + 1);
    }
    cost
}

/// The bytes, read from front to back.
struct PickleReader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> PickleReader<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], String> {
        let end = self.at.checked_add(count).filter(|end| *end <= self.bytes.len());
        let Some(end) = end else {
            return Err("its pickle ends in the middle of an instruction".to_owned());
        };
        let taken = &self.bytes[self.at..end];
        self.at = end;
        Ok(taken)
    }

    fn byte(&mut self) -> Result<u8, String> {
        Ok(self.take(1)?[0])
    }

    fn number(&mut self) -> Result<u32, String> {
        let bytes = self.take(4)?;
        Ok(bytes.iter().rev().fold(0, |number, byte| number << 8 | u32::from(*byte)))
    }

    fn line(&mut self) -> Result<&'a str, String> {
        let rest = &self.bytes[self.at..];
        let Some(length) = rest.iter().position(|byte| *byte == b'\n') else {
            return Err("its pickle ends in the middle of a name".to_owned());
        };
        let line = self.take(length + 1)?;
        std::str::from_utf8(&line[..length])
            .map_err(|_error| "its pickle has a name that is not UTF-8".to_owned())
    }
}
