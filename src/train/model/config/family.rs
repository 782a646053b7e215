//! The architectures that hone knows.

/// Architectures that hone trains, as `model_type` spells them.
pub const KNOWN: &[&str] =
    &["llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text", "phi3", "gpt2", "gpt_neox"];

/// An architecture; it decides the names of tensors and the quirks of a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names are the architectures' own")]
pub enum Family {
    Llama,
    Mistral,
    Qwen2,
    Qwen3,
    Gemma2,
    Gemma3,
    Phi3,
    Gpt2,
    GptNeox,
}

/// transformers' class of the models of a `model_type`.
pub fn class_of(model_type: &str) -> Option<&'static str> {
    Some(match model_type {
        "llama" => "LlamaForCausalLM",
        "mistral" => "MistralForCausalLM",
        "qwen2" => "Qwen2ForCausalLM",
        "qwen3" => "Qwen3ForCausalLM",
        "gemma2" => "Gemma2ForCausalLM",
        "gemma3_text" => "Gemma3ForCausalLM",
        "phi3" => "Phi3ForCausalLM",
        "gpt2" => "GPT2LMHeadModel",
        "gpt_neox" => "GPTNeoXForCausalLM",
        _ => return None,
    })
}
