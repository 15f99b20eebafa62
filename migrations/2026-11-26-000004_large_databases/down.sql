DROP INDEX studies_by_workload;
DROP INDEX studies_ended;
DROP INDEX studies_uncounted;
ALTER TABLE studies DROP COLUMN counted, DROP COLUMN counted_revision;
