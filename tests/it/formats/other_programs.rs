//! The programs that adapters and models go to, as judges: PEFT and transformers for every architecture,
//! llama.cpp for every architecture and for SmolLM2. `tests/run` brings them; without them these tests
//! say that they did not run.

use std::path::{Path, PathBuf};

use hone::artifacts::model::{FOLDER, WeightType};
use hone::artifacts::peft;
use hone::dataset::{Message, Role};
use hone::domain::chat_template::ChatTemplateSettings;
use hone::domain::job::{Auto, FineTuneMode, Hyperparameters};
use hone::export::{ExportFormat, OpenedModel, Quantization};
use hone::train::engine::BackendKind;
use hone::train::protocol::{Progress, RunSpec};
use hone::train::run::run;
use serde_json::{Value, json};

use crate::formats::export::{FAMILIES, Model, TOKENS, base_of, change, export, merge, store_as};
use crate::train::golden::read_json;
use crate::train::real_model::{gguf, given, models_dir, save_logits, script, succeed};

/// A lead of the best token over the second that rounding to 16 bits can turn around. Logits of these
/// models reach 30, of which 16 bits keep 0.02.
const SMALL_LEAD: f32 = 0.1;

/// The same of a token's log-probability, in nats.
const SMALL_DIFFERENCE: f32 = 0.1;

/// Prompts for the tiny models: below the smallest sliding window together with what is continued.
fn tiny_prompts() -> Vec<Vec<u32>> {
    (0..10).map(|start| TOKENS[start..].iter().chain(&TOKENS).take(4).copied().collect()).collect()
}

/// Logits of a few texts, as the file with which `peft_compare.py` compares.
fn write_logits(model: &Model, texts: &[Vec<u32>], target: &Path) {
    save_logits(texts.iter().map(|ids| (&ids[..], model.logits(ids))), target);
}

#[test]
fn peft_and_transformers_compute_the_same_with_every_familys_adapter_and_merged_model() {
    let Some(python) = given("HONE_TEST_PYTHON") else { return };
    let texts: Vec<Vec<u32>> = (0..4).map(|start| TOKENS[start..start + 8].to_vec()).collect();
    let root = tempfile::tempdir().expect("a folder");
    // One process for all of them: importing PyTorch takes longer than what it computes here.
    let mut compare = script(&python, "peft_compare.py");
    for family in FAMILIES {
        let folder = root.path().join(family);
        std::fs::create_dir(&folder).expect("makes");
        let (base, adapter) = base_of(family, &folder);
        let logits = folder.join("logits.safetensors");
        write_logits(&Model::load(&base, Some(&adapter)), &texts, &logits);
        let tuned = OpenedModel::open("ft:test", &base, Some(&adapter)).expect("opens");
        for format in [ExportFormat::Peft, ExportFormat::Merged] {
            let made = export(&tuned, format, Quantization::F16, &folder);
            compare.args([&base, &made, &logits]);
        }
    }
    let said = succeed(&mut compare);
    assert_eq!(said.matches("largest difference").count(), 2 * FAMILIES.len());
}

/// A copy of the tiny model whose configuration knows nothing of the token that its template ends turns with, and
/// names code that is not there. Its weights have 16 bits.
fn base_with_another_end(folder: &Path) -> PathBuf {
    let tiny = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/tiny-llama");
    let base = folder.join("base");
    std::fs::create_dir(&base).expect("makes");
    for name in ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"] {
        std::fs::copy(tiny.join(name), base.join(name)).expect("copies");
    }
    store_as(&base, WeightType::Bfloat16);
    change(&base.join("config.json"), |config| {
        config["eos_token_id"] = 0.into();
        config["auto_map"] = json!({
            "AutoConfig": "configuration_x.XConfig",
            "AutoModelForCausalLM": "modeling_x.XForCausalLM",
        });
        config["quantization_config"] =
            json!({"quant_method": "bitsandbytes", "load_in_4bit": true});
    });
    change(&base.join("generation_config.json"), |config| {
        *config = json!({"bos_token_id": 1, "eos_token_id": 0});
    });
    change(&base.join("tokenizer_config.json"), |config| {
        config["eos_token"] = "<|endoftext|>".into();
        config["auto_map"] = json!({"AutoTokenizer": [null, "tokenization_x.XTokenizer"]});
    });
    base
}

