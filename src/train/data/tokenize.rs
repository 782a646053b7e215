//! Examples to token sequences with loss masks.

use std::fs::File;
use std::path::Path;

use super::control_text::{ControlText, TurnTokens};
use super::conversation::{ConversationProblem, encode_conversation};
use super::example::EncodedExample;
use crate::dataset::{
    Diagnostic, Diagnostics, Example, Format, LineFault, LineSplitter, Message, parse_example,
};
use crate::domain::chat_template::ControlTokens;
use crate::train::data::sequence::Sequence;
use crate::train::model::base_model::BaseModel;
use crate::util::exact_json::ExactJson;
use crate::util::file_digest::StreamDigest;

/// A file of examples, tokenised.
#[derive(Debug, Clone, Default)]
pub struct EncodedFile {
    /// The examples that fit into the context, in file order.
    pub examples: Vec<EncodedExample>,
    /// Lines left out because they are longer than the context, with their token counts.
    pub too_long: Vec<(u64, usize)>,
    /// What the user should look at, though the file can be used.
    pub warnings: Diagnostics,
    /// SHA-256 of the file, lower-case hex.
    pub digest: String,
}

impl EncodedFile {
    /// Every sequence.
    pub fn all(&self) -> impl Iterator<Item = &Sequence> {
        self.examples.iter().flat_map(EncodedExample::sequences)
    }

    /// Most tokens of an example that run at once.
    pub fn longest(&self) -> usize {
        self.examples.iter().map(EncodedExample::tokens_at_once).max().unwrap_or(0)
    }

    /// Tokens of all sequences together.
    pub fn tokens(&self) -> usize {
        self.examples.iter().map(EncodedExample::tokens).sum()
    }

    /// Takes an example in, or notes that it does not fit into the context.
    fn take(&mut self, example: EncodedExample, context_length: usize) {
        let tokens = example.longest_sequence();
        match tokens > context_length {
            true => self.too_long.push((example.line, tokens)),
            false => self.examples.push(example),
        }
    }
}

/// What reading a file found, beside its examples.
#[derive(Debug, Clone, Default)]
pub struct FileFindings {
    /// SHA-256 of the file, lower-case hex.
    pub digest: String,
    /// What the user should look at, though the file can be used.
    pub warnings: Diagnostics,
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
    let found = encode_each(path, base, &mut |example| made.take(example, context_length))?;
    Ok(EncodedFile { digest: found.digest, warnings: found.warnings, ..made })
}

/// Reads, checks, renders and tokenises the examples of `path` one after the other, in file order and
/// constant memory, and hands each out; what else there is to say of the file. Those of a file with problems are
/// handed out as well.
pub fn encode_each(
    path: &Path,
    base: &BaseModel,
    each: &mut dyn FnMut(EncodedExample),
) -> Result<FileFindings, EncodeError> {
    let io_error = |source| EncodeError::Io { path: path.display().to_string(), source };
    let mut file = File::open(path).map_err(io_error)?;
    let mut digest = StreamDigest::default();
    let mut splitter = LineSplitter::default();
    let mut encoder = Encoder::new(base, each);
    let feed = |chunk: &[u8]| {
        splitter.feed(chunk, &mut |number, line| encoder.line(number, line));
        Ok(())
    };
    digest.read_all(&mut file, feed).map_err(io_error)?;
    if let Some(fault) = splitter.finish(&mut |number, line| encoder.line(number, line)) {
        let mut problems = Diagnostics::default();
        problems.push(fault.into());
        return Err(EncodeError::Diagnostics(problems));
    }
    if encoder.needs_template {
        return Err(EncodeError::NoTemplate);
    }
    if !encoder.problems.is_empty() {
        return Err(EncodeError::Diagnostics(encoder.problems));
    }
    Ok(FileFindings { digest: digest.finish(), warnings: encoder.warnings })
}

struct Encoder<'a> {
    base: &'a BaseModel,
    each: &'a mut dyn FnMut(EncodedExample),
    problems: Diagnostics,
    warnings: Diagnostics,
    /// Rows of the model's embedding; a token beyond them has no meaning.
    rows: Option<u64>,
    /// Format and line of the first example.
    format: Option<(Format, u64)>,
    needs_template: bool,
    turn_tokens: TurnTokens,
}

impl<'a> Encoder<'a> {
    fn new(base: &'a BaseModel, each: &'a mut dyn FnMut(EncodedExample)) -> Self {
        Self {
            base,
            each,
            problems: Diagnostics::default(),
            warnings: Diagnostics::default(),
            rows: base.config["vocab_size"].as_u64(),
            format: None,
            needs_template: false,
            turn_tokens: TurnTokens::of(&base.tokenizer),
        }
    }

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

