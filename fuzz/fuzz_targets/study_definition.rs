//! What anybody may post as a study: it is refused with reasons that lead somewhere, or it can be planned, stored and read
//! again as it was.

#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::{Corpus, fuzz_target};
use serde_json::Value;
use trialhead::analysis::{self, Evidence};
use trialhead::plan;
use trialhead::recommendation;
use trialhead::study::defaults::{self, DeviceFactsForDefaults};
use trialhead::study::validation::{DefinitionLimits, DefinitionRules, Rejected};
use trialhead::study::{Bytes, StudyDefinition};

static RULES: LazyLock<DefinitionRules> =
    LazyLock::new(|| DefinitionRules::new(DefinitionLimits::default()));

fuzz_target!(|body: &[u8]| -> Corpus {
    let request = match RULES.parse_body(body, None) {
        Ok(request) => request,
        Err(Rejected::Malformed(_)) => return Corpus::Reject,
        Err(Rejected::Invalid(violations)) => {
            assert!(!violations.is_empty(), "refused without a reason");
            for violation in violations {
                assert!(!violation.detail.is_empty(), "{violation:?}");
                let is_pointer = violation.pointer.is_empty() || violation.pointer.starts_with('/');
                assert!(is_pointer, "{violation:?}");
            }
            return Corpus::Keep;
        }
    };
    let device = DeviceFactsForDefaults {
        model: "a processor".into(),
        threads: 2,
        available_bytes: Bytes(8 << 30),
    };
    for device in [None, Some(&device)] {
        // Uploaded data sets are unknown here, and refused.
        let definition = defaults::resolve(request.clone(), device).expect("it has its data set");
        let stored: Value = serde_json::to_value(&definition).expect("it can be stored");
        let read: StudyDefinition =
            serde_json::from_value(stored.clone()).expect("it can be read again");
        let again = serde_json::to_value(&read).expect("it can be stored");
        assert_eq!(again, stored, "it is not read as it was stored");
        let evidence = Evidence::default();
        let analysis = analysis::analyze(&definition, &evidence);
        let _ = plan::plan(&definition, &evidence, &analysis);
        let _ = recommendation::recommend(&definition, &evidence, &analysis);
    }
    Corpus::Keep
});
