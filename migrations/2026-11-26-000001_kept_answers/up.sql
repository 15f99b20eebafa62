-- The first answers to writes that carried an Idempotency-Key, to be given again. Kept in the write's own transaction, so
-- there is never one without the other. They refer to nothing: the answer stays true when what it told of is gone.
-- Nothing uses idempotency_keys any more; it goes one release later.

CREATE TABLE kept_answers (
    project        text NOT NULL,
    -- The id of the access token, or 'anonymous'.
    caller         text NOT NULL,
    operation      text NOT NULL,
    key            text NOT NULL,
    -- Tells whether the same is asked again.
    request_sha256 text NOT NULL,
    -- These are null only inside the transaction that writes them.
    status         integer,
    headers        jsonb,
    body           text,
    created_at     timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (project, caller, operation, key)
);
CREATE INDEX kept_answers_by_age ON kept_answers (created_at);
