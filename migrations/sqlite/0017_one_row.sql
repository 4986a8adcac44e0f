-- What began in the checkpoint that ended this attempt. It has no row of its own until it ends, sleeps or is lost: a
-- checkpoint from one step to the next writes one row.
ALTER TABLE attempts ADD COLUMN next_step TEXT;
ALTER TABLE attempts ADD COLUMN next_attempt INTEGER;
