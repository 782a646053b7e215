//! The way into a GGUF file: where llama.cpp's converter puts each tensor of a model in Hugging
//! Face's layout, and what it does to it. The inverse of [`super::architecture`], made of its table.

use std::collections::BTreeMap;

use super::architecture::Architecture;
use super::transform::TensorTransform;
use crate::train::model::config::ModelConfig;

/// llama.cpp's names of the parts of a block, of those with one meaning the usual one first.
const PARTS: &[&str] = &[
    "attn_norm",
    "attn_q",
    "attn_k",
    "attn_v",
    "attn_qkv",
    "attn_q_norm",
    "attn_k_norm",
    "attn_output",
    "ffn_norm",
    "post_attention_norm",
    "post_ffw_norm",
    "ffn_gate",
    "ffn_up",
    "ffn_down",
];

/// The same outside of the blocks.
const OUTER: &[&str] = &["token_embd", "position_embd", "output_norm", "output"];

/// Where the tensors of one model go.
pub struct GgufLayout {
    architecture: Architecture,
    /// By Hugging Face's name.
    places: BTreeMap<String, StoredTensor>,
}

/// A tensor as a GGUF file has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredTensor {
    /// llama.cpp's name.
    pub name: String,
    change: TensorTransform,
}

impl GgufLayout {
    /// Of a model of this configuration.
    pub fn of(config: &ModelConfig) -> Self {
        let architecture = Architecture::for_model(config);
        let mut places = BTreeMap::new();
        let mut add = |stored: String| {
            if let Some((name, change)) = architecture.hugging_face_name(&stored) {
                places.entry(name).or_insert(StoredTensor { name: stored, change });
            }
        };
        for ending in ["weight", "bias"] {
            OUTER.iter().for_each(|module| add(format!("{module}.{ending}")));
            for layer in 0..config.layers {
                PARTS.iter().for_each(|part| add(format!("blk.{layer}.{part}.{ending}")));
            }
        }
        Self { architecture, places }
    }

    /// `general.architecture`, with which the keys of the configuration begin as well.
    pub fn architecture(&self) -> &str {
        self.architecture.name()
    }

    /// Where the tensor of a name of Hugging Face's goes; `None` where the architecture has no place
    /// for it.
    pub fn place(&self, name: &str) -> Option<&StoredTensor> {
        self.places.get(name)
    }
}

impl StoredTensor {
    /// Its shape there.
    pub fn shape(&self, shape: &[usize]) -> Vec<usize> {
        self.change.shape(shape)
    }

    /// Its values there, from Hugging Face's of that shape.
    pub fn values(&self, shape: &[usize], values: Vec<f32>) -> Vec<f32> {
        self.change.apply(shape, values)
    }

    /// LoRA's B for it, `[outputs, rank]`: its rows go where the weight's rows go.
    pub fn lora_b(&self, outputs: usize, rank: usize, values: Vec<f32>) -> Vec<f32> {
        match self.change {
            // A pair is the same whichever way round the file has the weight.
            TensorTransform::Transposed => values,
            change => change.apply(&[outputs, rank], values),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::model::weights::{HostTensor, TensorData};

    #[test]
    fn every_change_of_layout_is_undone_by_reading_it() {
        let changes = [
            TensorTransform::None,
            TensorTransform::PlusOne,
            TensorTransform::Transposed,
            TensorTransform::Interleaved { heads: 2 },
            TensorTransform::HeadsApart { heads: 2 },
        ];
        let shape = [24, 3];
        let values: Vec<f32> = (0..72).map(|index| index as f32).collect();
        for change in changes {
            let stored = StoredTensor { name: String::new(), change };
            let data = TensorData::F32(stored.values(&shape, values.clone()));
            let back = change.undo(HostTensor { shape: stored.shape(&shape), data });
            assert_eq!(back.shape, shape, "{change:?}");
            assert_eq!(back.into_f32(), values, "{change:?}");
        }
    }
}
