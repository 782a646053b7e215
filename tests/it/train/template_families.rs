//! Templates in the style of each family: what is learnt is exactly what the assistant says and the
//! token that ends its turn, and nothing of a conversation is lost.
//!
//! The templates in `tests/data/templates` are short ones of our own, with the turns, roles, tools and
//! refusals of the families that they are named after.

use std::path::Path;

use hone::dataset::{Message, parse_messages};
use hone::train::model::chat_template::{ChatTemplate, TemplateError, TrainingView};
use hone::util::exact_json::ExactJson;
use proptest::prelude::*;
use serde_json::{Value, json};

/// A family's template.
struct Family {
    name: &'static str,
    /// `bos_token` and `eos_token`.
    borders: [&'static str; 2],
    control: &'static [&'static str],
    /// What the template writes between a prompt and the answer, which the model has to write as well.
    lead: &'static str,
    /// What ends the assistant's turn.
    end: &'static str,
    /// Whether messages lose the white space around them.
    trims: bool,
    /// Whether a conversation for training may begin with a system message.
    takes_system: bool,
    takes_tools: bool,
}

const CHATML: &[&str] = &["<|im_start|>", "<|im_end|>", "<|endoftext|>"];
const GEMMA: &[&str] = &["<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"];

const PLAIN: Family = Family {
    name: "chatml",
    borders: ["", "<|im_end|>"],
    control: CHATML,
    lead: "",
    end: "<|im_end|>",
    trims: false,
    takes_system: true,
    takes_tools: false,
};

const FAMILIES: &[Family] = &[
    PLAIN,
    Family { name: "marked", lead: "\n", ..PLAIN },
    Family { name: "qwen2", takes_tools: true, ..PLAIN },
    Family { name: "qwen3", lead: "<think>\n\n</think>\n\n", takes_tools: true, ..PLAIN },
    Family {
        name: "llama2",
        borders: ["<s>", "</s>"],
        control: &["<s>", "</s>"],
        lead: " ",
        end: " </s>",
        trims: true,
        ..PLAIN
    },
    Family {
        name: "llama3",
        borders: ["<|begin_of_text|>", "<|eot_id|>"],
        control: &[
            "<|begin_of_text|>",
            "<|start_header_id|>",
            "<|end_header_id|>",
            "<|eot_id|>",
            "<|eom_id|>",
        ],
        end: "<|eot_id|>",
        trims: true,
        takes_tools: true,
        ..PLAIN
    },
    Family {
        name: "mistral",
        borders: ["<s>", "</s>"],
        control: &[
            "<s>",
            "</s>",
            "[INST]",
            "[/INST]",
            "[TOOL_CALLS]",
            "[AVAILABLE_TOOLS]",
            "[/AVAILABLE_TOOLS]",
            "[TOOL_RESULTS]",
            "[/TOOL_RESULTS]",
        ],
        lead: " ",
        end: "</s>",
        takes_tools: true,
        ..PLAIN
    },
    Family {
        name: "gemma2",
        borders: ["<bos>", "<eos>"],
        control: GEMMA,
        end: "<end_of_turn>",
        trims: true,
        takes_system: false,
        ..PLAIN
    },
    Family {
        name: "gemma3",
        borders: ["<bos>", "<eos>"],
        control: GEMMA,
        end: "<end_of_turn>",
        trims: true,
        ..PLAIN
    },
    Family {
        name: "phi3",
        borders: ["<s>", "<|endoftext|>"],
        control: &["<|system|>", "<|user|>", "<|assistant|>", "<|end|>", "<|endoftext|>"],
        end: "<|end|>",
        ..PLAIN
    },
    Family {
        name: "zephyr",
        borders: ["<s>", "</s>"],
        control: &["<s>", "</s>"],
        end: "</s>",
        ..PLAIN
    },
];

impl Family {
    fn template(&self) -> ChatTemplate {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/templates");
        let source = std::fs::read_to_string(folder.join(format!("{}.jinja", self.name))).unwrap();
        let control: Vec<String> = self.control.iter().map(|token| (*token).to_owned()).collect();
        ChatTemplate::new(&source, &control, self.borders[0], self.borders[1])
            .unwrap_or_else(|error| panic!("{}: {error}", self.name))
    }

