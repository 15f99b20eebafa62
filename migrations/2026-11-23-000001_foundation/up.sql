-- Studies, their revisions, the probes they share, what was measured, what is advised.
-- States are text with a check, not enums: expanding them later needs no rewrite.

CREATE TABLE studies (
    id                    uuid PRIMARY KEY,
    project               text NOT NULL DEFAULT 'default',
    created_by            text NOT NULL DEFAULT 'anonymous',
    name                  text NOT NULL,
    labels                jsonb NOT NULL DEFAULT '{}',
    workload              text NOT NULL,
    state                 text NOT NULL DEFAULT 'queued'
        CHECK (state IN ('queued', 'running', 'succeeded', 'failed', 'cancelled')),
    ended_because         text,
    ended_detail          text,
    phase                 text NOT NULL DEFAULT '',
    waiting_for           text,
    revision              integer NOT NULL DEFAULT 1,
    -- The wave being worked on: only its probes can be open.
    wave                  integer NOT NULL DEFAULT 0,
    priority              integer NOT NULL DEFAULT 0,
    -- Raised by everything that changes the evidence; the plan is due while it is ahead.
    evidence_version      bigint NOT NULL DEFAULT 1,
    advanced_version      bigint NOT NULL DEFAULT 0,
    remaining_probes      bigint NOT NULL DEFAULT 0,
    remaining_device_secs double precision NOT NULL DEFAULT 0,
    next_event_seq        bigint NOT NULL DEFAULT 1,
    -- Whose turn it is within a priority.
    last_claimed_at       timestamptz,
    analysis              jsonb,
    created_at            timestamptz NOT NULL DEFAULT now(),
    updated_at            timestamptz NOT NULL DEFAULT now(),
    started_at            timestamptz,
    ended_at              timestamptz,
    CHECK ((state IN ('succeeded', 'failed', 'cancelled')) = (ended_at IS NOT NULL))
);
-- Ids are UUIDv7, so newest first is by id.
CREATE INDEX studies_by_project ON studies (project, id DESC);
CREATE INDEX studies_by_state ON studies (project, state, id DESC);
CREATE INDEX studies_by_label ON studies USING gin (labels jsonb_path_ops);
CREATE INDEX studies_active ON studies (priority DESC, last_claimed_at NULLS FIRST)
    WHERE state IN ('queued', 'running');

CREATE TABLE study_revisions (
    study      uuid NOT NULL REFERENCES studies ON DELETE CASCADE,
    revision   integer NOT NULL,
    definition jsonb NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (study, revision)
);

-- A device of a host, whoever works on it.
CREATE TABLE devices (
    id              uuid PRIMARY KEY,
    host            text NOT NULL,
    hardware        text NOT NULL,
    backend         text NOT NULL,
    model           text NOT NULL,
    threads         integer NOT NULL,
    memory_bytes    bigint NOT NULL,
    available_bytes bigint NOT NULL,
    slots           integer NOT NULL,
    last_seen       timestamptz NOT NULL DEFAULT now(),
    UNIQUE (host, hardware)
);

-- A probe is the job: the queue is this table.
CREATE TABLE probes (
    id                uuid PRIMARY KEY,
    project           text NOT NULL DEFAULT 'default',
    created_by        text NOT NULL DEFAULT 'anonymous',
    -- Hash of (project, runner, protocol, spec): planning twice gives one row.
    identity          text NOT NULL,
    kind              text NOT NULL,
    batch_size        bigint NOT NULL,
    backend           text NOT NULL,
    device_model      text NOT NULL,
    exclusive         boolean NOT NULL,
    spec              jsonb NOT NULL,
    state             text NOT NULL DEFAULT 'queued'
        CHECK (state IN ('queued', 'running', 'succeeded', 'infeasible', 'failed', 'cancelled')),
    reason            text,
    detail            text,
    -- Raised by every claim; fences every write of an earlier one.
    attempt           integer NOT NULL DEFAULT 0,
    crashes           integer NOT NULL DEFAULT 0,
    losses            integer NOT NULL DEFAULT 0,
    not_before        timestamptz NOT NULL DEFAULT now(),
    lease             uuid,
    lease_expires_at  timestamptz,
    worker            text,
    device            uuid REFERENCES devices ON DELETE SET NULL,
    cancel_requested  boolean NOT NULL DEFAULT false,
    progress_phase    text,
    progress_fraction double precision,
    stderr_tail       text,
    device_secs       double precision NOT NULL DEFAULT 0,
    created_at        timestamptz NOT NULL DEFAULT now(),
    started_at        timestamptz,
    ended_at          timestamptz,
    UNIQUE (project, identity),
    CHECK ((state = 'running') = (lease_expires_at IS NOT NULL))
);
CREATE INDEX probes_running ON probes (lease_expires_at) WHERE state = 'running';
CREATE INDEX probes_on_device ON probes (device) WHERE state = 'running';
CREATE INDEX probes_queued ON probes (backend, device_model, created_at) WHERE state = 'queued';

-- Probes belong to no study: deleting one study never takes another's evidence.
CREATE TABLE study_probes (
    study    uuid NOT NULL REFERENCES studies ON DELETE CASCADE,
    revision integer NOT NULL,
    probe    uuid NOT NULL REFERENCES probes,
    wave     integer NOT NULL,
    position integer NOT NULL,
    reused   boolean NOT NULL DEFAULT false,
    why      text NOT NULL,
    PRIMARY KEY (study, revision, wave, position),
    UNIQUE (study, revision, probe)
);
CREATE INDEX study_probes_by_probe ON study_probes (probe);

-- Append-only; only the completing attempt is evidence.
CREATE TABLE measurements (
    probe        uuid NOT NULL REFERENCES probes ON DELETE CASCADE,
    attempt      integer NOT NULL,
    seq          integer NOT NULL,
    metric       text NOT NULL,
    step         bigint,
    value        double precision NOT NULL,
    unit         text NOT NULL,
    elapsed_secs double precision NOT NULL,
    PRIMARY KEY (probe, attempt, seq)
);

CREATE TABLE recommendations (
    id             uuid PRIMARY KEY,
    study          uuid NOT NULL REFERENCES studies ON DELETE CASCADE,
    revision       integer NOT NULL,
    topic          text NOT NULL,
    grade          text NOT NULL,
    body           jsonb NOT NULL,
    stale          boolean NOT NULL DEFAULT false,
    invalidated_by jsonb NOT NULL DEFAULT '[]',
    created_at     timestamptz NOT NULL DEFAULT now(),
    updated_at     timestamptz NOT NULL DEFAULT now(),
    UNIQUE (study, revision, topic)
);

CREATE TABLE study_events (
    study      uuid NOT NULL REFERENCES studies ON DELETE CASCADE,
    seq        bigint NOT NULL,
    kind       text NOT NULL,
    data       jsonb NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (study, seq)
);
CREATE INDEX study_events_by_age ON study_events (created_at);

-- Answers to writes that carried an Idempotency-Key, kept in the write's own transaction.
CREATE TABLE idempotency_keys (
    project      text NOT NULL,
    created_by   text NOT NULL,
    operation    text NOT NULL,
    key          text NOT NULL,
    request_hash text NOT NULL,
    study        uuid NOT NULL REFERENCES studies ON DELETE CASCADE,
    created_at   timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (project, created_by, operation, key)
);
CREATE INDEX idempotency_keys_by_age ON idempotency_keys (created_at);
