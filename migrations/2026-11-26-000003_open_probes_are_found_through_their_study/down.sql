DROP INDEX probes_queued;
CREATE INDEX probes_queued ON probes (backend, device_model, created_at) WHERE state = 'queued';
