//! Conversations become the tokens and the loss mask that transformers makes of them.
//!
//! `golden_templates.json` holds SmolLM2's template and what its tokenizer made of it. The tokenizer
//! itself comes with the model, so token ids are compared when `tests/run` has brought it; texts and
//! spans are compared always.

use std::path::{Path, PathBuf};

use hone::dataset::{Message, parse_messages};
use hone::domain::chat_template::ControlTokens;
use hone::train::data::sequence::Sequence;
use hone::train::data::tokenize::{EncodeError, encode_file};
use hone::train::model::base_model::BaseModel;
use hone::train::model::chat_template::{ChatTemplate, TemplateError, TrainingView};
use hone::train::model::template_sources::TemplateSources;
use hone::util::exact_json::ExactJson;
use serde_json::{Value, json};

use crate::train::real_model;

const CONTROL: [&str; 3] = ["<|im_start|>", "<|im_end|>", "<|endoftext|>"];

/// A case with control tokens inside of messages: transformers parses them, hone reads them as letters.
const LETTERS: &str = "special_token_text_inside";

fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name)
}

fn golden() -> Value {
    serde_json::from_slice(&std::fs::read(data("golden_templates.json")).unwrap()).unwrap()
}

fn template(source: &str, control: &[&str]) -> ChatTemplate {
    let control: Vec<String> = control.iter().map(|token| (*token).to_owned()).collect();
    ChatTemplate::new(source, &control, "<s>", "</s>").unwrap()
}

fn messages(value: &Value) -> Vec<Message> {
    parse_messages(value).unwrap()
}

/// What is learnt, as texts.
fn learnt(template: &ChatTemplate, conversation: &Value) -> Result<Vec<String>, TemplateError> {
    let views = template.render_for_training(&messages(conversation), &[])?;
    let turns = |view: &TrainingView| -> Vec<String> {
        view.supervised.iter().map(|span| view.text[span.clone()].to_owned()).collect()
    };
    Ok(views.iter().flat_map(turns).collect())
}

/// The only text of a conversation.
fn only(views: Vec<TrainingView>) -> TrainingView {
    let [view] = <[TrainingView; 1]>::try_from(views).expect("one view");
    view
}

#[test]
fn golden_conversations_render_to_the_text_and_spans_of_transformers() {
    let golden = golden();
    let template = template(golden["chat_template"].as_str().unwrap(), &CONTROL);
    for case in golden["cases"].as_array().unwrap() {
        if case["name"] == LETTERS {
            continue;
        }
        let conversation = messages(&case["messages"]);
        let rendered = template.render_for_training(&conversation, &[]).unwrap();
        // A conversation without a trained turn has no text to train on.
        let Some(rendered) = rendered.last() else { continue };
        assert_eq!(rendered.text, case["text"].as_str().unwrap(), "{}", case["name"]);
        let trained = conversation.iter().filter(|message| message.trained);
        let wanted: Vec<String> = trained
            .map(|message| format!("{}<|im_end|>", message.content.as_deref().unwrap()))
            .collect();
        assert_eq!(learnt(&template, &case["messages"]).unwrap(), wanted, "{}", case["name"]);

        let mut before = conversation.clone();
        if case["messages"].as_array().unwrap().last().unwrap()["role"] == "assistant" {
            before.pop();
        }
        let prompt = template.render_prompt(&before, &[]).unwrap();
        assert_eq!(prompt, case["prompt_text"].as_str().unwrap(), "{}", case["name"]);
    }
    assert_eq!(template.end_of_turn(CONTROL.into_iter()), Some("<|im_end|>"));
}

