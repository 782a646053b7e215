//! Text to tokens and back.

/// A base model's tokenizer.
pub struct Tokenizer {}

impl Tokenizer {
    /// Token ids and the byte range of `text` that each stands for. Adds no BOS or EOS; texts of
    /// control tokens become control tokens.
    pub fn encode(&self, _text: &str) -> Result<Vec<(u32, std::ops::Range<usize>)>, String> {
        todo!()
    }

    /// Text of tokens, control tokens left out.
    pub fn decode(&self, _ids: &[u32]) -> Result<String, String> {
        todo!()
    }

    /// The first control token whose text `content` holds.
    pub fn control_token_in<'a>(&'a self, _content: &str) -> Option<&'a str> {
        todo!()
    }

    /// The end-of-sequence and end-of-turn tokens at which generation stops.
    pub fn stop_ids(&self) -> &[u32] {
        todo!()
    }
}
