-- For removing what was kept long enough (retention.study_days, retention.unlinked_probe_days) without reading everything.
CREATE INDEX studies_ended ON studies (ended_at) WHERE ended_at IS NOT NULL;
CREATE INDEX probes_ended ON probes (ended_at) WHERE ended_at IS NOT NULL;
-- For lists of one workload's studies, the newest first.
CREATE INDEX studies_by_workload ON studies (project, workload, id DESC);

-- What a study has done, by state of its probes, once it has ended and none of them is open: so that a list does not count
-- the probes of every study that it shows.
ALTER TABLE studies ADD COLUMN counted jsonb;
CREATE INDEX studies_uncounted ON studies (ended_at) WHERE ended_at IS NOT NULL AND counted IS NULL;
