//! What a model and its adapters take of the host's memory when they answer.

use super::adapter::ReadyAdapter;
use super::{Block, Decoder, Linear, Mlp, Qkv};
use crate::train::backend::cpu::backend::CpuBackend;
use crate::train::backend::cpu::layers::linear::PackedLora;

impl Decoder<CpuBackend> {
    /// Bytes of the weights.
    pub fn held_bytes(&self) -> u64 {
        let outer = [Some(&self.embedding), self.positions.as_ref(), self.head.as_ref()];
        let outer: u64 = outer.into_iter().flatten().map(|weight| weight.memory_use()).sum();
        outer + self.blocks.iter().map(held_by_block).sum::<u64>()
    }

    /// Bytes of the keys and values of a page of tokens.
    pub fn page_bytes(&self) -> u64 {
        let shape = self.blocks.first().map(|block| block.attention);
        shape.map_or(0, |shape| self.backend.page_bytes(self.blocks.len(), &shape))
    }
}

fn held_by_block(block: &Block<CpuBackend>) -> u64 {
    let linear = |linear: &Linear<CpuBackend>| linear.weight.memory_use();
    let qkv = match &block.qkv {
        Qkv::Separate(three) => three.iter().map(linear).sum(),
        Qkv::Fused(one, _) => linear(one),
    };
    let mlp = match &block.mlp {
        Mlp::Gated { gate, up, down } => linear(gate) + linear(up) + linear(down),
        Mlp::FusedGated { gate_up, down } => linear(gate_up) + linear(down),
        Mlp::Plain { up, down } => linear(up) + linear(down),
    };
    qkv + linear(&block.output) + mlp
}

impl ReadyAdapter<CpuBackend> {
    /// Bytes of its pairs, and of an embedding and a head of its own.
    pub fn held_bytes(&self) -> u64 {
        let pairs = self.pairs.iter().flatten().map(PackedLora::memory_use).sum::<u64>();
        let own = [&self.embedding, &self.head].into_iter().flatten();
        pairs + own.map(|weight| weight.memory_use()).sum::<u64>()
    }
}
