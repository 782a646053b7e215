//! Parses examples and messages, with a diagnostic for every problem.

mod messages;
mod plain;
mod schema_nulls;
mod tools;

use serde::Deserialize;
// Objects of a line are read once and have few keys, so they are lists of borrowed keys, not maps.
use serde_json_borrow::{ObjectAsVec as Object, Value};

use super::{Diagnostic, Diagnostics, Example, Message, Role};
use crate::util::duplicate_key::{self, DuplicateKey};
use crate::util::excerpt::{excerpt, excerpt_of};

pub use plain::plain_format;
pub use schema_nulls::drop_schema_nulls;
pub use tools::tool_of_function;

/// Parses one line. Errors go to `problems`, warnings to `warnings`, each with line, message index and key.
/// `None` when the line cannot be used.
pub fn parse_example(
    line: u64,
    text: &str,
    problems: &mut Diagnostics,
    warnings: &mut Diagnostics,
) -> Option<Example> {
    let mut parser =
        ExampleParser { line, text, problems, warnings, problems_found: 0, list: "messages" };
    let value: Value<'_> = match serde_json::from_str(text) {
        Ok(value) => value,
        Err(error) => {
            parser.problem(None, None, format!("not valid JSON: {}", without_line(&error)));
            return None;
        }
    };
    let Value::Object(object) = &value else {
        parser.problem(None, None, format!("expected an object, found {}", kind(&value)));
        return None;
    };
    if let Some(DuplicateKey { path, list_index }) = duplicate_key::find(&value) {
        let is_of_tools = path
            .split_once('[')
            .is_some_and(|(list, _)| list.ends_with("tools") || list.ends_with("functions"));
        let message_index = list_index.filter(|_| !is_of_tools);
        let text = "the key occurs twice: keep one of them".to_owned();
        parser.problem(message_index, Some(excerpt(&path).into_owned()), text);
        return None;
    }
    let example = if object.contains_key("messages") {
        parser.chat(object)
    } else if object.contains_key("input") {
        parser.preference(object)
    } else if object.contains_key("prompt") || object.contains_key("completion") {
        parser.prompt_completion(object)
    } else {
        let keys: Vec<&str> = object.keys().collect();
        let message = format!(
            "expected \"messages\", or \"prompt\" and \"completion\", or \"input\" with \
             \"preferred_output\" and \"non_preferred_output\"; found the keys {}",
            excerpt_of(format_args!("{keys:?}"))
        );
        parser.problem(None, None, message);
        None
    };
    if parser.problems_found > 0 { None } else { example }
}

/// Parses the messages of a chat request by the rules of training files; the first problem, if any. An
/// assistant's message is not required.
pub fn parse_messages(messages: &serde_json::Value) -> Result<Vec<Message>, Diagnostic> {
    let (mut problems, mut warnings) = (Diagnostics::default(), Diagnostics::default());
    let mut parser = ExampleParser {
        line: 0,
        text: "",
        problems: &mut problems,
        warnings: &mut warnings,
        problems_found: 0,
        list: "messages",
    };
    let mut parsed = Vec::new();
    match Value::deserialize(messages) {
        Ok(messages) => parsed = parser.messages(&messages),
        Err(error) => parser.problem(None, Some("messages".to_owned()), error.to_string()),
    }
    match problems.listed.into_iter().next() {
        Some(problem) => Err(problem),
        None => Ok(parsed),
    }
}

/// serde_json's message without its line, which is always 1 here.
fn without_line(error: &serde_json::Error) -> String {
    let text = error.to_string();
    match text.rsplit_once(" at line ") {
        Some((what, _)) => format!("{what} at column {}", error.column()),
        None => text,
    }
}

/// The kind of a value, for texts to the user.
fn kind(value: &Value<'_>) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::Str(_) => "a text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

/// Parses one line.
struct ExampleParser<'a> {
    line: u64,
    /// The line as it is written.
    text: &'a str,
    problems: &'a mut Diagnostics,
    warnings: &'a mut Diagnostics,
    /// Problems of this line.
    problems_found: usize,
    /// Path of the list of messages that is being parsed.
    list: &'static str,
}

