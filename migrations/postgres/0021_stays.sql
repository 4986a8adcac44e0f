-- A server stays; who follows one run, or does what is due, is gone after that.
ALTER TABLE refit.processes ADD COLUMN stays BOOLEAN NOT NULL DEFAULT TRUE;