#[test]
fn merged_folders_answer_and_stop_in_transformers_as_they_were_taught() {
    let Some(python) = given("HONE_TEST_PYTHON") else { return };
    let (question, answer) = ("What is it?", "Yes, it is.");
    for (tuning, learning_rate) in [(FineTuneMode::Lora, 1e-2), (FineTuneMode::Full, 3e-3)] {
        let folder = tempfile::tempdir().expect("a folder");
        let base = base_with_another_end(folder.path());
        let line = json!({"messages": [
            {"role": "user", "content": question}, {"role": "assistant", "content": answer},
        ]});
        let training_file = folder.path().join("train.jsonl");
        std::fs::write(&training_file, format!("{line}\n").repeat(10)).expect("writes");
        let spec = RunSpec {
            base_model: base.clone(),
            base_model_id: "base".to_owned(),
            continue_from: None,
            training_file,
            validation_file: None,
            work_dir: folder.path().join("run"),
            seed: 1,
            hyperparameters: Hyperparameters {
                n_epochs: Auto::Value(30),
                batch_size: Auto::Value(2),
                learning_rate: Some(learning_rate),
                tuning: Some(tuning),
                ..Hyperparameters::default()
            },
            chat_template: ChatTemplateSettings::default(),
            training_date: None,
        };
        let mut said = Vec::new();
        run(&spec, BackendKind::Cpu, &mut |progress| said.push(progress), &mut || None);
        let Some(Progress::Finished { directory, .. }) = said.last() else { panic!("{said:?}") };
        let mut folders = Vec::new();
        if tuning == FineTuneMode::Lora {
            let tuned = OpenedModel::open("ft:test", &base, Some(directory)).expect("opens");
            for weight_type in [None, Some(WeightType::Float32)] {
                folders.push(merge(&tuned, weight_type, folder.path()).0);
            }
        } else {
            let notes = format!("{said:?}");
            assert!(notes.contains("auto_map") && notes.contains("quantization_config"), "{notes}");
            folders.push(directory.join(FOLDER));
        }
        for made in folders {
            succeed(script(&python, "merged_answers.py").arg(made).args([question, answer]));
        }
    }
}

/// The text between three quotes behind a word of a Modelfile.
fn quoted(modelfile: &str, word: &str) -> Option<String> {
    let (_, rest) = modelfile.split_once(&format!("\n{word} \"\"\""))?;
    Some(rest.split_once("\"\"\"").expect("it ends").0.to_owned())
}

/// Chats that Ollama's language and the model's own template must write alike.
fn chats() -> Vec<Value> {
    let turn = |role: &str, content: &str| json!({"role": role, "content": content});
    let system = turn("system", "Be \"brief\".\n\nAlways: {{ yes }}.");
    let turns = [
        turn("user", "What is 1 < 2 & 3?\nSay."),
        turn("assistant", "It is 'so'."),
        turn("user", "Why – 東京?"),
        turn("assistant", "Because."),
        turn("user", "And?"),
    ];
    let mut chats = Vec::new();
    for length in [1, 3, 5] {
        chats.push(json!(turns[..length]));
        chats.push(json!([std::slice::from_ref(&system), &turns[..length]].concat()));
    }
    chats
}

#[test]
fn gos_template_language_writes_the_prompts_of_each_familys_chat_template() {
    let Some(go) = given("HONE_TEST_GO") else { return };
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data");
    let (mut cases, mut wanted) = (Vec::new(), Vec::new());
    for name in [
        "chatml", "gemma2", "gemma3", "llama2", "llama3", "mistral", "phi3", "qwen2", "qwen3",
        "zephyr",
    ] {
        let folder = tempfile::tempdir().expect("a folder");
        let (base, adapter) = base_of("llama", folder.path());
        let template = data.join("templates").join(format!("{name}.jinja"));
        std::fs::copy(template, base.join("chat_template.jinja")).expect("copies");
        let tuned = OpenedModel::open("ft:test", &base, Some(&adapter)).expect("opens");
        let made = export(&tuned, ExportFormat::GgufLora, Quantization::F16, folder.path());
        let modelfile = std::fs::read_to_string(made.join("Modelfile")).expect("reads");
        let template =
            quoted(&modelfile, "TEMPLATE").unwrap_or_else(|| panic!("{name}: {modelfile}"));
        let system = quoted(&modelfile, "SYSTEM").unwrap_or_default();
        for chat in chats() {
            let messages = hone::dataset::parse_messages(&chat).expect("messages");
            let own = tuned.base.template.as_ref().expect("a template");
            let Ok(prompt) = own.render_prompt(&messages, &[]) else { continue };
            cases.push(json!({"template": template, "system": system, "messages": chat}));
            wanted.push((name, prompt));
        }
    }
    assert!(wanted.len() >= 50, "{} chats", wanted.len());
    let cases_file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(cases_file.path(), json!(cases).to_string()).expect("writes");
    let mut command = std::process::Command::new(go);
    command.arg("run").arg("tests/go/ollama_template.go").current_dir(env!("CARGO_MANIFEST_DIR"));
    command.stdin(std::fs::File::open(cases_file.path()).expect("opens"));
    let made: Vec<String> = serde_json::from_str(&succeed(&mut command)).expect("prompts");
    for ((name, wanted), made) in wanted.iter().zip(&made) {
        assert_eq!(made, wanted, "{name}");
    }
    assert_eq!(made.len(), wanted.len());
}

