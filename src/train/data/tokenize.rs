//! Examples to token sequences with loss masks.

use std::fs::File;
use std::path::Path;

use crate::dataset::{
    Diagnostic, Diagnostics, Example, Format, LineFault, LineSplitter, Message, parse_example,
};
use crate::train::data::sequence::Sequence;
use crate::train::model::base_model::BaseModel;
use crate::util::file_digest::StreamDigest;

/// A file of examples, tokenised.
#[derive(Debug, Clone, Default)]
pub struct EncodedFile {
    /// The sequences, in file order; of preferences those with the preferred answer.
    pub sequences: Vec<Sequence>,
    /// The sequences with the other answer, one for each of `sequences`; empty unless the file holds
    /// preferences.
    pub rejected: Vec<Sequence>,
    /// Line number of each sequence.
    pub lines: Vec<u64>,
    /// Lines left out because they are longer than the context, with their token counts.
    pub too_long: Vec<(u64, usize)>,
    /// SHA-256 of the file, lower-case hex.
    pub digest: String,
}

impl EncodedFile {
    /// Every sequence.
    pub fn all(&self) -> impl Iterator<Item = &Sequence> {
        self.sequences.iter().chain(&self.rejected)
    }

    /// Tokens of the longest example, of both answers where it has two.
    pub fn longest(&self) -> usize {
        let rejected = self.rejected.iter().map(|sequence| sequence.input_ids.len());
        let both = self.sequences.iter().zip(rejected.chain(std::iter::repeat(0)));
        both.map(|(one, other)| one.input_ids.len() + other).max().unwrap_or(0)
    }

    /// Tokens of all sequences together.
    pub fn tokens(&self) -> usize {
        self.all().map(|sequence| sequence.input_ids.len()).sum()
    }

    /// Takes an example in, or notes that it does not fit into the context.
    fn take(&mut self, example: EncodedExample, context_length: usize) {
        let tokens = example.tokens();
        if tokens > context_length {
            self.too_long.push((example.line, tokens));
            return;
        }
        self.sequences.push(example.sequence);
        self.rejected.extend(example.rejected);
        self.lines.push(example.line);
    }
}

/// An example, tokenised.
#[derive(Debug, Clone)]
pub struct EncodedExample {
    /// Its line in the file.
    pub line: u64,
    /// Its tokens; of a preference those with the preferred answer.
    pub sequence: Sequence,
    /// Of a preference those with the other answer.
    pub rejected: Option<Sequence>,
}

impl EncodedExample {
    /// Tokens of the longer of its texts, which must fit into the context.
    pub fn tokens(&self) -> usize {
        let rejected = self.rejected.as_ref().map_or(0, |rejected| rejected.input_ids.len());
        self.sequence.input_ids.len().max(rejected)
    }
}

/// Why a file cannot be encoded.
#[derive(Debug, thiserror::Error)]
pub enum EncodeError {
    /// The file cannot be read.
    #[error("{path}: {source}")]
    Io {
        /// Which file.
        path: String,
        /// Why.
        source: std::io::Error,
    },
    /// The base model brings no chat template, and the file holds chats.
    #[error(
        "the base model has no chat template, and the file holds chats: use \"prompt\" and \
         \"completion\", or a base model with a template"
    )]
    NoTemplate,
    /// Lines that cannot be used: format, control tokens in content, template.
    #[error("{} problems", .0.total)]
    Diagnostics(Diagnostics),
}

/// Reads, checks, renders and tokenises every example of `path`.
pub fn encode_file(
    path: &Path,
    base: &BaseModel,
    context_length: usize,
) -> Result<EncodedFile, EncodeError> {
    let mut made = EncodedFile::default();
    let digest = encode_each(path, base, &mut |example| made.take(example, context_length))?;
    Ok(EncodedFile { digest, ..made })
}

/// Reads, checks, renders and tokenises the examples of `path` one after the other, in file order and
/// constant memory, and hands each out; the file's digest. Those of a file with problems are handed out
/// as well.
pub fn encode_each(
    path: &Path,
    base: &BaseModel,
    each: &mut dyn FnMut(EncodedExample),
) -> Result<String, EncodeError> {
    let io_error = |source| EncodeError::Io { path: path.display().to_string(), source };
    let mut file = File::open(path).map_err(io_error)?;
    let mut digest = StreamDigest::default();
    let mut splitter = LineSplitter::default();
    let problems = Diagnostics::default();
    let mut encoder = Encoder { base, each, problems, format: None, needs_template: false };
    let feed = |chunk: &[u8]| {
        splitter.feed(chunk, &mut |number, line| encoder.line(number, line));
        Ok(())
    };
    digest.read_all(&mut file, feed).map_err(io_error)?;
    splitter.finish(&mut |number, line| encoder.line(number, line));
    if encoder.needs_template {
        return Err(EncodeError::NoTemplate);
    }
    if !encoder.problems.is_empty() {
        return Err(EncodeError::Diagnostics(encoder.problems));
    }
    Ok(digest.finish())
}

struct Encoder<'a> {
    base: &'a BaseModel,
    each: &'a mut dyn FnMut(EncodedExample),
    problems: Diagnostics,
    /// Format and line of the first example.
    format: Option<(Format, u64)>,
    needs_template: bool,
}

