ALTER TABLE studies
    ADD CONSTRAINT studies_state_check
        CHECK (state IN ('queued', 'running', 'succeeded', 'failed', 'cancelled')),
    ADD CONSTRAINT studies_check CHECK ((state IN ('succeeded', 'failed', 'cancelled')) = (ended_at IS NOT NULL));
