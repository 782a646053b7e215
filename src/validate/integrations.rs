//! `integrations` of a job request. hone sends nothing to other services, so a job with an integration is
//! refused instead of run without it.

use serde_json::Value;

use super::{Refusal, fields};
use crate::domain::error_code::ErrorCode;
use crate::util::excerpt::{excerpt, excerpt_of};

/// Most integrations of a job, in OpenAI's API.
const MOST: usize = 5;

/// Refuses every integration. The error of a malformed one names the field, that of a valid one names the
/// alternative. An empty list is no integration.
pub(super) fn check(value: Option<&Value>) -> Result<(), Refusal> {
    let Some(value) = value else {
        return Ok(());
    };
    let Some(list) = value.as_array() else {
        let value = excerpt_of(value);
        let message = format!("integrations is {value}; it must be a list");
        return Err(Refusal::new("integrations", message));
    };
    if list.len() > MOST {
        let message = format!("there are {} integrations; {MOST} at most", list.len());
        return Err(Refusal::new("integrations", message));
    }
    for (index, one) in list.iter().enumerate() {
        check_shape(one).map_err(|refusal| refusal.within(&format!("integrations[{index}]")))?;
    }
    if list.is_empty() {
        return Ok(());
    }
    Err(Refusal::with_code(
        ErrorCode::Unsupported,
        "integrations",
        "hone sends nothing to Weights & Biases: leave integrations out. `WandbLogger.sync` of the `wandb` \
         package copies the job and its metrics there through this API",
    ))
}

fn check_shape(integration: &Value) -> Result<(), Refusal> {
    let Some(integration) = integration.as_object() else {
        return Err(Refusal::new(
            "",
            format!("it is {}; it must be an object", excerpt_of(integration)),
        ));
    };
    let kind = fields::required_text(integration, "type")?;
    if kind != "wandb" {
        return Err(Refusal::new(
            "type",
            format!("the type is {:?}; it can be \"wandb\"", excerpt(&kind)),
        ));
    }
    match fields::given(integration, "wandb").map(Value::as_object) {
        Some(Some(settings)) => {
            let project = fields::required_text(settings, "project");
            project.map(|_there| ()).map_err(|refusal| refusal.within("wandb"))
        }
        _ => Err(Refusal::new("wandb", "wandb must be an object with a \"project\"")),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn no_integration_is_accepted_silently() {
        assert_eq!(check(None), Ok(()));
        assert_eq!(check(Some(&json!([]))), Ok(()));
        let good = json!({"type": "wandb", "wandb": {"project": "p", "name": null, "tags": ["a"]}});
        for (value, param) in [
            (json!([good]), "integrations"),
            (json!({}), "integrations"),
            (json!([good, good, good, good, good, good]), "integrations"),
            (json!([good, "wandb"]), "integrations[1]"),
            (json!([{}]), "integrations[0].type"),
            (json!([good, {"type": "mlflow"}]), "integrations[1].type"),
            (json!([{"type": "wandb"}]), "integrations[0].wandb"),
            (json!([{"type": "wandb", "wandb": "p"}]), "integrations[0].wandb"),
            (json!([{"type": "wandb", "wandb": {}}]), "integrations[0].wandb.project"),
            (json!([{"type": "wandb", "wandb": {"project": 3}}]), "integrations[0].wandb.project"),
        ] {
            let refusal = check(Some(&value)).expect_err("it is refused");
            assert_eq!(refusal.param, param, "{value}");
            let is_offered_elsewhere = refusal.code == ErrorCode::Unsupported;
            assert_eq!(is_offered_elsewhere, value == json!([good]), "{value}");
        }
    }
}
