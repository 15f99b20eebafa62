ALTER TABLE probes
    ADD CONSTRAINT probes_state_check
        CHECK (state IN ('queued', 'running', 'succeeded', 'infeasible', 'failed', 'cancelled')),
    ADD CONSTRAINT probes_check CHECK ((state = 'running') = (lease_expires_at IS NOT NULL));
ALTER TABLE studies
    ADD CONSTRAINT studies_state_check
        CHECK (state IN ('queued', 'running', 'succeeded', 'failed', 'cancelled')),
    ADD CONSTRAINT studies_check CHECK ((state IN ('succeeded', 'failed', 'cancelled')) = (ended_at IS NOT NULL));
