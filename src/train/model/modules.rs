//! The linear layers of a model that an adapter can adapt.

/// A linear layer that an adapter adapts: its module path and shape.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AdaptedModule {
    /// Hugging Face's path, such as `model.layers.0.self_attn.q_proj`.
    pub module: String,
    /// Index of its block.
    pub layer: u32,
    /// Width of the layer's output.
    pub outputs: usize,
    /// Width of the layer's input.
    pub inputs: usize,
}

impl AdaptedModule {
    /// The last part of its path, such as `q_proj`.
    pub fn name(&self) -> &str {
        self.module.rsplit('.').next().unwrap_or(&self.module)
    }
}