    fn chat(&mut self, line: u64, messages: &[Message], tools: &[ExactJson]) {
        if self.control_texts(line, messages, tools).is_none() {
            return;
        }
        if let Some(views) = self.conversation(line, messages, tools) {
            self.keep(EncodedExample { line, views, rejected: None }, messages);
        }
    }

    fn preference(
        &mut self,
        line: u64,
        mut messages: Vec<Message>,
        tools: &[ExactJson],
        answers: [Message; 2],
    ) {
        let texts = [&messages, &answers[..]].concat();
        if self.control_texts(line, &texts, tools).is_none() {
            return;
        }
        let mut made = Vec::with_capacity(answers.len());
        for answer in answers {
            messages.push(answer);
            // One answer is supervised, so that there is one view.
            made.extend(
                self.conversation(line, &messages, tools).and_then(|mut views| views.pop()),
            );
            messages.pop();
        }
        if let Ok([chosen, rejected]) = <[Sequence; 2]>::try_from(made) {
            let example = EncodedExample { line, views: vec![chosen], rejected: Some(rejected) };
            self.keep(example, &messages);
        }
    }

    /// A conversation as tokens; `None` when it has problems, which are noted.
    fn conversation(
        &mut self,
        line: u64,
        messages: &[Message],
        tools: &[ExactJson],
    ) -> Option<Vec<Sequence>> {
        let Some(template) = &self.base.template else {
            self.needs_template = true;
            return None;
        };
        let tokenizer = &self.base.tokenizer;
        match encode_conversation(template, tokenizer, messages, tools) {
            Ok(views) => Some(views),
            Err(ConversationProblem { message_index, key, reason }) => {
                let key = key.zip(message_index);
                let key = key.map(|(key, index)| format!("messages[{index}].{key}"));
                self.problem(line, message_index, key, reason);
                None
            }
        }
    }

    fn prompt_completion(&mut self, line: u64, prompt: &str, completion: &str) {
        let tokenizer = &self.base.tokenizer;
        for (key, text) in [("prompt", prompt), ("completion", completion)] {
            let Some(token) = self.turn_tokens.first_in(text) else { continue };
            let (key, token) = (key.to_owned(), token.to_owned());
            let found = ControlText { message_index: None, key, token };
            let outcome = "is trained as that token, as completions read it";
            if self.control_text_found(line, found, outcome).is_none() {
                return;
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
        if prompt.is_empty() && sequence.input_ids.is_empty() {
            // As an empty prompt is answered: the first token of the completion has something to follow.
            sequence.input_ids.extend(special.before_first());
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
        self.keep(EncodedExample { line, views: vec![sequence], rejected: None }, &[]);
    }

    /// Notes what in a conversation is spelled like a control token; `None` where the job refuses it.
    fn control_texts(
        &mut self,
        line: u64,
        messages: &[Message],
        tools: &[ExactJson],
    ) -> Option<()> {
        match self.turn_tokens.find(messages, tools) {
            Some(found) => self.control_text_found(line, found, "is trained as these letters"),
            None => Some(()),
        }
    }

    /// Notes a text that is spelled like a control token, which `outcome` says what becomes of: a warning; or a problem
    /// and `None` where the job refuses it.
    fn control_text_found(&mut self, line: u64, found: ControlText, outcome: &str) -> Option<()> {
        let ControlText { message_index, key, token } = found;
        let what =
            format!("the text holds {token:?}, which is spelled like a control token of the model");
        match self.base.control_tokens {
            ControlTokens::Text => {
                let message = format!("{what}: it {outcome}");
                self.warnings.push(Diagnostic { line, message_index, key: Some(key), message });
                Some(())
            }
            ControlTokens::Refuse => {
                let message = format!(
                    "{what}, and the job refuses such texts (control_tokens): remove it or write it differently"
                );
                self.problem(line, message_index, Some(key), message);
                None
            }
        }
    }

    /// Hands an example out, unless it cannot be trained.
    fn keep(&mut self, example: EncodedExample, messages: &[Message]) {
        let line = example.line;
        if example.targets() == 0 {
            let message = "nothing of this line is supervised: it would teach nothing".to_owned();
            return self.problem(line, None, None, message);
        }
        let rows = self.rows.unwrap_or(u64::from(u32::MAX));
        let ids = example.sequences().flat_map(|sequence| &sequence.input_ids);
        if let Some(id) = ids.copied().find(|id| u64::from(*id) >= rows) {
            let text = self.base.tokenizer.text_of(id).unwrap_or_default();
            let holds = |message: &Message| {
                message.content.as_deref().is_some_and(|content| content.contains(&text))
            };
            let message = format!(
                "the text becomes token {id} ({text:?}), and the model's embedding has tokens 0 to {}: \
                 leave the text out, or use a model whose embedding fits its tokenizer",
                rows.saturating_sub(1)
            );
            return self.problem(line, messages.iter().position(holds), None, message);
        }
        (self.each)(example);
    }
}
