DROP INDEX probes_by_read_from;
DROP INDEX probes_by_course;
ALTER TABLE probes DROP COLUMN read_from, DROP COLUMN course;
