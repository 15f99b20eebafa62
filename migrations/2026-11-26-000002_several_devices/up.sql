-- How many devices may train together on one, and how many a probe needs.
ALTER TABLE devices ADD COLUMN count integer NOT NULL DEFAULT 1 CHECK (count >= 1);
ALTER TABLE probes ADD COLUMN device_count integer
    GENERATED ALWAYS AS (coalesce((spec -> 'device' ->> 'count')::integer, 1)) STORED;
