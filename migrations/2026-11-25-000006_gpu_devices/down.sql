ALTER TABLE devices DROP COLUMN driver;
