//! What a template reads of a message: found by trying, and in its source where trying cannot tell.

/// What a template takes and reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct TemplateReads {
    /// Contents that are texts.
    pub texts: bool,
    /// Contents that are lists of text parts.
    pub parts: bool,
    /// Reasoning.
    pub reasoning: ReadsReasoning,
}

/// Where a template looks for what the assistant thought.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ReadsReasoning {
    /// In a key of the message.
    Key,
    /// Between `<think>` and `</think>` in the content.
    InContent,
    /// Nowhere.
    Nowhere,
}

impl ReadsReasoning {
    /// The keys under which templates look. Each has the same text.
    pub(super) const KEYS: &[&str] = &["reasoning_content", "reasoning", "thinking"];

    /// What the source of a template says.
    fn of(source: &str) -> Self {
        let reads_key = Self::KEYS.iter().any(|key| {
            ["message.", "m.", "msg."].iter().any(|name| source.contains(&format!("{name}{key}")))
                || source.contains(&format!("['{key}']"))
                || source.contains(&format!("[\"{key}\"]"))
                || source.contains(&format!("get('{key}'"))
                || source.contains(&format!("get(\"{key}\""))
        });
        match () {
            () if reads_key => Self::Key,
            () if source.contains("</think>") => Self::InContent,
            () => Self::Nowhere,
        }
    }
}

impl TemplateReads {
    /// Before anything is known: texts.
    pub(super) fn texts_alone(source: &str) -> Self {
        Self { texts: true, parts: false, reasoning: ReadsReasoning::of(source) }
    }
}