    /// What the model has to write to say a text.
    fn turn(&self, text: &str) -> String {
        let written = match self.name {
            _ if self.trims => text.trim(),
            // Qwen 3 writes its own line breaks between an answer's reasoning and what it says.
            "qwen3" => text.trim_start_matches('\n'),
            _ => text,
        };
        format!("{}{written}{}", self.lead, self.end)
    }
}

fn family(name: &str) -> &'static Family {
    FAMILIES.iter().find(|family| family.name == name).unwrap()
}

fn messages(value: &Value) -> Vec<Message> {
    parse_messages(value).unwrap()
}

/// What is learnt, turn by turn.
fn learnt(views: &[TrainingView]) -> Vec<&str> {
    let spans = |view: &'_ TrainingView| view.supervised.clone();
    views.iter().flat_map(|view| spans(view).into_iter().map(|span| &view.text[span])).collect()
}

/// The only text of a conversation.
fn only(views: Vec<TrainingView>) -> TrainingView {
    let [view] = <[TrainingView; 1]>::try_from(views).expect("one view");
    view
}

#[test]
fn every_family_renders_to_the_text_that_transformers_renders() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/golden_families.json");
    let golden: Vec<Value> = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    assert_eq!(golden.len(), 4 * FAMILIES.len());
    let mut compared = 0;
    for case in golden {
        let family = family(case["template"].as_str().unwrap());
        let name = format!("{} {}", family.name, case["name"]);
        let template = family.template();
        let mut spoken = case["messages"].clone();
        for message in spoken.as_array_mut().unwrap() {
            // hone's clients send arguments as texts, transformers' as objects.
            for call in
                message.get_mut("tool_calls").and_then(Value::as_array_mut).into_iter().flatten()
            {
                let arguments = call["function"]["arguments"].to_string();
                call["function"]["arguments"] = arguments.into();
            }
        }
        let conversation = messages(&spoken);
        let tools = case["tools"].as_array().into_iter().flatten();
        let tools: Vec<_> = tools.map(|tool| ExactJson::read(&tool.to_string()).unwrap()).collect();
        let rendered = template.render_for_training(&conversation, &tools);
        match (rendered, case["text"].as_str()) {
            (Ok(rendered), Some(text)) => {
                // The last view is the whole conversation where that ends with an answer, but for a system message
                // that serving puts before the last question alone.
                let ends_with_answer = conversation.last().is_some_and(|message| message.trained);
                let is_joined = family.name == "mistral" && case["name"] == "system";
                if ends_with_answer && !is_joined {
                    assert_eq!(rendered.last().unwrap().text, text, "{name}");
                }
                if let Some(marked) = case["marked"].as_array() {
                    // The mark begins behind what comes between the prompt and the answer.
                    let marked = marked
                        .iter()
                        .map(|turn| format!("{}{}", family.lead, turn.as_str().unwrap()));
                    assert_eq!(learnt(&rendered), marked.collect::<Vec<_>>(), "{name}");
                }
                compared += 1;
            }
            // transformers renders what loses a part of the conversation, too.
            (Err(_), _) => {}
            (Ok(rendered), None) => panic!("{name}: {rendered:?}"),
        }
        if let Ok(prompt) = template.render_prompt(&conversation, &tools) {
            assert_eq!(Some(prompt.as_str()), case["prompt"].as_str(), "{name}");
        }
    }
    assert_eq!(
        compared, 36,
        "all but calls without a place for them, and Gemma 2's system message"
    );
}

#[test]
fn the_token_that_ends_a_turn_is_found_in_every_family() {
    for family in FAMILIES {
        let template = family.template();
        let found = template.end_of_turn(family.control.iter().copied());
        assert_eq!(found, Some(family.end.trim()), "{}", family.name);
    }
}

#[test]
fn a_prompt_for_an_answer_is_the_beginning_of_the_conversation_with_it() {
    for family in FAMILIES {
        let template = family.template();
        let whole = messages(&json!([{"role": "user", "content": "one"},
            {"role": "assistant", "content": "two"}, {"role": "user", "content": "three"},
            {"role": "assistant", "content": "four"}]));
        for view in template.render_for_training(&whole, &[]).unwrap() {
            for span in view.supervised {
                let count = if view.text[span.clone()].contains("two") { 1 } else { 3 };
                let prompt = template.render_prompt(&whole[..count], &[]).unwrap();
                assert_eq!(view.text[..span.start], prompt, "{}", family.name);
            }
        }
    }
}

