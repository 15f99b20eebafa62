-- As for probes. A migration of its own: it must not hold one table and wait for the other.
ALTER TABLE studies DROP CONSTRAINT IF EXISTS studies_state_check, DROP CONSTRAINT IF EXISTS studies_check;
