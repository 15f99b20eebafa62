DROP INDEX probes_ended;
DROP INDEX studies_ended;
