-- The order in which the attempts of a run began, from 0.
ALTER TABLE attempts ADD COLUMN place INTEGER NOT NULL DEFAULT 0;
UPDATE attempts SET place = (SELECT count(*) FROM attempts b WHERE b.run = attempts.run AND b.seq < attempts.seq);
-- What began in the checkpoint that ended this attempt. It has no row of its own until it ends, sleeps or is lost: a
-- checkpoint from one step to the next writes one row.
ALTER TABLE attempts ADD COLUMN next_step TEXT;
ALTER TABLE attempts ADD COLUMN next_attempt INTEGER;
ALTER TABLE attempts ADD COLUMN next_place INTEGER;
