CREATE INDEX probes_running ON probes (lease_expires_at) WHERE state = 'running';
DROP INDEX probes_leased;
