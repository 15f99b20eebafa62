-- A claim walks through the studies in whose turn it may be, and not through those that wait for a device: a thousand
-- of them may stand before the first that has something to run. What looks at all active studies goes on with
-- studies_active.
CREATE INDEX studies_claimable ON studies (priority DESC, last_claimed_at NULLS FIRST, id)
    WHERE state IN ('queued', 'running') AND waiting_for IS NULL;
CREATE INDEX studies_waiting ON studies (priority DESC, last_claimed_at NULLS FIRST, id)
    WHERE state IN ('queued', 'running') AND waiting_for IS NOT NULL;
