-- Most recommendations take 2 to 4 kB compressed. By default what is above 2 kB goes to a table of its own, with an index
-- of its own, and each one that is read is looked up there.
ALTER TABLE recommendations SET (toast_tuple_target = 4080);
