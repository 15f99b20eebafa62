DROP TABLE device_runners;
ALTER TABLE probes DROP COLUMN runner;
