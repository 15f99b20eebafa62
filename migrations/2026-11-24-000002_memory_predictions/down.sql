DROP INDEX probes_measured_memory;
ALTER TABLE study_probes
    DROP COLUMN predicted_bytes,
    DROP COLUMN predicted_lower_bytes,
    DROP COLUMN predicted_upper_bytes;
