-- Postgres reads the text of each check anew for every statement that writes a row of its table: a twentieth of a claim
-- with its completion. What a row may be is said by the types that write it, and tests look at what they left behind.
ALTER TABLE probes DROP CONSTRAINT IF EXISTS probes_state_check, DROP CONSTRAINT IF EXISTS probes_check;
-- leases.became is from now on noted only where the row of the probe does not say it: not of one that succeeded or is
-- infeasible, which keeps the lease that ended it.
