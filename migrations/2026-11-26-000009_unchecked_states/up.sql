-- Postgres reads the text of each check anew for every statement that writes a row of its table: a twentieth of a claim
-- with its completion. What a row may be is said by the types that write it, and tests look at what they left behind.
ALTER TABLE probes DROP CONSTRAINT probes_state_check, DROP CONSTRAINT probes_check;
ALTER TABLE studies DROP CONSTRAINT studies_state_check, DROP CONSTRAINT studies_check;
