DROP INDEX studies_waiting;
DROP INDEX studies_claimable;
