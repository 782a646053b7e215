//! Ollama's `TEMPLATE` for a model. Ollama does not run a model's own chat template (Jinja); it has a template
//! language of its own (Go's). The pieces around each role's text are read off rendered conversations, and the
//! template is taken only if it writes other conversations exactly as the model's own does.

use serde_json::{Value, json};

use crate::dataset::{Message, parse_messages};
use crate::train::model::base_model::BaseModel;

/// Texts that stand for messages, found again in what is rendered. No template changes them.
const SYSTEM: &str = "Kestrel4571";
const QUESTION: &str = "Plover2986";
const ANSWER: &str = "Dunlin7130";
const QUESTION_2: &str = "Curlew6402";

/// Roles of the conversations that must be written alike.
const PROBES: &[&[&str]] = &[
    &["user"],
    &["system", "user"],
    &["user", "assistant", "user"],
    &["system", "user", "assistant", "user"],
    &["user", "assistant", "user", "assistant", "user"],
    &["system", "user", "assistant", "user", "assistant", "user"],
];

/// What a Modelfile says of prompts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct OllamaTemplate {
    /// The value of `TEMPLATE`.
    pub template: String,
    /// The system message that the model's template writes when a conversation has none.
    pub default_system: Option<String>,
    /// Whether a conversation may begin with a system message.
    pub takes_system: bool,
}

impl OllamaTemplate {
    /// The template of a model; `None` where no such template writes what the model's own does.
    pub(super) fn of(base: &BaseModel) -> Option<Self> {
        let format = PromptFormat::find(base)?;
        PROBES.iter().all(|roles| format.agrees(base, roles)).then(|| format.write())
    }
}

/// The text before a message's content and after it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Around {
    before: String,
    after: String,
}

/// Where a system message stands.
#[derive(Debug, Clone, PartialEq, Eq)]
enum SystemPlace {
    /// The template refuses it.
    Nowhere,
    /// In a turn of its own.
    Turn(Around),
    /// In a turn that is there without it too.
    Always(Around),
    /// In the turn of the first user message, before its content.
    FirstUser(Around),
    /// In the turn of the last user message, before its content.
    LastUser(Around),
}

/// Prompts that are made of fixed pieces.
#[derive(Debug, Clone, PartialEq, Eq)]
struct PromptFormat {
    start: String,
    user: Around,
    assistant: Around,
    system: SystemPlace,
    default_system: Option<String>,
    /// What the assistant's answer follows.
    end: String,
}

impl PromptFormat {
    /// Reads the pieces off rendered conversations.
    fn find(base: &BaseModel) -> Option<Self> {
        let user = |text| ("user", text);
        let control = base.tokenizer.control_tokens();
        let [first, last] = cut(&render(base, &[user(QUESTION)])?, [QUESTION])?;
        let turns = [user(QUESTION), ("assistant", ANSWER), user(QUESTION_2)];
        let texts = [QUESTION, ANSWER, QUESTION_2];
        let [again, to_answer, to_question, end] = cut(&render(base, &turns)?, texts)?;
        if again != first || end != last {
            return None;
        }
        let mut shared = shared_end(&first, &to_question, control);
        // The end of the turn before it belongs to that one, though every user's turn may follow one.
        let tokens = base.tokenizer.added_tokens().map(|(text, _)| text);
        let end_of_turn = base.template.as_ref().and_then(|template| template.end_of_turn(tokens));
        let shared_text = &first[first.len() - shared..];
        if let Some((_, rest)) = end_of_turn.and_then(|end| shared_text.rsplit_once(end)) {
            shared = rest.trim_start_matches('\n').len();
        }
        let before_user = first[first.len() - shared..].to_owned();
        let after_assistant = to_question[..to_question.len() - shared].to_owned();
        // Many templates want turns to alternate. The others show where a user's turn ends.
        let two = render(base, &[user(QUESTION), user(QUESTION_2)]);
        let between = two.and_then(|text| cut(&text, [QUESTION, QUESTION_2]));
        let after_user = match between {
            Some([_, between, _]) => between.strip_suffix(&before_user)?.to_owned(),
            None if !after_assistant.is_empty()
                && to_answer.starts_with(&after_assistant)
                && end.starts_with(&after_assistant) =>
            {
                after_assistant.clone()
            }
            None => end[..shared_start(&to_answer, &end, control)].to_owned(),
        };
        let before_assistant = to_answer.strip_prefix(&after_user)?.to_owned();
        let prompt_end = end.strip_prefix(&after_user)?.to_owned();
        let mut format = Self {
            start: first[..first.len() - shared].to_owned(),
            user: Around { before: before_user, after: after_user },
            assistant: Around { before: before_assistant, after: after_assistant },
            system: SystemPlace::Nowhere,
            default_system: None,
            end: prompt_end,
        };
        format.find_system(base)?;
        Some(format)
    }

