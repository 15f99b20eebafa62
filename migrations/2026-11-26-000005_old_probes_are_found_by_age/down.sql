DROP INDEX probes_ended;
