-- For removing what was kept long enough (retention.unlinked_probe_days) without reading everything.
CREATE INDEX probes_ended ON probes (ended_at) WHERE ended_at IS NOT NULL;