    /// Finds where a system message stands, and the one that is written without one.
    fn find_system(&mut self, base: &BaseModel) -> Option<()> {
        let Some(text) = render(base, &[("system", SYSTEM), ("user", QUESTION)]) else {
            return Some(());
        };
        let [before, between, _] = cut(&text, [SYSTEM, QUESTION])?;
        let Some(after) = between.strip_suffix(&self.user.before) else {
            let start = format!("{}{}", self.start, self.user.before);
            let before = before.strip_prefix(&start)?.to_owned();
            let around = Around { before, after: between };
            let turns = [
                ("system", SYSTEM),
                ("user", QUESTION),
                ("assistant", ANSWER),
                ("user", QUESTION_2),
            ];
            let text = render(base, &turns)?;
            let is_first = text.find(SYSTEM)? < text.find(QUESTION)?;
            self.system = match is_first {
                true => SystemPlace::FirstUser(around),
                false => SystemPlace::LastUser(around),
            };
            return Some(());
        };
        if let Some(turn) = before.strip_prefix(&self.start) {
            let (before, after) = (turn.to_owned(), after.to_owned());
            self.system = SystemPlace::Turn(Around { before, after });
            return Some(());
        }
        // Without a system message the template writes one of its own, or a turn with an empty one.
        let default = self.start.strip_prefix(&before)?.strip_suffix(after)?.to_owned();
        self.start = String::new();
        let around = Around { before, after: after.to_owned() };
        self.system = match default.is_empty() {
            true => SystemPlace::Always(around),
            false => SystemPlace::Turn(around),
        };
        self.default_system = Some(default).filter(|default| !default.is_empty());
        Some(())
    }

    /// Whether it writes such a conversation as the model's own template does. What that one refuses does not count.
    fn agrees(&self, base: &BaseModel, roles: &[&str]) -> bool {
        let texts: Vec<String> = (0..roles.len())
            .map(|place| format!("Line {place}.\n\nAnd \"more\" {place}?"))
            .collect();
        let turns: Vec<(&str, &str)> =
            roles.iter().copied().zip(texts.iter().map(String::as_str)).collect();
        render(base, &turns).is_none_or(|text| text == self.prompt(&turns))
    }

    /// What Ollama writes for a conversation.
    fn prompt(&self, turns: &[(&str, &str)]) -> String {
        let mut turns = turns.to_vec();
        if let (Some(default), Some(("user", _))) = (&self.default_system, turns.first()) {
            turns.insert(0, ("system", default));
        }
        let system = turns.first().filter(|(role, _)| *role == "system").map(|(_, text)| *text);
        let mut prompt = self.start.clone();
        if let SystemPlace::Always(around) = &self.system {
            prompt.push_str(&format!(
                "{}{}{}",
                around.before,
                system.unwrap_or_default(),
                around.after
            ));
        }
        for (place, (role, content)) in turns.iter().enumerate() {
            let around = match (*role, &self.system) {
                ("user", place_of_system) => {
                    prompt.push_str(&self.user.before);
                    let inside = match place_of_system {
                        SystemPlace::FirstUser(around) if place == 1 => Some(around),
                        SystemPlace::LastUser(around) if place + 1 == turns.len() => Some(around),
                        _ => None,
                    };
                    if let (Some(around), Some(system)) = (inside, system) {
                        prompt.push_str(&format!("{}{system}{}", around.before, around.after));
                    }
                    prompt.push_str(content);
                    prompt.push_str(&self.user.after);
                    continue;
                }
                ("assistant", _) => &self.assistant,
                (_, SystemPlace::Turn(around)) => around,
                _ => continue,
            };
            prompt.push_str(&format!("{}{content}{}", around.before, around.after));
        }
        prompt.push_str(&self.end);
        prompt
    }

