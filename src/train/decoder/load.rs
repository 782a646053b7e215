//! Reads a base model's weights onto a device; reports missing, extra and misshapen tensors by name.

use std::collections::{BTreeMap, BTreeSet};

use super::names::{self, LayerNames, LinearLayout, LinearName, MlpNames, QkvNames};
use super::{Decoder, DecoderLayer, Linear, Mlp, NormLayer, OuterTensors, Qkv};
use crate::train::backend::NormKind;
use crate::train::backend::{AttentionShape, Backend, Norm, RopeTable};
use crate::train::model::config::{ModelConfig, Rope};
use crate::train::model::error::LoadError;
use crate::train::model::error::LoadModelError;
use crate::train::model::modules::AdaptedModule;
use crate::train::model::tensors::{ModelPart, ModelTensor};
use crate::train::model::weights::{WeightSource, listed};

/// Reads tensors and lists them in order.
struct WeightReader<'a, B: Backend> {
    backend: &'a B,
    weights: &'a dyn WeightSource,
    shapes: BTreeMap<String, Vec<usize>>,
    modules: Vec<AdaptedModule>,
    tensors: Vec<ModelTensor>,
    /// Index of the decoder layer that is read.
    layer_index: u32,
    for_training: bool,
    layer_norm: NormKind,
    epsilon: f32,
}

impl<B: Backend> Decoder<B> {
    /// Loads the base model that `config` describes from `weights`; for inference only it uses
    /// less memory.
    pub fn load(
        backend: B,
        config: ModelConfig,
        weights: &dyn WeightSource,
        for_training: bool,
    ) -> Result<Self, LoadModelError> {
        let shapes: BTreeMap<String, Vec<usize>> = weights.shapes().into_iter().collect();
        check(&config, &shapes)?;
        let mut reader = WeightReader {
            backend: &backend,
            weights,
            shapes,
            modules: Vec::new(),
            tensors: Vec::new(),
            layer_index: 0,
            for_training,
            layer_norm: config.norm,
            epsilon: config.norm_epsilon,
        };
        let outer = names::outer(config.family);
        // Training runs backward through an embedding only where it is the head, too.
        let backward = for_training && config.tied;
        let rows = config.vocabulary;
        let (embedding, embedding_tensor) =
            reader.matrix(outer.embedding, ModelPart::Embedding, rows, config.hidden, backward)?;
        let (positions, positions_tensor) = match outer.positions {
            Some(name) => {
                let length = config.context_length;
                let (table, place) =
                    reader.matrix(name, ModelPart::Positions, length, config.hidden, false)?;
                (Some(table), Some(place))
            }
            None => (None, None),
        };
        let mut tables = Vec::new();
        let mut known: Vec<&Rope> = Vec::new();
        let mut layers = Vec::with_capacity(config.layers);
        for layer in 0..config.layers {
            let rope = match config.ropes.get(layer) {
                None => None,
                Some(rope) => Some(match known.iter().position(|other| *other == rope) {
                    Some(index) => index,
                    None => {
                        known.push(rope);
                        tables.push(table(&backend, rope, config.context_length)?);
                        known.len() - 1
                    }
                }),
            };
            layers.push(reader.layer(&config, layer, rope)?);
        }
        let final_norm =
            reader.norm(outer.final_norm, ModelPart::FinalNorm, config.hidden, config.norm)?;
        let (head, head_tensor) = match config.tied {
            true => (None, embedding_tensor),
            false => {
                let (head, place) = reader.matrix(
                    outer.head,
                    ModelPart::Head,
                    rows,
                    config.hidden,
                    for_training,
                )?;
                (Some(head), place)
            }
        };
        let (modules, tensors) = (reader.modules, reader.tensors);
        let outer_tensors = OuterTensors {
            embedding: embedding_tensor,
            positions: positions_tensor,
            head: head_tensor,
        };
        Ok(Self {
            backend,
            config,
            embedding,
            positions,
            tables,
            layers,
            final_norm,
            head,
            modules,
            tensors,
            outer_tensors,
        })
    }
}

