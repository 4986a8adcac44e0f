-- What began in the checkpoint that ended this attempt. It has no row of its own until it ends, sleeps or is lost: a
-- checkpoint from one step to the next writes one row.
ALTER TABLE refit.attempts ADD COLUMN next_step text, ADD COLUMN next_attempt bigint;
-- Few rows are written twice now.
ALTER TABLE refit.attempts RESET (fillfactor);