/// llama.cpp's likeliest tokens after a prompt, each with its log-probability, which is not told of bytes
/// that are no whole character.
type Told = Vec<(u32, Option<f32>)>;

/// What llama.cpp says to prompts.
fn llama_cpp(
    python: &Path,
    model: &Path,
    lora: Option<&Path>,
    prompts: &[Vec<u32>],
    most: usize,
    folder: &Path,
) -> Vec<Told> {
    let (asked, told) = (folder.join("asked.json"), folder.join("told.json"));
    let prompts: Vec<Value> =
        prompts.iter().map(|ids| json!({"tokens": ids, "most": most})).collect();
    std::fs::write(&asked, json!({"prompts": prompts}).to_string()).expect("writes");
    let lora = lora.unwrap_or(Path::new("-"));
    succeed(script(python, "llama_cpp.py").args([model, lora, &asked, &told]));
    let told = read_json(&told);
    told["continued"].as_array().expect("a list").iter().map(tokens_of).collect()
}

/// The tokens of a reply of llama.cpp's.
fn tokens_of(answer: &Value) -> Told {
    let tokens = answer["tokens"].as_array().unwrap_or_else(|| panic!("no tokens: {answer}"));
    let likely = answer["completion_probabilities"].as_array().cloned().unwrap_or_default();
    let mut told = Told::new();
    for (place, token) in tokens.iter().enumerate() {
        // Where some are left out: of a token that comes twice, which one is meant is not known.
        let is_alone = tokens.iter().filter(|other| *other == token).count() == 1;
        let found = match likely.len() == tokens.len() {
            true => likely.get(place),
            false => likely.iter().find(|one| is_alone && one["id"] == *token),
        };
        assert!(found.is_none_or(|one| one["id"] == *token), "of another token: {answer}");
        let log_probability = found.and_then(|one| one["logprob"].as_f64());
        let id = token.as_u64().expect("an id") as u32;
        told.push((id, log_probability.map(|number| number as f32)));
    }
    told
}

/// How far llama.cpp's answers are from hone's own.
struct Compared {
    /// Texts that are the same to the end.
    same: usize,
    /// Largest difference of a log-probability, up to the first other token of a text.
    apart: f32,
    /// Log-probabilities that were compared.
    likely: usize,
}

/// Compares with hone's own tokens: the same, each about as likely; or another one at a place where
/// hone's best token leads by next to nothing, which ends the comparison of that text.
fn compare(
    what: &str,
    model: &Model,
    prompts: &[Vec<u32>],
    told: &[Told],
    most: usize,
) -> Compared {
    let mut compared = Compared { same: 0, apart: 0.0, likely: 0 };
    for (prompt, told) in prompts.iter().zip(told) {
        let wanted = model.greedy(prompt, most);
        // It keeps the tokens of a character that has not ended to itself: four bytes at most.
        assert!((most - 3..=most).contains(&told.len()), "{what}: {} tokens", told.len());
        // Where hone's answer is over, llama.cpp was told to go on with another token.
        let ends = model.base.tokenizer.stop_ids();
        let end = wanted.iter().position(|wanted| ends.contains(&wanted.id)).unwrap_or(most);
        let told = &told[..told.len().min(end)];
        let same = wanted.iter().zip(told).take_while(|(wanted, told)| wanted.id == told.0).count();
        for (wanted, (_, told)) in wanted.iter().zip(told).take(same) {
            let Some(told) = told else { continue };
            let apart = (wanted.log_probability - told).abs();
            assert!(apart < SMALL_DIFFERENCE, "{what}: {} and {told}", wanted.log_probability);
            compared.apart = compared.apart.max(apart);
            compared.likely += 1;
        }
        if same == told.len() {
            compared.same += 1;
            continue;
        }
        let lead = wanted[same].lead;
        println!("{what}: token {same} is another, where hone's leads by {lead:.4}");
        assert!(lead < SMALL_LEAD, "{what}: token {same} is another, a lead of {lead}");
    }
    println!(
        "{what}: {} of {} texts are the same to the end, {} log-probabilities differ by up to {:.4}",
        compared.same,
        prompts.len(),
        compared.likely,
        compared.apart
    );
    assert!(compared.likely > 0, "{what}: no log-probability was compared");
    compared
}

