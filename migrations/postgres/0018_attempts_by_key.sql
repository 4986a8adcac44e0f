-- Their place orders the attempts of a run: a number of its own would be taken from its sequence with every checkpoint.
ALTER TABLE refit.attempts DROP COLUMN seq;