    /// The same in Ollama's language. White space at the ends of its lines is left out by `{{-`.
    fn write(self) -> OllamaTemplate {
        let around = |around: &Around, content: &str| {
            format!("{}{{{{ {content} }}}}{}", fixed(&around.before), fixed(&around.after))
        };
        let mut inside_user = String::new();
        if let SystemPlace::FirstUser(place) | SystemPlace::LastUser(place) = &self.system {
            let condition = match &self.system {
                SystemPlace::FirstUser(_) => "and $.System (eq $index 1)",
                _ => "and $.System (eq (len (slice $.Messages $index)) 1)",
            };
            let system = around(place, "$.System");
            inside_user = format!("{{{{ if {condition} }}}}{system}{{{{ end }}}}");
        }
        let mut template = fixed(&self.start);
        if let SystemPlace::Always(place) = &self.system {
            template.push_str(&around(place, "$.System"));
        }
        template.push_str("{{- range $index, $message := .Messages }}\n");
        template.push_str(&format!(
            "{{{{- if eq .Role \"user\" }}}}{}{inside_user}{{{{ .Content }}}}{}\n",
            fixed(&self.user.before),
            fixed(&self.user.after)
        ));
        template.push_str(&format!(
            "{{{{- else if eq .Role \"assistant\" }}}}{}\n",
            around(&self.assistant, ".Content")
        ));
        if let SystemPlace::Turn(place) = &self.system {
            template.push_str(&format!(
                "{{{{- else if eq .Role \"system\" }}}}{}\n",
                around(place, ".Content")
            ));
        }
        template.push_str(&format!("{{{{- end }}}}\n{{{{- end }}}}{}", fixed(&self.end)));
        OllamaTemplate {
            template,
            default_system: self.default_system,
            takes_system: self.system != SystemPlace::Nowhere,
        }
    }
}

/// A fixed text in Go's template language: a string in quotes, which keeps its white space.
fn fixed(text: &str) -> String {
    if text.is_empty() {
        return String::new();
    }
    let mut quoted = String::new();
    for c in text.chars() {
        match c {
            '\\' | '"' => quoted.extend(['\\', c]),
            '\n' => quoted.push_str("\\n"),
            '\r' => quoted.push_str("\\r"),
            '\t' => quoted.push_str("\\t"),
            c if c.is_control() => quoted.push_str(&format!("\\u{:04x}", u32::from(c))),
            c => quoted.push(c),
        }
    }
    format!("{{{{ \"{quoted}\" }}}}")
}

/// A conversation as the model's template writes it; `None` where it refuses. The token that begins a text is not
/// in it where the tokenizer puts it there itself, as Ollama has it do.
fn render(base: &BaseModel, turns: &[(&str, &str)]) -> Option<String> {
    let template = base.template.as_ref()?;
    let text = template.render_prompt(&messages(turns)?, &[]).ok()?;
    let special = base.tokenizer.special();
    let beginning = special.beginning.filter(|_| special.adds_beginning);
    let beginning = beginning.and_then(|id| base.tokenizer.text_of(id)).unwrap_or_default();
    Some(text.strip_prefix(&beginning).unwrap_or(&text).to_owned())
}

fn messages(turns: &[(&str, &str)]) -> Option<Vec<Message>> {
    let list: Vec<Value> =
        turns.iter().map(|(role, content)| json!({"role": role, "content": content})).collect();
    parse_messages(&Value::Array(list)).ok()
}

/// What stands before, between and behind texts, which must be there once each and in this order.
fn cut<const N: usize, const M: usize>(text: &str, texts: [&str; N]) -> Option<[String; M]> {
    let mut pieces = Vec::with_capacity(M);
    let mut rest = text;
    for wanted in texts {
        let (piece, after) = rest.split_once(wanted)?;
        if after.contains(wanted) {
            return None;
        }
        pieces.push(piece.to_owned());
        rest = after;
    }
    pieces.push(rest.to_owned());
    pieces.try_into().ok()
}

/// The pieces of a text that are not cut: control tokens, and characters.
fn atoms<'a>(mut text: &'a str, control: &[(String, u32)]) -> Vec<&'a str> {
    let mut atoms = Vec::new();
    while let Some(first) = text.chars().next() {
        let token = control.iter().find(|(token, _)| text.starts_with(token.as_str()));
        let length = token.map_or(first.len_utf8(), |(token, _)| token.len());
        atoms.push(&text[..length]);
        text = &text[length..];
    }
    atoms
}

/// Bytes of the longest common end.
fn shared_end(a: &str, b: &str, control: &[(String, u32)]) -> usize {
    let (a, b) = (atoms(a, control), atoms(b, control));
    let pairs = a.iter().rev().zip(b.iter().rev());
    pairs.take_while(|(a, b)| a == b).map(|(a, _)| a.len()).sum()
}

