ALTER TABLE probes DROP COLUMN device_count;
ALTER TABLE devices DROP COLUMN count;