#[test]
fn llama_cpp_continues_as_hone_does_with_every_familys_adapter_and_model() {
    let Some(python) = given("HONE_TEST_PYTHON") else { return };
    let prompts = tiny_prompts();
    for family in FAMILIES {
        let folder = tempfile::tempdir().expect("a folder");
        let (base, adapter) = base_of(family, folder.path());
        let model = Model::load(&base, Some(&adapter));
        let tuned = OpenedModel::open("ft:test", &base, Some(&adapter)).expect("opens");
        let merged = export(&tuned, ExportFormat::Gguf, Quantization::F16, folder.path());
        let merged = merged.join("model.gguf");
        let told = llama_cpp(&python, &merged, None, &prompts, 8, folder.path());
        assert!(compare(&format!("{family} merged"), &model, &prompts, &told, 8).same >= 5);

        // The base alone as llama.cpp takes it, and the adapter beside it.
        let plain = OpenedModel::open("base", &base, None).expect("opens");
        let beside = tempfile::tempdir().expect("a folder");
        let plain = export(&plain, ExportFormat::Gguf, Quantization::F16, beside.path());
        let lora = export(&tuned, ExportFormat::GgufLora, Quantization::F16, folder.path());
        let (plain, lora) = (plain.join("model.gguf"), lora.join("adapter.gguf"));
        let told = llama_cpp(&python, &plain, Some(&lora), &prompts, 8, folder.path());
        let compared = compare(&format!("{family} lora"), &model, &prompts, &told, 8);
        assert!(compared.same >= 5);
        // Without it some token is another, or by far not as likely.
        let alone = llama_cpp(&python, &plain, None, &prompts, 8, folder.path());
        let both = told.iter().flatten().zip(alone.iter().flatten());
        let effect = both.map(|(with, without)| match (with.1, without.1) {
            _ if with.0 != without.0 => f32::INFINITY,
            (Some(with), Some(without)) => (with - without).abs(),
            _ => 0.0,
        });
        let effect = effect.fold(0.0, f32::max);
        assert!(effect > 10.0 * compared.apart, "{family}: the adapter does hardly anything");
    }
}

/// Trains SmolLM2 for a few steps and returns the folder of the adapter.
fn trained(base: &Path, folder: &Path) -> PathBuf {
    let all = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/lighthouse.jsonl");
    let all = std::fs::read_to_string(all).expect("reads");
    let examples = folder.join("train.jsonl");
    let few: Vec<&str> = all.lines().take(12).collect();
    std::fs::write(&examples, few.join("\n")).expect("writes");
    let spec = RunSpec {
        base_model: base.to_owned(),
        base_model_id: "smollm2-135m-instruct".to_owned(),
        continue_from: None,
        training_file: examples,
        validation_file: None,
        work_dir: folder.join("run"),
        seed: 1,
        chat_template: ChatTemplateSettings::default(),
        training_date: None,
        hyperparameters: Hyperparameters {
            n_epochs: Auto::Value(2),
            batch_size: Auto::Value(4),
            learning_rate: Some(1e-3),
            ..Hyperparameters::default()
        },
    };
    let mut last = None;
    run(&spec, BackendKind::Cpu, &mut |progress| last = Some(progress), &mut || None);
    match last {
        Some(Progress::Finished { directory, .. }) => directory,
        other => panic!("it did not finish: {other:?}"),
    }
}

