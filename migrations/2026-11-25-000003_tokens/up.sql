-- Access tokens. The secret is 32 random bytes and is stored nowhere: its SHA-256 is, which is enough, since nobody can
-- try 2^256 of them, so that neither salt nor a slow hash would add anything.

CREATE TABLE tokens (
    id            uuid PRIMARY KEY,
    name          text NOT NULL,
    -- The one project that it sees; null: any.
    project       text,
    scopes        text[] NOT NULL
        CHECK (cardinality(scopes) > 0 AND scopes <@ ARRAY['read', 'write', 'work', 'admin']),
    secret_sha256 bytea NOT NULL CHECK (length(secret_sha256) = 32),
    created_at    timestamptz NOT NULL DEFAULT now(),
    -- Null: never.
    expires_at    timestamptz,
    revoked_at    timestamptz,
    -- Written at most once a minute.
    last_used_at  timestamptz
);
