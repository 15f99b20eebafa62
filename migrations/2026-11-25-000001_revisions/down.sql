ALTER TABLE study_probes
    DROP COLUMN spec,
    DROP COLUMN paid_before;
DROP INDEX probes_by_inputs;
ALTER TABLE probes DROP COLUMN inputs;