/// Every tensor that the configuration needs, with its shape.
fn wanted(config: &ModelConfig) -> BTreeMap<String, Vec<usize>> {
    let mut wanted = BTreeMap::new();
    let outer = names::outer(config.family);
    let has_norm_bias = config.norm == NormKind::Layer;
    let norm = |wanted: &mut BTreeMap<String, Vec<usize>>, name: &str, width: usize| {
        wanted.insert(format!("{name}.weight"), vec![width]);
        if has_norm_bias {
            wanted.insert(format!("{name}.bias"), vec![width]);
        }
    };
    wanted.insert(format!("{}.weight", outer.embedding), vec![config.vocabulary, config.hidden]);
    if let Some(name) = outer.positions {
        wanted.insert(format!("{name}.weight"), vec![config.context_length, config.hidden]);
    }
    if !config.tied {
        wanted.insert(format!("{}.weight", outer.head), vec![config.vocabulary, config.hidden]);
    }
    norm(&mut wanted, outer.final_norm, config.hidden);
    for layer in 0..config.layers {
        let names = names::layer(config, layer);
        for linear in linears(&names) {
            let shape = match linear.layout {
                LinearLayout::Linear => vec![linear.outputs, linear.inputs],
                LinearLayout::Conv1d => vec![linear.inputs, linear.outputs],
            };
            wanted.insert(format!("{}.weight", linear.module), shape);
            if linear.has_bias {
                wanted.insert(format!("{}.bias", linear.module), vec![linear.outputs]);
            }
        }
        norm(&mut wanted, &names.attention_norm, config.hidden);
        norm(&mut wanted, &names.mlp_norm, config.hidden);
        for name in names.post_norms.iter().flatten() {
            norm(&mut wanted, name, config.hidden);
        }
        for name in names.qk_norms.iter().flatten() {
            norm(&mut wanted, name, config.head_dim);
        }
    }
    wanted
}

pub(super) fn linears(names: &LayerNames) -> Vec<&LinearName> {
    let mut all = match &names.qkv {
        QkvNames::Separate(three) => three.iter().collect(),
        QkvNames::Fused(one, _) => vec![one],
    };
    all.push(&names.output);
    match &names.mlp {
        MlpNames::Gated { gate, up, down } => all.extend([gate, up, down]),
        MlpNames::FusedGated { gate_up, down } => all.extend([gate_up, down]),
        MlpNames::Plain { up, down } => all.extend([up, down]),
    }
    all
}

/// Tensors of checkpoints that are not weights: masks and tables.
fn is_known_extra(name: &str, config: &ModelConfig) -> bool {
    let tied_head = format!("{}.weight", names::outer(config.family).head);
    name.ends_with("rotary_emb.inv_freq")
        || name.ends_with("attn.bias")
        || name.ends_with("attn.masked_bias")
        || name.ends_with("attention.bias")
        || name.ends_with("attention.masked_bias")
        || (config.tied && name == tied_head)
}

/// Compares what there is with what the configuration calls for, before anything is read.
///
/// # Errors
/// Missing, extra or misshapen tensors, by name.
pub fn check(config: &ModelConfig, shapes: &BTreeMap<String, Vec<usize>>) -> Result<(), LoadError> {
    let wanted = wanted(config);
    let (mut missing, mut misshapen, mut strange) = (Vec::new(), Vec::new(), Vec::new());
    for (name, shape) in &wanted {
        match find(shapes, name) {
            None => missing.push(format!("{name:?}")),
            Some((_, found)) if found != shape => {
                misshapen.push(format!("{name:?} has {found:?} instead of {shape:?}"));
            }
            Some(_) => {}
        }
    }
    for name in shapes.keys() {
        let is_wanted =
            wanted.contains_key(name) || wanted.contains_key(&format!("transformer.{name}"));
        if !is_wanted && !is_known_extra(name, config) {
            strange.push(format!("{name:?}"));
        }
    }
    let mut problems = Vec::new();
    for (what, names) in [
        ("are missing", missing),
        ("have another shape", misshapen),
        ("are not part of the architecture", strange),
    ] {
        if !names.is_empty() {
            problems.push(format!("{} tensors {what}: {}", names.len(), listed(&names, ", ")));
        }
    }
    match problems.is_empty() {
        true => Ok(()),
        false => Err(LoadError::Tensors(problems.join("; "))),
    }
}