#[test]
fn golden_conversations_become_the_tokens_and_masks_of_transformers() {
    let Some(models_dir) = real_model::models_dir() else { return };
    let base = BaseModel::open(&real_model::gguf(&models_dir)).unwrap();
    assert!(base.tokenizer.stop_ids().contains(&2));
    let mut joined = 0;
    for case in golden()["cases"].as_array().unwrap() {
        let name = case["name"].as_str().unwrap();
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("one.jsonl");
        std::fs::write(&file, json!({"messages": case["messages"]}).to_string()).unwrap();
        let encoded = encode_file(&file, &base, 8192);
        let mut encoded = encoded.unwrap();
        let sequence = encoded.examples.remove(0).views.remove(0);
        if name == LETTERS {
            let text = encoded.warnings.listed[0].to_string();
            assert!(text.starts_with("line 1, message 0, key \"messages[0].content\""), "{text}");
            let turns = case["messages"].as_array().unwrap().len();
            let ends = sequence.input_ids.iter().filter(|id| **id == 2).count();
            // The template's own system message is a turn as well.
            assert_eq!(ends, turns + 1, "an end for each turn and none in the text");
            continue;
        }
        let ids: Vec<u64> = sequence.input_ids.iter().map(|id| u64::from(*id)).collect();
        let mask: Vec<u64> = sequence.loss_mask.iter().map(|counts| u64::from(*counts)).collect();
        let prompt: Vec<Value> = case["prompt_ids"].as_array().unwrap().clone();
        let is_joined = !case["input_ids"].as_array().unwrap().starts_with(&prompt)
            && case["messages"].as_array().unwrap().last().unwrap()["role"] == "assistant";
        if is_joined {
            // transformers makes one token of the end of the prompt and the beginning of the answer. Serving sends
            // the prompt's own tokens, so these are trained.
            assert_eq!(json!(ids[..prompt.len()]), case["prompt_ids"], "{name}");
            let text = base.tokenizer.decode(&sequence.input_ids[prompt.len()..]).unwrap();
            assert!(
                case["text"].as_str().unwrap().trim_end().ends_with(&format!("{text}<|im_end|>")),
                "{text:?}"
            );
            joined += 1;
            continue;
        }
        assert_eq!(json!(ids), case["input_ids"], "{name}");
        assert_eq!(json!(mask), case["loss_mask"], "{name}");
        let prompt = base.tokenizer.encode(case["prompt_text"].as_str().unwrap()).unwrap();
        let ids: Vec<u32> = prompt.into_iter().map(|(id, _)| id).collect();
        assert_eq!(json!(ids), case["prompt_ids"], "{name}");
    }
    assert_eq!(joined, 2, "answers that begin with spaces");
}

#[test]
fn text_of_a_control_token_in_a_message_is_trained_as_letters_with_a_warning() {
    let base = BaseModel::open(&data("tiny-llama")).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("train.jsonl");
    let good = json!({"messages": [{"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"}]});
    let bad = json!({"messages": [{"role": "user", "content": "a"},
        {"role": "assistant", "content": "b<|im_end|>"}]});
    std::fs::write(&file, format!("{good}\n\n{bad}\n")).unwrap();
    let encoded = encode_file(&file, &base, 512).unwrap();
    let text = encoded.warnings.listed[0].to_string();
    assert!(text.starts_with("line 3, message 1, key \"messages[1].content\""), "{text}");
    assert!(text.contains("\"<|im_end|>\""), "{text}");
    let [good, bad] = [0, 1].map(|index| &encoded.examples[index].views[0]);
    let ends = |sequence: &Sequence| sequence.input_ids.iter().filter(|id| **id == 2).count();
    assert_eq!(ends(good), ends(bad), "the template alone ends turns");
    let learnt: Vec<u32> = bad
        .input_ids
        .iter()
        .zip(&bad.loss_mask)
        .filter(|(_, counts)| **counts)
        .map(|(id, _)| *id)
        .collect();
    assert_eq!(base.tokenizer.decode(&learnt).unwrap(), "b<|im_end|>");
    assert_eq!(learnt.last(), Some(&2));
}

#[test]
fn control_tokens_in_any_text_are_named_and_refused_by_a_job_that_says_so() {
    let mut base = BaseModel::open(&data("tiny-llama")).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("train.jsonl");
    let chat = |content: &str, reasoning: &str, tools: Value| {
        json!({"messages": [{"role": "user", "content": content},
            {"role": "assistant", "content": "b", "reasoning_content": reasoning}], "tools": tools})
    };
    let tool =
        json!([{"type": "function", "function": {"name": "f", "description": "ends <|im_end|>"}}]);
    let cases = [
        (
            chat("<|im_start|>", "", Value::Null),
            "line 1, message 0, key \"messages[0].content\": the text holds \"<|im_start|>\"",
        ),
        (chat("a", "", tool), "line 1, key \"tools[0]\": the text holds \"<|im_end|>\""),
        (
            json!({"prompt": "a <|endoftext|>", "completion": "b"}),
            "line 1, key \"prompt\": the text holds \"<|endoftext|>\"",
        ),
        (
            json!({"prompt": "a", "completion": "<|im_start|>"}),
            "line 1, key \"completion\": the text holds \"<|im_start|>\"",
        ),
    ];
    for (line, expected) in cases {
        std::fs::write(&file, line.to_string()).unwrap();
        base.control_tokens = ControlTokens::Text;
        if line.get("tools").is_none_or(Value::is_null) {
            let encoded = encode_file(&file, &base, 512).unwrap();
            let warning = encoded.warnings.listed[0].to_string();
            assert!(warning.starts_with(expected), "{warning}");
            assert!(warning.contains("is trained as"), "{warning}");
        }
        base.control_tokens = ControlTokens::Refuse;
        let error = encode_file(&file, &base, 512).unwrap_err();
        let EncodeError::Diagnostics(problems) = error else { panic!("{error}") };
        assert_eq!(problems.total, 1);
        let problem = problems.listed[0].to_string();
        assert!(problem.starts_with(expected) && problem.contains("control_tokens"), "{problem}");
    }
}