impl Encoder<'_> {
    fn line(&mut self, number: u64, line: Result<&str, LineFault>) {
        let text = match line {
            Ok(text) => text,
            Err(fault) => return self.problem(number, None, None, fault.to_string()),
        };
        // Warnings were said when the file was uploaded.
        let mut warnings = Diagnostics::default();
        let Some(example) = parse_example(number, text, &mut self.problems, &mut warnings) else {
            return;
        };
        let (format, first_line) = *self.format.get_or_insert((example.format(), number));
        if format != example.format() {
            let message = format!("another format than that of line {first_line}");
            return self.problem(number, None, None, message);
        }
        match example {
            Example::Chat { messages, tools } => self.chat(number, &messages, &tools),
            Example::PromptCompletion { prompt, completion } => {
                self.prompt_completion(number, &prompt, &completion);
            }
            Example::Preference { messages, tools, answers } => {
                self.preference(number, messages, &tools, *answers);
            }
        }
    }

    fn problem(
        &mut self,
        line: u64,
        message_index: Option<usize>,
        key: Option<String>,
        message: String,
    ) {
        self.problems.push(Diagnostic { line, message_index, key, message });
    }

    fn chat(&mut self, line: u64, messages: &[Message], tools: &[serde_json::Value]) {
        if let Some(sequence) = self.conversation(line, messages, tools) {
            self.keep(line, sequence, None);
        }
    }

    fn preference(
        &mut self,
        line: u64,
        mut messages: Vec<Message>,
        tools: &[serde_json::Value],
        answers: [Message; 2],
    ) {
        let mut made = Vec::with_capacity(answers.len());
        for answer in answers {
            messages.push(answer);
            made.extend(self.conversation(line, &messages, tools));
            messages.pop();
        }
        if let Ok([chosen, rejected]) = <[Sequence; 2]>::try_from(made) {
            self.keep(line, chosen, Some(rejected));
        }
    }

    /// A conversation as tokens; `None` when it has problems, which are noted.
    fn conversation(
        &mut self,
        line: u64,
        messages: &[Message],
        tools: &[serde_json::Value],
    ) -> Option<Sequence> {
        let Some(template) = &self.base.template else {
            self.needs_template = true;
            return None;
        };
        if let Some((index, key, token)) = control_token_in(self.base, messages) {
            let key = Some(format!("messages[{index}].{key}"));
            self.problem(line, Some(index), key, control_token_message(&token));
            return None;
        }
        let rendered = match template.render_for_training(messages, tools) {
            Ok(rendered) => rendered,
            Err(error) => {
                let (message_index, reason) = error.into_parts();
                self.problem(line, message_index, None, reason);
                return None;
            }
        };
        match self.base.tokenizer.encode(&rendered.text) {
            Ok(tokens) => {
                let counts = |range: &std::ops::Range<usize>| {
                    rendered
                        .supervised
                        .iter()
                        .any(|span| range.start < span.end && range.end > span.start)
                };
                let loss_mask = tokens.iter().map(|(_, range)| counts(range)).collect();
                let input_ids = tokens.into_iter().map(|(id, _)| id).collect();
                Some(Sequence { input_ids, loss_mask })
            }
            Err(error) => {
                self.problem(line, None, None, error.to_string());
                None
            }
        }
    }

    fn prompt_completion(&mut self, line: u64, prompt: &str, completion: &str) {
        let tokenizer = &self.base.tokenizer;
        for (key, text) in [("prompt", prompt), ("completion", completion)] {
            if let Some(token) = tokenizer.control_token_in(text) {
                let message = control_token_message(token);
                return self.problem(line, None, Some(key.to_owned()), message);
            }
        }
        let whole = format!("{prompt}{completion}");
        let tokens = match tokenizer.encode(&whole) {
            Ok(tokens) => tokens,
            Err(error) => return self.problem(line, None, None, error.to_string()),
        };
        let special = tokenizer.special();
        let mut sequence = Sequence { input_ids: Vec::new(), loss_mask: Vec::new() };
        if special.adds_beginning {
            sequence.input_ids.extend(special.beginning);
        }
        sequence.loss_mask.resize(sequence.input_ids.len(), false);
        for (id, range) in tokens {
            sequence.input_ids.push(id);
            sequence.loss_mask.push(range.end > prompt.len());
        }
        if let Some(end) = special.ends.first() {
            sequence.input_ids.push(*end);
            sequence.loss_mask.push(true);
        }
        self.keep(line, sequence, None);
    }

    fn keep(&mut self, line: u64, sequence: Sequence, rejected: Option<Sequence>) {
        (self.each)(EncodedExample { line, sequence, rejected });
    }
}

/// The first message that holds the text of a control token: its index, the key, the token.
pub fn control_token_in(
    base: &BaseModel,
    messages: &[Message],
) -> Option<(usize, &'static str, String)> {
    for (index, message) in messages.iter().enumerate() {
        let texts = message
            .content
            .iter()
            .map(|content| ("content", content))
            .chain(message.name.iter().map(|name| ("name", name)))
            .chain(message.tool_calls.iter().map(|call| ("tool_calls", &call.arguments)))
            .chain(message.tool_calls.iter().map(|call| ("tool_calls", &call.name)));
        for (key, text) in texts {
            if let Some(token) = base.tokenizer.control_token_in(text) {
                return Some((index, key, token.to_owned()));
            }
        }
    }
    None
}

/// Why a text with a control token in it is refused.
pub fn control_token_message(token: &str) -> String {
    format!(
        "the text holds {token:?}, which is a control token of the model: it would end or begin a turn \
         in the middle of the message. Remove it or write it differently"
    )
}