/// What people and models write, and what trips templates.
fn any_text() -> impl Strategy<Value = String> {
    let parts = prop_oneof![
        4 => "[a-zA-Z0-9 .,!?]{1,12}",
        2 => any::<char>().prop_filter("reserved", |character| {
            !('\u{e000}'..='\u{e006}').contains(character)
        }).prop_map(String::from),
        1 => prop::sample::select(vec![
            " ", "\n", "\n\n", "\t", "\"", "'", "\\", "{{ x }}", "{% if %}", "{# #}", "<b>", "&amp;",
            "<think>", "assistant", "user", "[", "]", "</", "|>", "<|", "é", "漢字", "🚀", "null",
        ]).prop_map(str::to_owned),
    ];
    prop::collection::vec(parts, 0..8).prop_map(|parts| parts.concat())
}

/// Turns of user and assistant: what each says, and whether the answer is learnt.
fn any_turns() -> impl Strategy<Value = Vec<(String, String, bool)>> {
    prop::collection::vec((any_text(), any_text(), prop::bool::weighted(0.8)), 1..5)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn what_is_learnt_is_exactly_what_the_assistant_says_and_the_end_of_its_turn(
        turns in any_turns(),
        system in prop::option::of(any_text()),
    ) {
        for family in FAMILIES {
            let template = family.template();
            let mut list = Vec::new();
            if let (Some(system), true) = (&system, family.takes_system) {
                list.push(json!({"role": "system", "content": system}));
            }
            let mut wanted = Vec::new();
            for (said, answer, is_learnt) in &turns {
                list.push(json!({"role": "user", "content": said}));
                let weight = u8::from(*is_learnt);
                list.push(json!({"role": "assistant", "content": answer, "weight": weight}));
                if *is_learnt {
                    wanted.push(family.turn(answer));
                }
            }
            let conversation = messages(&json!(list));
            let rendered = template.render_for_training(&conversation, &[])
                .unwrap_or_else(|error| panic!("{}: {error}\n{list:?}", family.name));
            prop_assert_eq!(learnt(&rendered), wanted, "{}", family.name);

            // And everything else that serving would send stands before it.
            let Some(view) = rendered.last() else { continue };
            let prompt = &view.text[..view.supervised.last().unwrap().start];
            let last = conversation.iter().rposition(|message| message.trained).unwrap();
            for message in &conversation[..last] {
                let content = message.content.as_deref().unwrap().trim();
                prop_assert!(prompt.contains(content), "{} {content:?}", family.name);
            }
        }
    }
}

fn tool(name: &str) -> ExactJson {
    let tool =
        json!({"type": "function", "function": {"name": name, "parameters": {"type": "object"}}});
    ExactJson::read(&tool.to_string()).unwrap()
}

/// Two questions, each answered through a call.
fn with_calls() -> Value {
    let call = |id: &str, arguments: &str| json!([{"id": id, "type": "function", "function": {"name": "add", "arguments": arguments}}]);
    json!([
        {"role": "user", "content": "1 + 2?"},
        {"role": "assistant", "content": null, "tool_calls": call("callid001", "{\"x\": 1, \"y\": 2}")},
        {"role": "tool", "tool_call_id": "callid001", "content": "3"},
        {"role": "assistant", "content": "It is 3."},
        {"role": "user", "content": "and 4 + 5?"},
        {"role": "assistant", "content": null, "tool_calls": call("callid002", "{\"x\": 4, \"y\": 5}")},
        {"role": "tool", "tool_call_id": "callid002", "content": "9"},
        {"role": "assistant", "content": "It is 9."},
    ])
}

