-- Training runs that differ in nothing but target and cap take the same course, so one tells of the other.

ALTER TABLE probes
    -- Hash of what the course of a training run depends on: its inputs without target and cap. Null for other kinds.
    ADD COLUMN course text,
    -- The probe from whose evaluations this one's figures were read, where it was not run itself.
    ADD COLUMN read_from uuid REFERENCES probes ON DELETE SET NULL;
CREATE INDEX probes_by_course ON probes (project, course)
    WHERE course IS NOT NULL AND read_from IS NULL AND state IN ('succeeded', 'infeasible');
CREATE INDEX probes_by_read_from ON probes (read_from) WHERE read_from IS NOT NULL;
