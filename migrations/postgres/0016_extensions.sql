-- More time that people gave a canary, in order. The last one has its deadline, whatever the record says.
ALTER TABLE refit.canaries ADD COLUMN extensions jsonb NOT NULL DEFAULT '[]';
