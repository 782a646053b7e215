//! Memory use of a model and its adapters for inference.

use super::adapter::PackedAdapter;
use super::{Decoder, DecoderLayer, Linear, Mlp, Qkv};
use crate::train::backend::cpu::backend::CpuBackend;
use crate::train::backend::cpu::layers::linear::PackedLora;

impl Decoder<CpuBackend> {
    /// Bytes of the weights.
    pub fn memory_use(&self) -> u64 {
        let outer = [Some(&self.embedding), self.positions.as_ref(), self.head.as_ref()];
        let outer: u64 = outer.into_iter().flatten().map(|weight| weight.memory_use()).sum();
        outer + self.layers.iter().map(layer_memory_use).sum::<u64>()
    }

    /// Bytes of the keys and values of a page of tokens.
    pub fn page_bytes(&self) -> u64 {
        let shape = self.layers.first().map(|layer| layer.attention);
        shape.map_or(0, |shape| self.backend.page_bytes(self.layers.len(), &shape))
    }
}

fn layer_memory_use(layer: &DecoderLayer<CpuBackend>) -> u64 {
    let linear = |linear: &Linear<CpuBackend>| linear.weight.memory_use();
    let qkv = match &layer.qkv {
        Qkv::Separate(three) => three.iter().map(linear).sum(),
        Qkv::Fused(one, _) => linear(one),
    };
    let mlp = match &layer.mlp {
        Mlp::Gated { gate, up, down } => linear(gate) + linear(up) + linear(down),
        Mlp::FusedGated { gate_up, down } => linear(gate_up) + linear(down),
        Mlp::Plain { up, down } => linear(up) + linear(down),
    };
    qkv + linear(&layer.output) + mlp
}

impl PackedAdapter<CpuBackend> {
    /// Bytes of its pairs, and of an embedding and a head of its own.
    pub fn memory_use(&self) -> u64 {
        let pairs = self.pairs.iter().flatten().map(PackedLora::memory_use).sum::<u64>();
        let own = [&self.embedding, &self.head].into_iter().flatten();
        pairs + own.map(|weight| weight.memory_use()).sum::<u64>()
    }
}
