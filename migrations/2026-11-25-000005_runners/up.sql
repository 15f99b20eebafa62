-- Which program a probe is for, and which programs workers offer.

ALTER TABLE probes ADD COLUMN runner text NOT NULL DEFAULT 'burn';

-- A device belongs to a host, and several workers of a host may offer different runners on it: each says so for itself.
CREATE TABLE device_runners (
    device    uuid NOT NULL REFERENCES devices ON DELETE CASCADE,
    runner    text NOT NULL,
    last_seen timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (device, runner)
);