#[test]
fn calls_of_tools_are_learnt_whole_where_the_template_writes_them() {
    for family in FAMILIES.iter().filter(|family| family.takes_tools) {
        let template = family.template();
        let conversation = messages(&with_calls());
        let rendered = template
            .render_for_training(&conversation, &[tool("add"), tool("divide")])
            .unwrap_or_else(|error| panic!("{}: {error}", family.name));
        let written = |x: u8, y: u8| {
            let arguments = format!("{{\"x\": {x}, \"y\": {y}}}");
            let id = if x == 1 { "callid001" } else { "callid002" };
            match family.name {
                "llama3" => format!("{{\"name\": \"add\", \"parameters\": {arguments}}}"),
                "mistral" => format!(
                    "[TOOL_CALLS] [{{\"name\": \"add\", \"arguments\": {arguments}, \"id\": \"{id}\"}}]"
                ),
                _ => format!(
                    "<tool_call>\n{{\"name\": \"add\", \"arguments\": {arguments}}}\n</tool_call>"
                ),
            }
        };
        let end = family.end;
        // Some write a line break or a space before what the assistant says.
        let found: Vec<&str> = learnt(&rendered)
            .into_iter()
            .map(|turn| turn.strip_prefix(family.lead).unwrap_or(turn).trim_start())
            .collect();
        let wanted = [
            format!("{}{end}", written(1, 2)),
            format!("It is 3.{end}"),
            format!("{}{end}", written(4, 5)),
            format!("It is 9.{end}"),
        ];
        assert_eq!(found, wanted, "{}", family.name);
        assert!(rendered.iter().all(|view| view.text.contains("divide")), "{}", family.name);
    }
}

#[test]
fn tools_and_calls_that_a_template_would_leave_out_are_refused() {
    for family in FAMILIES.iter().filter(|family| !family.takes_tools) {
        let template = family.template();
        let plain = messages(&json!([{"role": "user", "content": "a"},
            {"role": "assistant", "content": "b"}]));
        let error = template.render_for_training(&plain, &[tool("add")]).unwrap_err();
        assert!(matches!(error, TemplateError::NoTools), "{}: {error}", family.name);
        let error = template.render_prompt(&plain[..1], &[tool("add")]).unwrap_err();
        assert!(matches!(error, TemplateError::NoTools), "{}: {error}", family.name);
        // Each of these fails on the call, or on what the template makes of an empty message.
        let calls = messages(&with_calls());
        assert!(template.render_for_training(&calls, &[]).is_err(), "{}", family.name);
    }
    // One that names calls in a comment and writes none.
    let source = "{# tools, tool_calls #}{% for m in messages %}{{ m.role }}{{ m.content or '' }}\
                  <|im_end|>{% endfor %}";
    let control = vec!["<|im_end|>".to_owned()];
    let template = ChatTemplate::new(source, &control, "", "").unwrap();
    let error = template.render_for_training(&messages(&with_calls()), &[]).unwrap_err();
    assert!(matches!(error, TemplateError::NoToolCalls { message_index: 1 }), "{error}");
    let text = error.to_string();
    assert!(text.contains("message 1") && text.contains("does not write tool calls"), "{text}");
}

#[test]
fn a_message_that_a_template_would_leave_out_is_refused_by_its_number() {
    let fails = |template: &ChatTemplate, conversation: &Value, wanted: &str| {
        let error = template.render_for_training(&messages(conversation), &[]).unwrap_err();
        assert!(error.to_string().starts_with(wanted), "{error}");
    };
    // One that writes calls and no answers to them.
    let source = "{% for m in messages if m.role != 'tool' %}{{ m.role }}{% for c in m.tool_calls or [] \
                  %}{{ c.function | tojson }}{% endfor %}{{ m.content or '' }}<|im_end|>{% endfor %}";
    let template = ChatTemplate::new(source, &["<|im_end|>".to_owned()], "", "").unwrap();
    fails(
        &template,
        &with_calls(),
        "message 2: the model's chat template does not write the content of this tool message",
    );
    // Mistral's writes a message with calls without its text.
    let mut both = with_calls();
    both[5]["content"] = "Let me see.".into();
    let error =
        family("mistral").template().render_for_training(&messages(&both), &[]).unwrap_err();
    assert!(error.to_string().starts_with("message 5: "), "{error}");
    assert!(error.to_string().contains("beside its tool calls: it would be lost"), "{error}");
    family("qwen2").template().render_for_training(&messages(&both), &[]).unwrap();
}

