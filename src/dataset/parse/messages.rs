//! Parses messages: role, content, weight, tool calls.

use std::borrow::Cow;
use std::collections::{BTreeSet, HashMap};

use serde::de::IgnoredAny;
use serde_json_borrow::{ObjectAsVec as Object, Value};

use super::{ExampleParser, kind};
use crate::dataset::{Message, Role, ToolCall};
use crate::util::excerpt::excerpt;

/// Characters of wrong arguments that a problem shows.
const MAX_SHOWN_ARGUMENTS: usize = 40;

impl ExampleParser<'_> {
    /// The messages of a list, without the invalid ones.
    pub(super) fn messages(&mut self, value: &Value<'_>) -> Vec<Message> {
        let Some(list) = value.as_array() else {
            let message = format!("expected a list of messages, found {}", kind(value));
            self.problem(None, Some(self.list.to_owned()), message);
            return Vec::new();
        };
        if list.is_empty() {
            let message = "the list of messages is empty".to_owned();
            self.problem(None, Some(self.list.to_owned()), message);
        }
        let mut messages = Vec::with_capacity(list.len());
        let mut calls: BTreeSet<String> = BTreeSet::new();
        for (index, value) in list.iter().enumerate() {
            let Some(object) = value.as_object() else {
                let message = format!("expected a message object, found {}", kind(value));
                self.problem(Some(index), Some(format!("{}[{index}]", self.list)), message);
                continue;
            };
            let Some(message) = self.message(index, object) else { continue };
            calls.extend(message.tool_calls.iter().map(|call| call.id.clone()));
            if let Some(id) = &message.tool_call_id
                && !calls.contains(id)
            {
                let text =
                    format!("no assistant message before this one has a call with id {id:?}");
                self.at(index, "tool_call_id", text);
            }
            messages.push(message);
        }
        messages
    }

    /// A problem with one key of a message.
    fn at(&mut self, index: usize, key: &str, message: String) {
        self.problem(Some(index), Some(format!("{}[{index}].{key}", self.list)), message);
    }

    fn message(&mut self, index: usize, object: &Object<'_>) -> Option<Message> {
        let known = [
            "role",
            "content",
            "reasoning_content",
            "reasoning",
            "name",
            "weight",
            "tool_calls",
            "function_call",
            "tool_call_id",
            "refusal",
        ];
        self.unknown_keys(object, &known, Some(index));
        let before = self.problems_found;
        let role = self.role(index, object);
        let (content, content_parts) = self.content(index, object.get("content"));
        let name = match object.get("name") {
            None | Some(Value::Null) => None,
            Some(Value::Str(name)) => Some(name.clone().into_owned()),
            Some(other) => {
                self.at(index, "name", format!("expected a text, found {}", kind(other)));
                None
            }
        };
        let is_assistant = role == Some(Role::Assistant);
        let reasoning = self.reasoning(index, object, is_assistant);
        let trained = self.weight(index, object.get("weight"), is_assistant);
        let tool_calls = self.tool_calls(index, object, is_assistant);
        let tool_call_id = match (role, object.get("tool_call_id")) {
            (Some(Role::Tool), Some(Value::Str(id))) => Some(id.clone().into_owned()),
            (Some(Role::Tool), _) => {
                let text = "a tool message needs the id of the call that it answers".to_owned();
                self.at(index, "tool_call_id", text);
                None
            }
            _ => None,
        };
        if content.is_none() && tool_calls.is_empty() && self.problems_found == before {
            let text = match is_assistant {
                true => "an assistant message needs content or tool_calls",
                false => "the message has no content",
            };
            self.at(index, "content", text.to_owned());
        }
        if self.problems_found > before {
            return None;
        }
        Some(Message {
            role: role?,
            content,
            content_parts,
            reasoning,
            name,
            trained,
            tool_calls,
            tool_call_id,
        })
    }

    fn role(&mut self, index: usize, object: &Object<'_>) -> Option<Role> {
        let known = || {
            let names: Vec<&str> = Role::ALL.iter().map(|(name, _)| *name).collect();
            names.join(", ")
        };
        match object.get("role") {
            Some(Value::Str(text)) => {
                let role = Role::ALL.iter().find(|(name, _)| name == text);
                if role.is_none() {
                    let text = format!("unknown role {:?}; it can be {}", excerpt(text), known());
                    self.at(index, "role", text);
                }
                role.map(|(_, role)| *role)
            }
            Some(other) => {
                self.at(index, "role", format!("expected a text, found {}", kind(other)));
                None
            }
            None => {
                self.at(index, "role", format!("the role is missing; it can be {}", known()));
                None
            }
        }
    }

    /// A text, null, or a list of text parts: the whole text, and its parts if it has any.
    fn content(
        &mut self,
        index: usize,
        value: Option<&Value<'_>>,
    ) -> (Option<String>, Vec<String>) {
        match value {
            None | Some(Value::Null) => (None, Vec::new()),
            Some(Value::Str(text)) => (Some(text.clone().into_owned()), Vec::new()),
            Some(Value::Array(parts)) => {
                let mut texts = Vec::with_capacity(parts.len());
                for (part_index, part) in parts.iter().enumerate() {
                    match (part.get("type").as_str(), part.get("text").as_str()) {
                        (Some("text"), Some(text)) => texts.push(text.to_owned()),
                        (kind, _) => {
                            let text = match kind {
                                Some("text") => {
                                    "a part of type \"text\" needs a \"text\"".to_owned()
                                }
                                Some(kind) => format!(
                                    "a part of type {kind:?}; hone trains and answers text parts only"
                                ),
                                None => "a part needs a \"type\", which can be \"text\"".to_owned(),
                            };
                            self.at(index, &format!("content[{part_index}]"), text);
                        }
                    }
                }
                (Some(texts.concat()), texts)
            }
            Some(other) => {
                self.at(index, "content", format!("expected a text, found {}", kind(other)));
                (None, Vec::new())
            }
        }
    }

    /// What the assistant thought, under either of its names; an empty text is none.
    fn reasoning(
        &mut self,
        index: usize,
        object: &Object<'_>,
        is_assistant: bool,
    ) -> Option<String> {
        let mut found: Option<String> = None;
        for key in ["reasoning_content", "reasoning"] {
            match object.get(key) {
                None | Some(Value::Null) => {}
                Some(Value::Str(text)) if text.is_empty() => {}
                Some(_) if !is_assistant => {
                    self.at(index, key, "only assistant messages carry reasoning".to_owned());
                }
                Some(Value::Str(text)) => {
                    if found.as_ref().is_some_and(|found| found != text) {
                        let text = "it differs from \"reasoning_content\": give one of the two";
                        self.at(index, key, text.to_owned());
                    }
                    found = Some(text.clone().into_owned());
                }
                Some(other) => {
                    self.at(index, key, format!("expected a text, found {}", kind(other)));
                }
            }
        }
        found
    }

    /// Whether the message is supervised.
    fn weight(&mut self, index: usize, value: Option<&Value<'_>>, is_assistant: bool) -> bool {
        match value {
            None | Some(Value::Null) => is_assistant,
            Some(_) if !is_assistant => {
                let text = "only assistant messages carry a weight".to_owned();
                self.at(index, "weight", text);
                false
            }
            Some(value) if value.as_f64() == Some(0.0) => false,
            Some(value) if value.as_f64() == Some(1.0) => true,
            Some(other) => {
                self.at(index, "weight", format!("the weight is {other}; it can be 0 or 1"));
                false
            }
        }
    }

    fn tool_calls(
        &mut self,
        index: usize,
        object: &Object<'_>,
        is_assistant: bool,
    ) -> Vec<ToolCall> {
        let mut calls = Vec::new();
        let given = |key: &str| object.get(key).filter(|value| !value.is_null());
        for key in ["tool_calls", "function_call"] {
            if given(key).is_some() && !is_assistant {
                self.at(index, key, "only assistant messages call tools".to_owned());
                return calls;
            }
        }
        if let Some(call) = given("function_call") {
            calls.extend(self.function(index, "function_call", String::new(), call));
        }
        let Some(value) = given("tool_calls") else {
            return calls;
        };
        let Some(list) = value.as_array() else {
            self.at(index, "tool_calls", format!("expected a list, found {}", kind(value)));
            return calls;
        };
        for (call_index, call) in list.iter().enumerate() {
            let key = format!("tool_calls[{call_index}]");
            let Some(id) = call.get("id").as_str() else {
                self.at(index, &format!("{key}.id"), "a call needs an id, a text".to_owned());
                continue;
            };
            let kind = call.as_object().and_then(|call| call.get("type"));
            if kind.is_some_and(|kind| kind.as_str() != Some("function")) {
                let text = "the type of a call can only be \"function\"".to_owned();
                self.at(index, &format!("{key}.type"), text);
            }
            let key = format!("{key}.function");
            calls.extend(self.function(index, &key, id.to_owned(), call.get("function")));
        }
        calls
    }

    fn function(
        &mut self,
        index: usize,
        key: &str,
        id: String,
        value: &Value<'_>,
    ) -> Option<ToolCall> {
        let (name, arguments) = (value.get("name").as_str(), value.get("arguments").as_str());
        let (Some(name), Some(arguments)) = (name, arguments) else {
            let text = "a function call needs \"name\" and \"arguments\", both texts".to_owned();
            self.at(index, key, text);
            return None;
        };
        // Some clients send an empty text for a call without arguments.
        let arguments = if arguments.trim().is_empty() { "{}" } else { arguments };
        if let Err(reason) = check_arguments(arguments) {
            self.at(index, &format!("{key}.arguments"), reason);
            return None;
        }
        Some(ToolCall { id, name: name.to_owned(), arguments: arguments.to_owned() })
    }
}

/// Refuses arguments that are not the text of one JSON object: no template writes a call with them that a
/// client could read back.
fn check_arguments(arguments: &str) -> Result<(), String> {
    let parsed: Result<HashMap<Cow<'_, str>, IgnoredAny>, _> = serde_json::from_str(arguments);
    let Err(error) = parsed else { return Ok(()) };
    let shown: String = arguments.chars().take(MAX_SHOWN_ARGUMENTS).collect();
    Err(format!("the arguments must be the text of a JSON object, and {shown:?} is not: {error}"))
}
