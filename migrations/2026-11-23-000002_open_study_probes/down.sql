DROP TRIGGER probe_opened_or_ended ON probes;
DROP FUNCTION probe_opened_or_ended;
ALTER TABLE study_probes DROP COLUMN open;
