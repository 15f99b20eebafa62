CREATE INDEX studies_active ON studies (priority DESC, last_claimed_at NULLS FIRST)
    WHERE state IN ('queued', 'running');
DROP INDEX studies_waiting;
DROP INDEX studies_claimable;
