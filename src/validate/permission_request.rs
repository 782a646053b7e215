//! The body of `POST /v1/fine_tuning/checkpoints/{checkpoint}/permissions`.

use serde_json::{Map, Value};

use super::Refusal;
use super::fields::BodyFields;
use crate::domain::project::Project;
use crate::util::excerpt::excerpt_of;

/// Most projects of one request.
const MOST_PROJECTS: usize = 100;

/// The fields of the body.
pub const FIELDS: &[&str] = &["project_ids"];

/// The projects that a request names.
///
/// # Errors
/// There is no list, it is empty or too long, or one of its items is not the name of a project.
pub fn read(body: &Map<String, Value>) -> Result<Vec<Project>, Refusal> {
    let list = BodyFields::new(body, FIELDS).get("project_ids").and_then(Value::as_array);
    let Some(list) = list.filter(|list| (1..=MOST_PROJECTS).contains(&list.len())) else {
        let message =
            format!("project_ids must be a list of 1 to {MOST_PROJECTS} names of projects");
        return Err(Refusal::new("project_ids", message));
    };
    let mut projects = Vec::with_capacity(list.len());
    for (index, name) in list.iter().enumerate() {
        let refused = |message: String| Refusal::new(format!("project_ids[{index}]"), message);
        let text = name.as_str().ok_or_else(|| {
            refused(format!("it is {}; it must be a text, the name of a project", excerpt_of(name)))
        })?;
        projects.push(text.parse().map_err(refused)?);
    }
    Ok(projects)
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
        let projects = read(body.as_object().expect("one")).expect("good names");
        let names: Vec<&str> = projects.iter().map(Project::as_str).collect();
        assert_eq!(names, ["proj_1", "a.b-c"]);
    }
}
