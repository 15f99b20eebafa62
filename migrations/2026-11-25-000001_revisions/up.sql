-- What the figures of a probe depend on, and who takes over which.

-- Hash of exactly what a probe's figures depend on. Those made before this column match nothing, so at worst they
-- are made once more.
ALTER TABLE probes ADD COLUMN inputs text NOT NULL DEFAULT '';
CREATE INDEX probes_by_inputs ON probes (project, inputs) WHERE state IN ('succeeded', 'infeasible');

ALTER TABLE study_probes
    -- What the study asked for, where the probe that answers it was told something else that makes no difference.
    ADD COLUMN spec jsonb,
    -- Whether it was there already because an earlier revision of the study had made it: its budget paid for it.
    ADD COLUMN paid_before boolean NOT NULL DEFAULT false;
