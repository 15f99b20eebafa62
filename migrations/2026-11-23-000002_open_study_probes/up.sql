-- Marks the links whose probe is queued or running: finding a wave's next probe, or that it has none
-- left, then walks past nothing that has ended.

ALTER TABLE study_probes ADD COLUMN open boolean NOT NULL DEFAULT false;
UPDATE study_probes sp SET open = true FROM probes p
    WHERE p.id = sp.probe AND p.state IN ('queued', 'running');
ALTER TABLE study_probes ALTER COLUMN open DROP DEFAULT;
CREATE INDEX study_probes_open ON study_probes (study, revision, wave, position) WHERE open;

CREATE FUNCTION probe_opened_or_ended() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    UPDATE study_probes SET open = NEW.state IN ('queued', 'running') WHERE probe = NEW.id;
    RETURN NULL;
END $$;
CREATE TRIGGER probe_opened_or_ended AFTER UPDATE OF state ON probes FOR EACH ROW
    WHEN ((OLD.state IN ('queued', 'running')) <> (NEW.state IN ('queued', 'running')))
    EXECUTE FUNCTION probe_opened_or_ended();