/// A tensor of a model as its file has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileTensor {
    /// Hugging Face's name.
    pub name: String,
    /// Its name in the file at hand.
    pub stored: String,
    /// Its shape there.
    pub shape: Vec<usize>,
    /// Whether it is the weight of a layer and lies there as `[inputs, outputs]` (GPT-2's `Conv1D`).
    pub is_transposed: bool,
}

/// Every tensor of a model, by name; none is read.
///
/// # Errors
/// Missing, extra or misshapen tensors, by name.
pub fn tensors_of(
    config: &ModelConfig,
    weights: &dyn WeightSource,
) -> Result<Vec<FileTensor>, LoadError> {
    let shapes: BTreeMap<String, Vec<usize>> = weights.shapes().into_iter().collect();
    check(config, &shapes)?;
    let mut transposed = BTreeSet::new();
    for layer in 0..config.layers {
        for linear in linears(&names::layer(config, layer)) {
            if linear.layout == LinearLayout::Conv1d {
                transposed.insert(format!("{}.weight", linear.module));
            }
        }
    }
    let mut tensors = Vec::new();
    for (name, shape) in wanted(config) {
        let stored = find(&shapes, &name).map_or(&name, |(stored, _)| stored).clone();
        let is_transposed = transposed.contains(&name);
        tensors.push(FileTensor { name, stored, shape, is_transposed });
    }
    Ok(tensors)
}

/// A tensor by its name; GPT-2's own checkpoints leave out the leading `transformer.`.
fn find<'a>(
    shapes: &'a BTreeMap<String, Vec<usize>>,
    name: &str,
) -> Option<(&'a String, &'a Vec<usize>)> {
    let bare = name.strip_prefix("transformer.");
    shapes.get_key_value(name).or_else(|| bare.and_then(|bare| shapes.get_key_value(bare)))
}

/// Cosines and sines for every position.
fn table<B: Backend>(
    backend: &B,
    rope: &Rope,
    positions: usize,
) -> Result<RopeTable<B>, LoadModelError> {
    let half = rope.frequencies.len();
    let mut cos = Vec::with_capacity(positions * half);
    let mut sin = Vec::with_capacity(positions * half);
    for position in 0..positions {
        for frequency in &rope.frequencies {
            // The angle in 32 bits, as transformers computes it.
            let angle = position as f32 * frequency;
            cos.push(angle.cos() * rope.magnitude);
            sin.push(angle.sin() * rope.magnitude);
        }
    }
    Ok(RopeTable {
        cos: backend.matrix(positions, half, &cos)?,
        sin: backend.matrix(positions, half, &sin)?,
        half,
    })
}

