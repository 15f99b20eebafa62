-- Every lease that was given, kept for some days: a claim or a completion that comes again, late or twice,
-- finds here what it did the first time, and changes nothing.
CREATE TABLE leases (
    id         uuid PRIMARY KEY,
    -- NULL: given back before it held anything.
    probe      uuid,
    attempt    integer NOT NULL,
    -- What its completion made of the probe; NULL while it runs and when it was lost.
    became     text,
    claimed_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX leases_by_age ON leases (claimed_at);