/// Bytes of the longest common beginning.
fn shared_start(a: &str, b: &str, control: &[(String, u32)]) -> usize {
    let (a, b) = (atoms(a, control), atoms(b, control));
    a.iter().zip(&b).take_while(|(a, b)| a == b).map(|(a, _)| a.len()).sum()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    /// The tiny model with another template.
    fn of(template: &str) -> (tempfile::TempDir, BaseModel) {
        let tiny = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/tiny-llama");
        let folder = tempfile::tempdir().expect("a folder");
        for name in ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
        {
            std::fs::copy(tiny.join(name), folder.path().join(name)).expect("copies");
        }
        std::fs::write(folder.path().join("chat_template.jinja"), template).expect("writes");
        let base = BaseModel::open(folder.path()).expect("opens");
        (folder, base)
    }

    const CHATML: &str = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n\
        {% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";

    #[test]
    fn templates_of_many_families_are_written_in_ollamas_language() {
        let default = "{% if messages[0].role != 'system' %}<|im_start|>system\nBe \"kind\".<|im_end|>\n\
            {% endif %}";
        let blocks = CHATML.replace(
            "{{ m.content }}",
            "{% if m.role == 'assistant' and loop.last %}<think></think>{% endif %}{{ m.content }}",
        );
        let in_user = |condition: &str| {
            format!(
                "{{% if messages[0].role == 'system' %}}{{% set s = messages[0].content %}}\
                 {{% set messages = messages[1:] %}}{{% else %}}{{% set s = none %}}{{% endif %}}\
                 {{% for m in messages %}}{{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}}\
                 {{{{ raise_exception('they alternate') }}}}{{% endif %}}{{% if m.role == 'user' %}}\
                 [Q] {{% if s and {condition} %}}{{{{ s }}}}\n\n{{% endif %}}{{{{ m.content }}}} [/Q]\
                 {{% else %}} {{{{ m.content }}}}<|im_end|>{{% endif %}}{{% endfor %}}"
            )
        };
        let always = format!(
            "<|im_start|>system\nCutting: 2023\n{{% if messages[0].role == 'system' %}}\
             {{{{ messages[0].content }}}}{{% set messages = messages[1:] %}}{{% endif %}}<|im_end|>\n{CHATML}"
        );
        let headers = "{% for m in messages %}<|im_start|>{{ m.role }}[end]\n\n{{ m.content | trim }}<|im_end|>\
            {% endfor %}{% if add_generation_prompt %}<|im_start|>assistant[end]\n\n{% endif %}";
        let no_system = "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}\
            {% endif %}<|im_start|>{{ 'model' if m.role == 'assistant' else m.role }}\n{{ m.content }}<|im_end|>\n\
            {% endfor %}{% if add_generation_prompt %}<|im_start|>model\n{% endif %}";
        for (template, wanted, default_system) in [
            (CHATML.to_owned(), vec![r#""<|im_start|>user\n""#, r#""<|im_end|>\n""#], None),
            (
                format!("{default}{CHATML}"),
                vec!["else if eq .Role \"system\""],
                Some("Be \"kind\"."),
            ),
            (always, vec![r#""<|im_start|>system\nCutting: 2023\n" }}{{ $.System }}"#], None),
            // The block is not part of a prompt.
            (blocks, vec![r#"}}{{ "<|im_start|>assistant\n" }}"#], None),
            (headers.to_owned(), vec![r#""<|im_start|>assistant[end]\n\n""#], None),
            (no_system.to_owned(), vec![r#""<|im_start|>model\n""#], None),
            (in_user("loop.first"), vec!["eq $index 1", r#""[Q] ""#, r#""\n\n""#], None),
            (in_user("loop.last"), vec!["(slice $.Messages $index)", r#"" [/Q]""#], None),
        ] {
            let (_folder, base) = of(&template);
            let made = OllamaTemplate::of(&base).unwrap_or_else(|| panic!("{template}"));
            for wanted in wanted {
                assert!(made.template.contains(wanted), "{wanted}\n{}", made.template);
            }
            assert_eq!(made.default_system.as_deref(), default_system, "{template}");
            assert_eq!(made.takes_system, template != no_system, "{template}");
        }
    }

    #[test]
    fn a_template_that_ollamas_language_cannot_write_alike_is_none() {
        for template in [
            // The number of the turn, a change of the text, a change of earlier turns.
            CHATML.replace("{{ m.role }}", "{{ m.role }}{{ loop.index }}"),
            CHATML.replace("{{ m.content }}", "{{ m.content | upper }}"),
            CHATML.replace("{{ m.content }}", "{{ m.content.split('\n')[0] }}"),
            CHATML.replace(
                "{{ m.content }}",
                "{{ m.content }}{% if not loop.last and m.role == 'user' %} (earlier){% endif %}",
            ),
            "{{ raise_exception('never') }}".to_owned(),
        ] {
            let (_folder, base) = of(&template);
            assert_eq!(OllamaTemplate::of(&base), None, "{template}");
        }
    }
}