#[test]
fn control_tokens_of_a_prompt_are_trained_as_completions_read_them() {
    let base = BaseModel::open(&data("tiny-llama")).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("train.jsonl");
    let (prompt, completion) = ("<|im_start|>user\na<|im_end|>\n", "<|im_start|>b");
    std::fs::write(&file, json!({"prompt": prompt, "completion": completion}).to_string()).unwrap();
    let encoded = encode_file(&file, &base, 512).unwrap();
    let sequence = &encoded.examples[0].views[0];
    let ids = |text: &str| {
        let tokens = base.tokenizer.encode(text).unwrap();
        tokens.into_iter().map(|(id, _)| id).collect::<Vec<u32>>()
    };
    let served = ids(prompt);
    let beginning = usize::from(base.tokenizer.special().adds_beginning);
    let (before, after) = sequence.input_ids[beginning..].split_at(served.len());
    assert_eq!(before, served, "the prompt is what completions read");
    assert_eq!(after, [ids(completion), vec![2]].concat(), "its answer, and the end");
    assert!(served.contains(&1), "{served:?}");
}

/// The tiny model with another template.
fn tiny_with(template: &str) -> BaseModel {
    let mut base = BaseModel::open(&data("tiny-llama")).unwrap();
    base.use_templates(TemplateSources::single(template)).unwrap();
    base
}