/// What SmolLM2 is asked.
const QUESTIONS: [&str; 10] = [
    "What is the capital of Portugal?",
    "How do I boil an egg?",
    "Write one sentence about the sea.",
    "What is 12 times 11?",
    "Name three colours.",
    "Who wrote Hamlet?",
    "Translate \"good morning\" into French.",
    "Why is the sky blue?",
    "List 2 facts about the year 1969.",
    "Tell me a joke.",
];

#[test]
#[ignore = "long: tests/long runs it"]
fn llama_cpp_and_transformers_take_smollm2_as_it_was_trained_from_its_gguf_file() {
    let (Some(models_dir), Some(python)) = (models_dir(), given("HONE_TEST_PYTHON")) else {
        return;
    };
    let folder = tempfile::tempdir().expect("a folder");
    let base = gguf(&models_dir);
    let adapter = trained(&base, folder.path());
    let model = Model::load(&base, Some(&adapter));
    let tuned = OpenedModel::open("ft:smollm2", &base, Some(&adapter)).expect("opens");
    let template = model.base.template.as_ref().expect("a template");
    let mut prompts = Vec::new();
    let mut asked = Vec::new();
    for question in QUESTIONS {
        let message = Message::text(Role::User, question);
        let text = template.render_prompt(&[message], &[]).expect("renders");
        let tokens = model.base.tokenizer.encode(&text).expect("encodes");
        let ids: Vec<u32> = tokens.into_iter().map(|(id, _)| id).collect();
        asked.push(json!({"question": question, "tokens": ids}));
        prompts.push(ids);
    }

    let merged = export(&tuned, ExportFormat::Merged, Quantization::F16, folder.path());
    let (logits, questions) =
        (folder.path().join("logits.safetensors"), folder.path().join("questions.json"));
    write_logits(&model, &prompts[..4], &logits);
    succeed(script(&python, "peft_compare.py").args([&base, &merged, &logits]));
    // Tokens and template of the merged folder, in transformers, are those of hone.
    std::fs::write(&questions, json!(asked).to_string()).expect("writes");
    succeed(script(&python, "merged_tokens.py").args([&merged, &questions]));

    let most = 48;
    let made =
        export(&tuned, ExportFormat::Gguf, Quantization::F16, folder.path()).join("model.gguf");
    let told = llama_cpp(&python, &made, None, &prompts, most, folder.path());
    assert!(compare("smollm2 f16", &model, &prompts, &told, most).same >= 7);

    // The adapter beside the base in 16 bits: the file that was the base has four.
    let plain = OpenedModel::open("smollm2", &base, Some(&neutral(&adapter, folder.path())));
    let beside = tempfile::tempdir().expect("a folder");
    let plain =
        export(&plain.expect("opens"), ExportFormat::Gguf, Quantization::F16, beside.path());
    let lora = export(&tuned, ExportFormat::GgufLora, Quantization::F16, folder.path());
    let (plain, lora) = (plain.join("model.gguf"), lora.join("adapter.gguf"));
    let told = llama_cpp(&python, &plain, Some(&lora), &prompts, most, folder.path());
    assert!(compare("smollm2 lora", &model, &prompts, &told, most).same >= 7);

    // 8 bits are another model; they must load and answer.
    let made =
        export(&tuned, ExportFormat::Gguf, Quantization::Q8_0, folder.path()).join("model.gguf");
    let told = llama_cpp(&python, &made, None, &prompts[..2], 16, folder.path());
    assert!(told.iter().all(|tokens| tokens.len() == 16), "{told:?}");
    // And the file that was the base takes the adapter as well, as `llama-cli --lora` does.
    let told = llama_cpp(&python, &base, Some(&lora), &prompts[..2], 16, folder.path());
    assert!(told.iter().all(|tokens| tokens.len() == 16), "{told:?}");
}

/// An adapter that changes nothing, for a base that is exported as it is.
fn neutral(adapter: &Path, folder: &Path) -> PathBuf {
    let bytes = |name| std::fs::read(adapter.join(name)).expect("it is there");
    let (config, mut tensors) =
        peft::read(&bytes(peft::CONFIG_FILE), &bytes(peft::WEIGHTS_FILE)).expect("an adapter");
    for (name, (_, values)) in &mut tensors {
        if name.contains("lora_B") {
            values.fill(0.0);
        }
    }
    let target = folder.join("neutral");
    std::fs::create_dir(&target).expect("makes");
    peft::write(&target, &config, &tensors).expect("writes");
    target
}