#[test]
fn a_system_message_that_a_template_refuses_is_said_to_be_one() {
    let conversation = messages(&json!([{"role": "system", "content": "Be brief."},
        {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]));
    let error = family("gemma2").template().render_for_training(&conversation, &[]).unwrap_err();
    let (index, _, reason) = error.into_parts();
    assert_eq!(index, Some(0));
    for words in ["takes no system messages", "System role not supported", "first user message"] {
        assert!(reason.contains(words), "{reason}");
    }
    // A refusal for another reason names the message that it is about.
    let twice =
        messages(&json!([{"role": "user", "content": "a"}, {"role": "user", "content": "b"},
        {"role": "assistant", "content": "c"}]));
    let error = family("gemma2").template().render_for_training(&twice, &[]).unwrap_err();
    let (index, _, reason) = error.into_parts();
    assert_eq!(index, Some(1));
    assert!(reason.contains("take turns"), "{reason}");
}

#[test]
fn reasoning_of_each_turn_is_learnt_in_a_text_of_its_own_where_the_template_drops_it_from_earlier_ones()
 {
    let conversation = messages(&json!([{"role": "user", "content": "a"},
        {"role": "assistant", "content": "<think>\nHm.\n</think>\n\nb"},
        {"role": "user", "content": "c"},
        {"role": "assistant", "content": "<think>Oh.</think>d"}]));
    let views = family("qwen3").template().render_for_training(&conversation, &[]).unwrap();
    assert_eq!(views.len(), 2);
    assert_eq!(
        learnt(&views),
        ["<think>\nHm.\n</think>\n\nb<|im_end|>", "<think>\nOh.\n</think>\n\nd<|im_end|>"]
    );
    // As serving sends it, the history has no reasoning.
    assert!(!views[1].text.contains("Hm."), "{}", views[1].text);
}

#[test]
fn a_system_message_that_stands_before_the_last_question_is_trained_where_serving_sends_it() {
    let system = json!([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"},
        {"role": "assistant", "content": "d"}]);
    let mistral = family("mistral").template();
    let views = mistral.render_for_training(&messages(&system), &[]).unwrap();
    let texts: Vec<&str> = views.iter().map(|view| view.text.as_str()).collect();
    assert_eq!(
        texts,
        [
            "<s>[INST] Be brief.\n\na[/INST] b</s>",
            "<s>[INST] a[/INST] b</s>[INST] Be brief.\n\nc[/INST] d</s>"
        ]
    );
    assert_eq!(learnt(&views), [" b</s>", " d</s>"]);
}

#[test]
fn a_template_that_marks_what_the_assistant_says_writes_the_same_text() {
    let conversation = messages(&json!([{"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"}]));
    let said = |source: &str| {
        let control = vec!["<end>".to_owned()];
        let template = ChatTemplate::new(source, &control, "", "").unwrap();
        template.render_for_training(&conversation, &[])
    };
    let turn = |inner: &str| {
        format!(
            "{{% for m in messages %}}\n{{% if m.role == 'assistant' %}}\n{inner}\n{{% else %}}\n\
             {{{{ m.content }}}}<end>\n{{% endif %}}\n{{% endfor %}}"
        )
    };
    // Blocks take their own line with them, as Jinja's do.
    let inside =
        only(said(&turn("{% generation %}\n{{ m.content }}<end>{% endgeneration %}\n")).unwrap());
    assert_eq!(inside.text, "a<end>\nb<end>\n");
    assert_eq!(learnt(&[inside]), ["b<end>"]);
    let outside =
        said(&turn("{%- generation -%}{{ m.content }}{%- endgeneration -%}<end>")).unwrap();
    assert_eq!(learnt(&outside), ["b<end>"]);
    let never = said(&turn("{% generation %}{{ m.content }}{% endgeneration %}x")).unwrap_err();
    assert!(never.to_string().contains("no end-of-turn token follows"), "{never}");
}

#[test]
fn the_characters_that_stand_for_something_are_refused_in_messages() {
    let conversation = messages(&json!([{"role": "user", "content": "a\u{e002}"},
        {"role": "assistant", "content": "b"}]));
    for name in ["chatml", "marked"] {
        let error = family(name).template().render_for_training(&conversation, &[]).unwrap_err();
        assert!(
            error
                .to_string()
                .contains("message 0: the text holds the private-use character U+E002")
        );
    }
}
