-- The order in which the attempts of a run began, from 0.
ALTER TABLE refit.attempts ADD COLUMN place bigint NOT NULL DEFAULT 0;
UPDATE refit.attempts a SET place = o.place
FROM (SELECT run, step, attempt, row_number() OVER (PARTITION BY run ORDER BY seq) - 1 AS place FROM refit.attempts) o
WHERE o.run = a.run AND o.step = a.step AND o.attempt = a.attempt;
-- What began in the checkpoint that ended this attempt. It has no row of its own until it ends, sleeps or is lost: a
-- checkpoint from one step to the next writes one row, and neither writes nor locks that of the run. (Runs are never
-- deleted, so an attempt needs no reference to its own.)
ALTER TABLE refit.attempts ADD COLUMN next_step text, ADD COLUMN next_attempt bigint, ADD COLUMN next_place bigint;
-- Few rows are written twice now.
ALTER TABLE refit.attempts RESET (fillfactor);
