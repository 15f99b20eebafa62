DROP TABLE idempotency_keys, study_events, recommendations, measurements, study_probes, probes,
    devices, study_revisions, studies;
