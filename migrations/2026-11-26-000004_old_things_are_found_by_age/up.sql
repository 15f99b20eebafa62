-- For removing what was kept long enough (retention.study_days, retention.unlinked_probe_days) without reading everything.
CREATE INDEX studies_ended ON studies (ended_at) WHERE ended_at IS NOT NULL;
CREATE INDEX probes_ended ON probes (ended_at) WHERE ended_at IS NOT NULL;
