//! Bells and whistles: what a first configuration is better without, because each is one more thing that
//! can be wrong, and tuning it now is wasted when something else changes.

use crate::analysis::Caveat;
use crate::study::{Schedule, StudyDefinition};

/// `W_BELLS`, if the study has any.
pub fn remark(definition: &StudyDefinition) -> Option<Caveat> {
    let mut bells = Vec::new();
    match &definition.schedule {
        Schedule::Constant { .. } => {}
        Schedule::Linear { .. } => bells.push("linear decay of the learning rate"),
        Schedule::Cosine { .. } => bells.push("cosine decay of the learning rate"),
    }
    if definition.schedule.warm_up_steps() > 0 {
        bells.push("warm-up of the learning rate");
    }
    (!bells.is_empty()).then(|| Caveat {
        code: "W_BELLS".into(),
        detail: format!(
            "the configuration has {}; start with a constant learning rate and add this when something is known to be better with it",
            bells.join(" and ")
        ),
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::study::{StudyRequest, resolve};

    fn remarked(schedule: serde_json::Value) -> Option<Caveat> {
        let request: StudyRequest = serde_json::from_value(json!({
            "workload": {"dataset": {"builtin": "digits"}}, "schedule": schedule
        }))
        .expect("a request");
        remark(&resolve(request, None).expect("known"))
    }

    #[test]
    fn anything_beyond_a_constant_learning_rate_is_a_bell() {
        assert_eq!(remarked(json!({"kind": "constant"})), None);
        let cosine = remarked(json!({"kind": "cosine", "decay_steps": 10, "warm_up_steps": 2}));
        let caveat = cosine.expect("two bells");
        assert_eq!(caveat.code, "W_BELLS");
        assert!(
            caveat
                .detail
                .contains("cosine decay of the learning rate and warm-up")
        );
        let warm_up = remarked(json!({"kind": "constant", "warm_up_steps": 5}));
        assert!(warm_up.is_some());
    }
}
