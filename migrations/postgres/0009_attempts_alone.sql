-- Runs are never deleted, and a checkpoint locks its run's row before it inserts an attempt: the check of the reference
-- found nothing, and cost a twentieth of each checkpoint.
ALTER TABLE refit.attempts DROP CONSTRAINT attempts_run_fkey;
-- An attempt is inserted short, and grows once, when it ends: with room on its page that touches no index.
ALTER TABLE refit.attempts SET (fillfactor = 50);
