-- More time that people gave a canary, in order. The last one has its deadline, whatever the record says.
ALTER TABLE canaries ADD COLUMN extensions TEXT NOT NULL DEFAULT '[]';