#[test]
fn no_text_of_tools_or_calls_becomes_a_control_token_wherever_it_stands() {
    let writes = |tools: &str| {
        format!(
            "{{% if tools %}}{{{{ {tools} }}}}<|im_end|>{{% endif %}}{{% for m in messages %}}<|im_start|>{{{{ m.role \
             }}}}\n{{{{ m.content }}}}{{% for c in m.tool_calls or [] %}}{{{{ c.function.name }}}}{{{{ \
             c.function.arguments | tojson }}}}{{{{ c.id }}}}{{% endfor %}}<|im_end|>{{% endfor %}}{{% if \
             add_generation_prompt %}}<|im_start|>assistant\n{{% endif %}}"
        )
    };
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("train.jsonl");
    let line = |description: &str, key: &str, arguments: &str, id: &str| {
        json!({"messages": [{"role": "user", "content": "a"},
            {"role": "assistant", "content": null, "tool_calls": [{"id": id, "type": "function",
             "function": {"name": "f", "arguments": arguments}}]},
            {"role": "tool", "tool_call_id": id, "content": "1"},
            {"role": "assistant", "content": "b"}],
            "tools": [{"type": "function", "function": {"name": "f", "description": description,
             "parameters": {"type": "object", "properties": {key: {"type": "string"}}}}}]})
    };
    let end = "<|im_end|>";
    for tools in ["tools | tojson", "tools | tojson(ensure_ascii=True)", "tools | string"] {
        let base = tiny_with(&writes(tools));
        let ends = |line: &Value| {
            std::fs::write(&file, line.to_string()).unwrap();
            let encoded = encode_file(&file, &base, 4096).unwrap();
            let ids = &encoded.examples[0].views[0].input_ids;
            (ids.iter().filter(|id| **id == 2).count(), base.tokenizer.decode(ids).unwrap())
        };
        let (plain, _) = ends(&line("d", "k", "{}", "c"));
        for (number, line) in [
            line(end, "k", "{}", "c"),
            line("d", end, "{}", "c"),
            line("d", "k", r#"{"<|im_end|>": 1}"#, "c"),
            line("d", "k", r#"{"x": ["<|im_\u0065nd|>"]}"#, "c"),
            line("d", "k", "{}", end),
        ]
        .iter()
        .enumerate()
        {
            let (marked, text) = ends(line);
            assert_eq!(marked, plain, "{tools}, {number}: {text}");
            assert!(text.contains("<|im_end|>") && !text.contains("ue004"), "{tools}: {text}");
        }
    }
    // The characters with which hone tells texts from tokens are refused, in escapes as well.
    let base = tiny_with(&writes("tools | tojson"));
    for forged in [
        line("\u{e005}<|im_end|>\u{e006}", "k", "{}", "c"),
        line("d", "\u{e005}<|im_end|>\u{e006}", "{}", "c"),
        line("d", "k", r#"{"x": "\ue005<|im_end|>\ue006"}"#, "c"),
        line("d", "k", "{}", "\u{e005}<|im_end|>\u{e006}"),
    ] {
        std::fs::write(&file, forged.to_string()).unwrap();
        let error = encode_file(&file, &base, 4096).unwrap_err();
        let EncodeError::Diagnostics(problems) = error else { panic!("{error}") };
        let problem = problems.listed[0].to_string();
        assert!(problem.contains("private-use character U+E005"), "{problem}");
    }
}

#[test]
fn special_tokens_reach_templates_by_the_names_that_transformers_gives_them() {
    let template =
        "{{ bos_token }}{{ pad_token }}{{ unk_token is defined }}{{ image_token }}{{ sep_token }}";
    let written = |config: Value, map: Option<Value>| {
        let folder = tempfile::tempdir().unwrap();
        for file in std::fs::read_dir(data("tiny-llama")).unwrap() {
            let file = file.unwrap().path();
            std::fs::copy(&file, folder.path().join(file.file_name().unwrap())).unwrap();
        }
        let path = |name: &str| folder.path().join(name);
        std::fs::write(path("tokenizer_config.json"), config.to_string()).unwrap();
        if let Some(map) = map {
            std::fs::write(path("special_tokens_map.json"), map.to_string()).unwrap();
        }
        std::fs::write(path("chat_template.jinja"), template).unwrap();
        let base = BaseModel::open(folder.path()).unwrap();
        base.template.unwrap().render_prompt(&[], &[]).unwrap()
    };
    let config = json!({"bos_token": {"content": "<|im_start|>"}, "pad_token": "<|endoftext|>",
        "unk_token": null, "extra_special_tokens": {"image_token": "<image>"}});
    assert_eq!(written(config.clone(), None), "<|im_start|><|endoftext|>False<image>");
    let map =
        json!({"pad_token": {"content": "<|im_end|>", "lstrip": false}, "sep_token": "<|im_end|>"});
    assert_eq!(
        written(config.clone(), Some(map.clone())),
        "<|im_start|><|im_end|>False<image><|im_end|>"
    );
    let mut listed = config;
    listed["added_tokens_decoder"] = json!({});
    assert_eq!(written(listed, Some(map)), "<|im_start|><|endoftext|>False<image>");
}

/// The tiny model with a changed `tokenizer.json`.
fn model_with(change: impl FnOnce(&mut Value)) -> (tempfile::TempDir, BaseModel) {
    let folder = tempfile::tempdir().unwrap();
    for file in std::fs::read_dir(data("tiny-llama")).unwrap() {
        let file = file.unwrap().path();
        std::fs::copy(&file, folder.path().join(file.file_name().unwrap())).unwrap();
    }
    let path = folder.path().join("tokenizer.json");
    let mut tokenizer = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    change(&mut tokenizer);
    std::fs::write(&path, tokenizer.to_string()).unwrap();
    let base = BaseModel::open(folder.path()).unwrap();
    (folder, base)
}

#[test]
fn a_token_without_a_row_in_the_embedding_is_a_problem_with_its_line() {
    let (folder, base) = model_with(|tokenizer| {
        let added = tokenizer["added_tokens"].as_array_mut().unwrap();
        added.extend((292..332).map(|id| {
            json!({"id": id, "content": format!("<t{}>", id - 292), "single_word": false, "lstrip": false,
                "rstrip": false, "normalized": false, "special": false})
        }));
    });
    let line = |answer: &str| json!({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": answer}]});
    let file = folder.path().join("train.jsonl");
    std::fs::write(&file, format!("{}\n{}\n", line("<t1> b"), line("<t39> Yes."))).unwrap();
    let error = encode_file(&file, &base, 512).unwrap_err();
    let EncodeError::Diagnostics(problems) = error else { panic!("{error}") };
    assert_eq!(problems.total, 1, "a token with a row is none");
    let text = problems.listed[0].to_string();
    assert!(text.starts_with("line 2, message 1"), "{text}");
    assert!(text.contains("331") && text.contains("<t39>") && text.contains("319"), "{text}");
}

#[test]
fn a_token_that_is_not_special_may_end_a_turn_and_is_letters_in_a_text() {
    let (folder, base) = model_with(|tokenizer| {
        tokenizer["added_tokens"][2]["special"] = false.into();
    });
    let file = folder.path().join("train.jsonl");
    let line = json!({"messages": [{"role": "user", "content": "a <|im_end|>"},
        {"role": "assistant", "content": "b"}]});
    std::fs::write(&file, line.to_string()).unwrap();
    let encoded = encode_file(&file, &base, 512).unwrap();
    assert!(base.tokenizer.stop_ids().contains(&2));
    let sequence = &encoded.examples[0].views[0];
    assert_eq!(sequence.input_ids.iter().filter(|id| **id == 2).count(), 2, "one for each turn");
    assert_eq!(sequence.targets(), 2, "the answer and its end");
}

#[test]
fn too_long_examples_are_counted_and_never_cut() {
    let base = BaseModel::open(&data("tiny-llama")).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("train.jsonl");
    let line = |text: &str| json!({"prompt": "q ", "completion": text}).to_string();
    std::fs::write(&file, format!("{}\n{}\n", line("short"), line(&"long ".repeat(40)))).unwrap();
    let encoded = encode_file(&file, &base, 50).unwrap();
    assert_eq!((encoded.examples.len(), encoded.too_long.len()), (1, 1));
    assert_eq!(encoded.examples[0].line, 1);
    assert_eq!(encoded.too_long[0].0, 2);
    assert!(encoded.too_long[0].1 > 50);
    let sequence = &encoded.examples[0].views[0];
    assert_eq!(sequence.input_ids.last(), Some(&2), "a completion ends with the end of text");
    let text: Vec<u32> = sequence
        .input_ids
        .iter()
        .zip(&sequence.loss_mask)
        .filter(|(_, counts)| **counts)
        .map(|(id, _)| *id)
        .collect();
    assert_eq!(base.tokenizer.decode(&text).unwrap(), "short", "only the completion is learnt");
}

#[test]
fn spans_are_found_in_templates_of_every_kind() {
    let two_turns = json!([
        {"role": "user", "content": "one"}, {"role": "assistant", "content": " first "},
        {"role": "user", "content": "two"}, {"role": "assistant", "content": "second"}]);

    let llama3 = "{{ bos_token }}{% for m in messages %}{{ '<|start|>' + m['role'] + '<|end|>\n\n' + \
                  (m['content'] | trim) + '<|eot|>' }}{% endfor %}{% if add_generation_prompt %}{{ \
                  '<|start|>assistant<|end|>\n\n' }}{% endif %}";
    let found = learnt(&template(llama3, &["<|start|>", "<|end|>", "<|eot|>"]), &two_turns);
    assert_eq!(found.unwrap(), ["first<|eot|>", "second<|eot|>"], "a template that trims");

    let mistral = "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}{{ '[INST] ' + \
                   m.content + ' [/INST]' }}{% elif m.role == 'assistant' %}{{ m.content + eos_token \
                   }}{% else %}{{ raise_exception('no ' + m.role) }}{% endif %}{% endfor %}";
    let mistral = template(mistral, &["<s>", "</s>", "[INST]", "[/INST]"]);
    assert_eq!(learnt(&mistral, &two_turns).unwrap(), [" first </s>", "second</s>"]);
    let with_system = json!([{"role": "system", "content": "x"}]);
    let error = mistral.render_prompt(&messages(&with_system), &[]).unwrap_err();
    assert!(error.to_string().contains("no system"), "{error}");

    let marked = "{% for m in messages %}{% if m.role == 'assistant' %}{{ '<a>' }}\
                  {%- generation -%}{{ m.content }}<end>{%- endgeneration %}{% else %}\
                  {{ '<u>' + m.content }}{% endif %}{% endfor %}";
    let marked = template(marked, &["<end>"]);
    // Serving's prompt does not write <a>: the model has to.
    assert_eq!(learnt(&marked, &two_turns).unwrap(), ["<a> first <end>", "<a>second<end>"]);
    let mut half = two_turns.clone();
    half[1]["weight"] = 0.into();
    assert_eq!(learnt(&marked, &half).unwrap(), ["<a>second<end>"], "weight 0 is not learnt");
}

#[test]
fn a_span_that_cannot_be_located_is_an_error_and_never_a_guess() {
    let conversation =
        json!([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]);
    let fails = |source: &str, want: &str| {
        let error = learnt(&template(source, &["<end>"]), &conversation).unwrap_err();
        assert!(error.to_string().contains(want), "{error}");
        assert!(error.to_string().starts_with("message 1"), "{error}");
    };
    let all = |inner: &str| format!("{{% for m in messages %}}{inner}{{% endfor %}}");
    fails(&all("{{ m.content }}\n"), "no end-of-turn token follows");
    fails(&all("{{ m.content | upper }}<end>"), "changes the assistant's message itself");
    fails(&all("{{ m.content }}{{ m.content }}<end>"), "exactly once");
    fails(&all("{{ m.content | length }}{{ m.content }}<end>"), "changes the text around");
    fails(&all("{% if m.role == 'user' %}{{ m.content }}{% endif %}<end>"), "does not write");
}

#[test]
fn tools_render_where_the_template_supports_them_and_are_refused_elsewhere() {
    let with_calls = json!([{"role": "user", "content": "a"},
        {"role": "assistant", "content": null, "tool_calls": [{"id": "c", "type": "function",
         "function": {"name": "add", "arguments": "{\"x\": 1}"}}]},
        {"role": "tool", "tool_call_id": "c", "content": "2"},
        {"role": "assistant", "content": "done"}]);
    let tool = r#"{"type": "function", "function": {"name": "add"}}"#;
    let tools = [ExactJson::read(tool).unwrap()];
    let plain = template("{% for m in messages %}{{ m.content }}<end>{% endfor %}", &["<end>"]);
    let error = plain.render_for_training(&messages(&with_calls), &[]).unwrap_err();
    assert!(matches!(error, TemplateError::NoToolCalls { message_index: 1 }), "{error}");
    // One that joins texts, and to which null is none.
    let joins = template(
        "{% for m in messages %}{{ '<m>' + m.content + '<end>' }}{% endfor %}",
        &["<end>"],
    );
    let error = joins.render_for_training(&messages(&with_calls), &[]).unwrap_err();
    assert!(matches!(error, TemplateError::NoToolCalls { message_index: 1 }), "{error}");
    let source = "{% for m in messages %}{{ '<m>' + m.content }}{% for c in m.tool_calls or [] %}\
                  {{ c.function | tojson }}{% endfor %}{{ '<end>' }}{% endfor %}";
    let joins = template(source, &["<end>"]);
    let rendered = only(joins.render_for_training(&messages(&with_calls), &[]).unwrap());
    assert!(rendered.text.contains("<m>{\"name\": \"add\""), "{}", rendered.text);
    let source = "{% if tools %}{{ tools | tojson }}<end>{% endif %}{% for m in messages %}<m>{% if \
                  m.tool_calls %}{% for c in m.tool_calls %}{{ c.function | tojson }}{% endfor %}\
                  {% else %}{{ m.content }}{% endif %}<end>{% endfor %}{% if add_generation_prompt \
                  %}<m>{% endif %}";
    let template = template(source, &["<end>"]);
    let rendered = only(template.render_for_training(&messages(&with_calls), &tools).unwrap());
    assert!(rendered.text.starts_with(
        "[{\"type\": \"function\", \"function\": {\"name\": \"add\"}}]<end><m>a<end>"
    ));
    let spans: Vec<&str> =
        rendered.supervised.iter().map(|span| &rendered.text[span.clone()]).collect();
    assert_eq!(spans, ["{\"name\": \"add\", \"arguments\": {\"x\": 1}}<end>", "done<end>"]);
}

#[test]
fn an_endless_template_ends_as_an_error() {
    let source = "{% for a in range(99999) %}{% for b in range(99999) %}x{% endfor %}{% endfor %}";
    let conversation = json!([{"role": "user", "content": "a"}]);
    let error = template(source, &[]).render_prompt(&messages(&conversation), &[]).unwrap_err();
    assert!(matches!(error, TemplateError::Limit(_)), "{error}");
}
