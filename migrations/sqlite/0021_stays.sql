-- A server stays; who follows one run, or does what is due, is gone after that.
ALTER TABLE processes ADD COLUMN stays INTEGER NOT NULL DEFAULT TRUE;