impl<B: Backend> WeightReader<'_, B> {
    /// Reads a tensor whose shape has been checked; returns its values in the decoder's layout, and its index.
    fn read(&mut self, tensor: ModelTensor) -> Result<(Vec<f32>, usize), LoadModelError> {
        let stored = find(&self.shapes, &tensor.name).map(|(stored, _)| stored.clone());
        let tensor = ModelTensor { stored: stored.unwrap_or(tensor.stored), ..tensor };
        let values = tensor.values(self.weights)?;
        self.tensors.push(tensor);
        Ok((values, self.tensors.len() - 1))
    }

    /// An embedding or a head.
    fn matrix(
        &mut self,
        name: &str,
        part: ModelPart,
        rows: usize,
        columns: usize,
        backward: bool,
    ) -> Result<(B::Weight, usize), LoadModelError> {
        let tensor = ModelTensor::matrix(format!("{name}.weight"), part, rows, columns);
        let (values, place) = self.read(tensor)?;
        Ok((self.backend.weight(rows, columns, &values, None, backward)?, place))
    }

    fn norm(
        &mut self,
        name: &str,
        part: ModelPart,
        width: usize,
        kind: NormKind,
    ) -> Result<NormLayer<B>, LoadModelError> {
        let (mut weight, tensor) =
            self.read(ModelTensor::row(format!("{name}.weight"), part, width))?;
        if kind == NormKind::RmsOnePlus {
            for value in &mut weight {
                *value += 1.0;
            }
        }
        let bias = match kind {
            NormKind::Layer => {
                let (bias, _) = self.read(ModelTensor::row(format!("{name}.bias"), part, width))?;
                Some(self.backend.vector(&bias)?)
            }
            _ => None,
        };
        let weight = self.backend.vector(&weight)?;
        let norm = Norm { weight, bias, width, kind, epsilon: self.epsilon };
        Ok(NormLayer { norm, tensor })
    }

    fn linear(&mut self, name: &LinearName) -> Result<Linear<B>, LoadModelError> {
        let part = ModelPart::Block(self.layer_index);
        let weight_name = format!("{}.weight", name.module);
        let weight = ModelTensor {
            is_transposed: name.layout == LinearLayout::Conv1d,
            ..ModelTensor::matrix(weight_name, part, name.outputs, name.inputs)
        };
        let (values, tensor) = self.read(weight)?;
        let (bias, bias_tensor) = match name.has_bias {
            true => {
                let bias_name = format!("{}.bias", name.module);
                let (bias, place) = self.read(ModelTensor::row(bias_name, part, name.outputs))?;
                (Some(bias), Some(place))
            }
            false => (None, None),
        };
        let weight = self.backend.weight(
            name.outputs,
            name.inputs,
            &values,
            bias.as_deref(),
            self.for_training,
        )?;
        self.modules.push(AdaptedModule {
            module: name.module.clone(),
            layer: self.layer_index,
            outputs: name.outputs,
            inputs: name.inputs,
        });
        Ok(Linear { weight, pair: self.modules.len() - 1, tensor, bias_tensor })
    }

    fn layer(
        &mut self,
        config: &ModelConfig,
        layer: usize,
        rope: Option<usize>,
    ) -> Result<DecoderLayer<B>, LoadModelError> {
        self.layer_index = layer as u32;
        let names = names::layer(config, layer);
        let qkv = match &names.qkv {
            QkvNames::Separate([q, k, v]) => {
                Qkv::Separate([self.linear(q)?, self.linear(k)?, self.linear(v)?])
            }
            QkvNames::Fused(one, columns) => Qkv::Fused(self.linear(one)?, columns.clone()),
        };
        let output = self.linear(&names.output)?;
        let mlp = match &names.mlp {
            MlpNames::Gated { gate, up, down } => Mlp::Gated {
                gate: self.linear(gate)?,
                up: self.linear(up)?,
                down: self.linear(down)?,
            },
            MlpNames::FusedGated { gate_up, down } => {
                Mlp::FusedGated { gate_up: self.linear(gate_up)?, down: self.linear(down)? }
            }
            MlpNames::Plain { up, down } => {
                Mlp::Plain { up: self.linear(up)?, down: self.linear(down)? }
            }
        };
        let kind = self.layer_norm;
        let part = ModelPart::Block(self.layer_index);
        let mut pair = |names: &Option<[String; 2]>, width: usize| match names {
            None => Ok(None),
            Some([first, second]) => {
                let both =
                    [self.norm(first, part, width, kind)?, self.norm(second, part, width, kind)?];
                Ok::<_, LoadModelError>(Some(both))
            }
        };
        let post_norms = pair(&names.post_norms, config.hidden)?;
        let qk_norms = pair(&names.qk_norms, config.head_dim)?;
        Ok(DecoderLayer {
            attention_norm: self.norm(&names.attention_norm, part, config.hidden, kind)?,
            qkv,
            qk_norms,
            rope,
            attention: AttentionShape {
                heads: config.heads,
                kv_heads: config.kv_heads,
                head_dim: config.head_dim,
                scale: config.attention_scale,
                window: config.windows[layer],
                soft_cap: config.score_cap,
            },
            output,
            mlp_norm: self.norm(&names.mlp_norm, part, config.hidden, kind)?,
            mlp,
            post_norms,
        })
    }
}
