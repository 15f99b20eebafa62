-- Name and version of a GPU's driver.
ALTER TABLE devices ADD COLUMN driver text;
