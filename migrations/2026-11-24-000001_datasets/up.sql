-- Uploaded data sets: what they are and which content they have. The contents themselves are files, named by
-- their hash; several data sets may share one.

CREATE TABLE datasets (
    id            uuid PRIMARY KEY,
    project       text NOT NULL,
    created_by    text NOT NULL,
    name          text NOT NULL,
    format        text NOT NULL,
    -- SHA-256 of the uploaded file and of how it was to be read: the same again is the same data set.
    source_sha256 text NOT NULL,
    source_bytes  bigint NOT NULL,
    options       jsonb NOT NULL,
    options_hash  text NOT NULL,
    -- SHA-256 of the stored form.
    content       text NOT NULL,
    content_bytes bigint NOT NULL,
    contents      jsonb NOT NULL,
    description   jsonb NOT NULL,
    created_at    timestamptz NOT NULL DEFAULT now(),
    UNIQUE (project, source_sha256, options_hash)
);
CREATE INDEX datasets_by_project ON datasets (project, id DESC);
CREATE INDEX datasets_by_content ON datasets (content);
