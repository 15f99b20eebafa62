-- The reaper's index, told by the deadline that only running probes have, as the table checks, and not by their state:
-- so it tempts no plan that looks for the running probes of a device to read those of all.
CREATE INDEX probes_leased ON probes (lease_expires_at) WHERE lease_expires_at IS NOT NULL;
DROP INDEX probes_running;
