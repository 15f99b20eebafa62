-- The peak of memory that was expected when a probe was planned, with its 95% interval: kept beside what was
-- measured, so that anybody can see how good the predictions are.

ALTER TABLE study_probes
    ADD COLUMN predicted_bytes       bigint,
    ADD COLUMN predicted_lower_bytes bigint,
    ADD COLUMN predicted_upper_bytes bigint;
CREATE INDEX probes_measured_memory ON probes (ended_at)
    WHERE state = 'succeeded' AND kind IN ('memory', 'confirmation');
