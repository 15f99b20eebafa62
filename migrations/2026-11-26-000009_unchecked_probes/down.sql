ALTER TABLE probes
    ADD CONSTRAINT probes_state_check
        CHECK (state IN ('queued', 'running', 'succeeded', 'infeasible', 'failed', 'cancelled')),
    ADD CONSTRAINT probes_check CHECK ((state = 'running') = (lease_expires_at IS NOT NULL));