impl ExampleParser<'_> {
    fn problem(&mut self, message_index: Option<usize>, key: Option<String>, message: String) {
        self.problems_found += 1;
        self.problems.push(Diagnostic { line: self.line, message_index, key, message });
    }

    fn warning(&mut self, message_index: Option<usize>, key: Option<String>, message: String) {
        self.warnings.push(Diagnostic { line: self.line, message_index, key, message });
    }

    fn unknown_keys(&mut self, object: &Object<'_>, known: &[&str], message_index: Option<usize>) {
        for key in object.keys().filter(|key| !known.contains(key)) {
            self.warning(message_index, Some(key.to_owned()), "unknown key, ignored".to_owned());
        }
    }

    fn prompt_completion(&mut self, object: &Object<'_>) -> Option<Example> {
        self.unknown_keys(object, &["prompt", "completion"], None);
        let mut text = |key: &str| match object.get(key) {
            Some(Value::Str(text)) => Some(text.clone().into_owned()),
            Some(other) => {
                let message = format!("expected a text, found {}", kind(other));
                self.problem(None, Some(key.to_owned()), message);
                None
            }
            None => {
                self.problem(None, Some(key.to_owned()), "the key is missing".to_owned());
                None
            }
        };
        let (prompt, completion) = (text("prompt"), text("completion")?);
        if completion.is_empty() {
            let message = "the completion is empty: there is nothing to train on".to_owned();
            self.problem(None, Some("completion".to_owned()), message);
        }
        Some(Example::PromptCompletion { prompt: prompt?, completion })
    }

    fn chat(&mut self, object: &Object<'_>) -> Option<Example> {
        let known = ["messages", "tools", "parallel_tool_calls", "functions"];
        self.unknown_keys(object, &known, None);
        let messages = self.messages(object.get("messages")?);
        let tools = self.tools(object, None);
        if self.problems_found > 0 {
            return None;
        }
        let has_supervised = messages.iter().any(|message| {
            message.role == Role::Assistant
                && message.trained
                && (message.content.is_some() || !message.tool_calls.is_empty())
        });
        if !has_supervised {
            let message = "no assistant message with content and a weight other than 0: there is \
                           nothing to train on";
            self.problem(None, Some("messages".to_owned()), message.to_owned());
        }
        if let Some(last) = messages.last()
            && last.role != Role::Assistant
        {
            let message =
                "the last message is not the assistant's; it is rendered but not trained on";
            self.warning(Some(messages.len() - 1), Some("role".to_owned()), message.to_owned());
        }
        Some(Example::Chat { messages, tools })
    }

    fn preference(&mut self, object: &Object<'_>) -> Option<Example> {
        let known = [
            "input",
            "preferred_output",
            "preferred_completion",
            "non_preferred_output",
            "non_preferred_completion",
        ];
        self.unknown_keys(object, &known, None);
        let Some(input) = object.get("input").and_then(Value::as_object) else {
            let message = "expected an object with \"messages\"".to_owned();
            self.problem(None, Some("input".to_owned()), message);
            return None;
        };
        self.unknown_keys(input, &["messages", "tools", "parallel_tool_calls"], None);
        self.list = "input.messages";
        let mut messages = self.messages(input.get("messages").unwrap_or(&Value::Null));
        // Only the answer is supervised.
        for message in &mut messages {
            message.trained = false;
        }
        let tools = self.tools(input, Some("input"));
        let preferred = self.answer(object, ["preferred_output", "preferred_completion"]);
        let other = self.answer(object, ["non_preferred_output", "non_preferred_completion"]);
        let (preferred, other) = (preferred?, other?);
        if preferred == other {
            let message = "both answers are the same: there is nothing to prefer".to_owned();
            self.problem(None, Some("preferred_output".to_owned()), message);
        }
        Some(Example::Preference { messages, tools, answers: Box::new([preferred, other]) })
    }

    /// The one assistant message under one of two spellings.
    fn answer(&mut self, object: &Object<'_>, spellings: [&'static str; 2]) -> Option<Message> {
        let given = spellings.into_iter().find_map(|name| Some((name, object.get(name)?)));
        let Some((name, answer)) = given else {
            self.problem(None, Some(spellings[0].to_owned()), "the key is missing".to_owned());
            return None;
        };
        self.list = name;
        let before = self.problems_found;
        let mut messages = self.messages(answer);
        let only = messages.pop();
        match only {
            _ if self.problems_found > before => None,
            Some(message) if messages.is_empty() && message.role == Role::Assistant => {
                Some(Message { trained: true, ..message })
            }
            _ => {
                let text = "expected one message, of the role assistant".to_owned();
                self.problem(None, Some(name.to_owned()), text);
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problems_of(text: &str) -> Vec<String> {
        let (mut problems, mut warnings) = (Diagnostics::default(), Diagnostics::default());
        let example = parse_example(7, text, &mut problems, &mut warnings);
        assert_eq!(example.is_none(), !problems.is_empty(), "{text}");
        problems.listed.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn good_examples_of_both_formats_are_read() {
        let chat = r#"{"messages":[{"role":"user","content":[{"type":"text","text":"a"}]},
            {"role":"assistant","content":"b","weight":0},{"role":"assistant","content":"c"}]}"#;
        let (mut problems, mut warnings) = (Diagnostics::default(), Diagnostics::default());
        let example = parse_example(1, chat, &mut problems, &mut warnings).expect("it is good");
        let Example::Chat { messages, .. } = example else { panic!("a chat") };
        assert_eq!(messages[0].content.as_deref(), Some("a"));
        assert_eq!([messages[1].trained, messages[2].trained], [false, true]);
        let pair = r#"{"prompt":"a","completion":"b"}"#;
        let example = parse_example(1, pair, &mut problems, &mut warnings).expect("it is good");
        assert_eq!(example.format(), super::super::Format::PromptCompletion);
        assert!(problems.is_empty() && warnings.is_empty());
    }

    #[test]
    fn every_problem_is_named_with_line_message_and_key() {
        let cases = [
            ("{", "line 7: not valid JSON: EOF while parsing an object at column 1"),
            ("[]", "line 7: expected an object, found a list"),
            (r#"{"text":"a"}"#, "line 7: expected \"messages\", or \"prompt\""),
            (r#"{"messages":3}"#, "line 7, key \"messages\": expected a list of messages"),
            (r#"{"messages":[]}"#, "line 7, key \"messages\": the list of messages is empty"),
            (
                r#"{"messages":[{"role":"robot","content":"a"}]}"#,
                "line 7, message 0, key \"messages[0].role\": unknown role \"robot\"",
            ),
            (
                r#"{"messages":[{"role":"user","content":"a"},{"role":"assistant","content":5}]}"#,
                "line 7, message 1, key \"messages[1].content\": expected a text, found a number",
            ),
            (
                r#"{"messages":[{"role":"assistant","content":"a","weight":0.5}]}"#,
                "line 7, message 0, key \"messages[0].weight\": the weight is 0.5",
            ),
            (
                r#"{"messages":[{"role":"user","content":"a"}]}"#,
                "line 7, key \"messages\": no assistant message",
            ),
            (
                r#"{"messages":[{"role":"tool","content":"a","tool_call_id":"x"},
                    {"role":"assistant","content":"b"}]}"#,
                "line 7, message 0, key \"messages[0].tool_call_id\": no assistant message",
            ),
            (
                r#"{"messages":[{"role":"user","content":[{"type":"image_url"}]}]}"#,
                "line 7, message 0, key \"messages[0].content[0]\": a part of type \"image_url\";",
            ),
            (
                r#"{"messages":[{"role":"user","content":[{"text":"a"}]}]}"#,
                "line 7, message 0, key \"messages[0].content[0]\": a part needs a \"type\"",
            ),
            (
                r#"{"messages":[{"role":"user","content":[{"type":"text"}]}]}"#,
                "line 7, message 0, key \"messages[0].content[0]\": a part of type \"text\" needs",
            ),
            (r#"{"prompt":"a"}"#, "line 7, key \"completion\": the key is missing"),
            (
                r#"{"prompt":"a","completion":"b","prompt":"c"}"#,
                "line 7, key \"prompt\": the key occurs twice",
            ),
            (
                r#"{"messages":[{"role":"assistant","content":"a","\u0063ontent":"b"}]}"#,
                "line 7, message 0, key \"messages[0].content\": the key occurs twice",
            ),
            (
                r#"{"messages":[{"role":"user","content":"a"},{"role":"assistant","tool_calls":[
                    {"id":"c","function":{"name":"f","arguments":"1","arguments":"2"}}]}]}"#,
                "line 7, message 1, key \"messages[1].tool_calls[0].function.arguments\": the key",
            ),
            (
                r#"{"tools":[{"function":{"name":"f","name":"g"}}],"messages":[]}"#,
                "line 7, key \"tools[0].function.name\": the key occurs twice",
            ),
            (
                r#"{"messages":[{"role":"assistant","content":null,"tool_calls":[{"id":"c",
                    "type":null,"function":{"name":"f","arguments":"1"}}]}]}"#,
                "line 7, message 0, key \"messages[0].tool_calls[0].type\": the type of a call",
            ),
        ];
        for (text, want) in cases {
            let found = problems_of(text);
            assert!(found[0].starts_with(want), "{text}\n  {found:?}\n  {want}");
        }
    }

    #[test]
    fn a_repeated_key_among_very_many_is_found_in_time() {
        let keys: String = (0..100_000).map(|number| format!("\"{number}\":1,")).collect();
        let text = format!(r#"{{"messages":{{{keys}"77777":2}}}}"#);
        let began = std::time::Instant::now();
        let found = problems_of(&text);
        assert!(found[0].starts_with("line 7, key \"messages.77777\": the key"), "{}", found[0]);
        assert!(began.elapsed().as_secs() < 5, "{:?}", began.elapsed());
    }

    #[test]
    fn all_problems_of_a_line_are_reported_not_only_the_first() {
        let text =
            r#"{"messages":[{"content":"a"},{"role":"user"},{"role":"assistant","content":1}]}"#;
        assert_eq!(problems_of(text).len(), 3);
    }

    #[test]
    fn unknown_keys_are_warnings() {
        let (mut problems, mut warnings) = (Diagnostics::default(), Diagnostics::default());
        let text = r#"{"id":1,"messages":[{"role":"assistant","content":"a","mood":"good"}]}"#;
        assert!(parse_example(2, text, &mut problems, &mut warnings).is_some());
        let said: Vec<String> = warnings.listed.iter().map(ToString::to_string).collect();
        assert_eq!(
            said,
            [
                "line 2, key \"id\": unknown key, ignored",
                "line 2, message 0, key \"mood\": unknown \
             key, ignored"
            ]
        );
    }

    #[test]
    fn preferences_are_read_in_both_spellings_and_their_problems_are_named() {
        let input = r#""input":{"messages":[{"role":"user","content":"a"},
            {"role":"assistant","content":"b"},{"role":"user","content":"c"}]}"#;
        let answer = |text: &str| format!(r#"[{{"role":"assistant","content":"{text}"}}]"#);
        for [preferred, other] in [
            ["preferred_output", "non_preferred_output"],
            ["preferred_completion", "non_preferred_completion"],
        ] {
            let (x, y) = (answer("x"), answer("y"));
            let text = format!(r#"{{{input},"{preferred}":{x},"{other}":{y}}}"#);
            let (mut problems, mut warnings) = (Diagnostics::default(), Diagnostics::default());
            let example = parse_example(1, &text, &mut problems, &mut warnings);
            let Some(Example::Preference { messages, answers, .. }) = example else {
                panic!("{problems:?}")
            };
            let [preferred, other] = *answers;
            assert!(messages.iter().all(|message| !message.trained));
            assert!(preferred.trained && other.trained);
            assert_eq!(
                [preferred.content.as_deref(), other.content.as_deref()],
                [Some("x"), Some("y")]
            );
            assert!(warnings.is_empty());
        }
        let both = |first: &str, second: &str| {
            format!(r#"{{{input},"preferred_output":{first},"non_preferred_output":{second}}}"#)
        };
        let two = r#"[{"role":"assistant","content":"x"},{"role":"assistant","content":"y"}]"#;
        for (text, want) in [
            (both(&answer("x"), &answer("x")), "line 7, key \"preferred_output\": both answers"),
            (both(two, &answer("x")), "line 7, key \"preferred_output\": expected one message"),
            (
                both(r#"[{"role":"user","content":"x"}]"#, &answer("x")),
                "line 7, key \"preferred_output\": expected one message",
            ),
            (
                both(&answer("x"), r#"[{"role":"assistant","content":3}]"#),
                "line 7, message 0, key \"non_preferred_output[0].content\": expected a text",
            ),
            (format!("{{{input}}}"), "line 7, key \"preferred_output\": the key is missing"),
            (
                r#"{"input":{"messages":[{"role":"king","content":"a"}]}}"#.to_owned(),
                "line 7, message 0, key \"input.messages[0].role\": unknown role",
            ),
            (r#"{"input":"a"}"#.to_owned(), "line 7, key \"input\": expected an object"),
        ] {
            let found = problems_of(&text);
            assert!(found[0].starts_with(want), "{text}\n  {found:?}\n  {want}");
        }
    }

    #[test]
    fn nulls_in_the_schema_of_a_tool_are_left_out_and_said_by_line() {
        let text = r#"{"messages":[{"role":"user","content":"a","name":null,"tool_calls":null},
            {"role":"assistant","content":"b","weight":null}],
            "tools":[{"type":"function","function":{"name":"f","strict":null,"parameters":
             {"type":"object","properties":{"a":{"type":"string","default":null},"b":null}}}}]}"#;
        let (mut problems, mut warnings) = (Diagnostics::default(), Diagnostics::default());
        let example = parse_example(7, text, &mut problems, &mut warnings).expect("it is good");
        let Example::Chat { tools, .. } = example else { panic!("a chat") };
        assert_eq!(
            tools[0].to_string(),
            r#"{"type":"function","function":{"name":"f","parameters":{"type":"object","properties":{"a":{"type":"string","default":null}}}}}"#
        );
        let said: Vec<String> = warnings.listed.iter().map(ToString::to_string).collect();
        assert_eq!(
            said,
            [
                "line 7, key \"tools[0].function.strict\": the null means nothing in a schema and is left \
              out, as 2 nulls of this tool are"
            ]
        );
    }

    #[test]
    fn tool_calls_and_their_answers_are_read() {
        let text = r#"{"messages":[{"role":"user","content":"a"},
            {"role":"assistant","content":null,"tool_calls":[{"id":"c1","type":"function",
             "function":{"name":"f","arguments":"{}"}}]},
            {"role":"tool","tool_call_id":"c1","content":"3"},{"role":"assistant","content":"b"}],
            "tools":[{"type":"function","function":{"name":"f"}}]}"#;
        let (mut problems, mut warnings) = (Diagnostics::default(), Diagnostics::default());
        let example = parse_example(1, text, &mut problems, &mut warnings).expect("it is good");
        let Example::Chat { messages, tools } = example else { panic!("a chat") };
        assert_eq!((messages[1].tool_calls[0].name.as_str(), tools.len()), ("f", 1));
    }

    #[test]
    fn numbers_in_the_schema_of_a_tool_stay_as_they_are_written() {
        let schema = r#"{"name":"f","parameters":{"type":"object","properties":
            {"a":{"maximum":12345678901234567890123,"minimum":-18446744073709551617,"multipleOf":0.10}}}}"#;
        let answer = r#"{"role":"assistant","content":"b"}"#;
        let question = r#"{"role":"user","content":"a"}"#;
        let lines = [
            format!(
                r#"{{"messages":[{question},{answer}],"tools":[{{"type":"function","function":{schema}}}]}}"#
            ),
            format!(r#"{{"messages":[{question},{answer}],"functions":[{schema}]}}"#),
            format!(
                r#"{{"input":{{"messages":[{question}],"tools":[{{"type":"function","function":{schema}}}]}},
                "preferred_output":[{answer}],"non_preferred_output":[{{"role":"assistant","content":"c"}}]}}"#
            ),
        ];
        for line in lines {
            let (mut problems, mut warnings) = (Diagnostics::default(), Diagnostics::default());
            let example = parse_example(1, &line, &mut problems, &mut warnings);
            let (Some(Example::Chat { tools, .. }) | Some(Example::Preference { tools, .. })) =
                example
            else {
                panic!("{:?}", problems.listed)
            };
            let written = r#""properties":{"a":{"maximum":12345678901234567890123,"minimum":-18446744073709551617,"multipleOf":0.10}}"#;
            assert!(tools[0].to_string().contains(written), "{}", tools[0]);
        }
    }
}
