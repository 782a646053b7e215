//! The body of `POST /v1/fine_tuning/checkpoints/{checkpoint}/permissions`.

use serde_json::{Map, Value};

use super::{Refusal, fields};

/// Most projects of one request.
const MOST_PROJECTS: usize = 100;

/// Longest id of a project.
const MAX_ID_LENGTH: usize = 64;

/// The projects that a request names.
///
/// # Errors
/// No list of ids, or one that is empty, too long, or holds what is no id.
pub fn read(body: &Map<String, Value>) -> Result<Vec<String>, Refusal> {
    let list = fields::given(body, "project_ids").and_then(Value::as_array);
    let Some(list) = list.filter(|list| (1..=MOST_PROJECTS).contains(&list.len())) else {
        let message = format!("project_ids must be a list of 1 to {MOST_PROJECTS} ids of projects");
        return Err(Refusal::new("project_ids", message));
    };
    let mut projects = Vec::with_capacity(list.len());
    for (index, id) in list.iter().enumerate() {
        let Some(id) = id.as_str().filter(|id| is_id(id)) else {
            let message = format!(
                "the id is {id}; it must be a text of 1 to {MAX_ID_LENGTH} letters, digits, \"-\", \
                 \"_\" and \".\""
            );
            return Err(Refusal::new(format!("project_ids[{index}]"), message));
        };
        projects.push(id.to_owned());
    }
    Ok(projects)
}

fn is_id(text: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    (1..=MAX_ID_LENGTH).contains(&text.len()) && text.bytes().all(is_plain)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn each_wrong_list_is_refused_with_its_place() {
        let many: Vec<String> = (0..=MOST_PROJECTS).map(|number| format!("p{number}")).collect();
        for (body, param) in [
            (json!({}), "project_ids"),
            (json!({"project_ids": null}), "project_ids"),
            (json!({"project_ids": "proj_1"}), "project_ids"),
            (json!({"project_ids": []}), "project_ids"),
            (json!({"project_ids": many}), "project_ids"),
            (json!({"project_ids": ["proj_1", 2]}), "project_ids[1]"),
            (json!({"project_ids": [""]}), "project_ids[0]"),
            (json!({"project_ids": ["a b"]}), "project_ids[0]"),
            (json!({"project_ids": ["x".repeat(65)]}), "project_ids[0]"),
        ] {
            let refusal = read(body.as_object().expect("an object")).expect_err("it is wrong");
            assert_eq!(refusal.param, param, "{body}");
        }
        let body = json!({"project_ids": ["proj_1", "a.b-c"]});
        assert_eq!(read(body.as_object().expect("one")), Ok(vec!["proj_1".into(), "a.b-c".into()]));
    }
}
