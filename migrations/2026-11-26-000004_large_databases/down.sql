DROP INDEX studies_uncounted;
ALTER TABLE studies DROP COLUMN counted;
DROP INDEX studies_by_workload;
DROP INDEX probes_ended;
DROP INDEX studies_ended;
