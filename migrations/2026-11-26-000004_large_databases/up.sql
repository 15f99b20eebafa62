-- One table each: whoever holds one and waits for the other must never meet a migration that does so the other way round.

-- What a revision of a study has done, by state of its probes, once it has ended and none of them is open: so that a list
-- does not count the probes of every study that it shows.
ALTER TABLE studies ADD COLUMN counted jsonb, ADD COLUMN counted_revision integer;
CREATE INDEX studies_uncounted ON studies (ended_at)
    WHERE ended_at IS NOT NULL AND counted_revision IS DISTINCT FROM revision;

-- For removing what was kept long enough (retention.study_days) without reading everything.
CREATE INDEX studies_ended ON studies (ended_at) WHERE ended_at IS NOT NULL;

-- For lists of one workload's studies, the newest first.
CREATE INDEX studies_by_workload ON studies (project, workload, id DESC);
