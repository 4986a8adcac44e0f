-- The truth of a row that refit scored itself, until the app's own report of that request has met it: a pair that has
-- none was made of, or has met, a report. Of pairs from before it is not known; they are taken for reported.
ALTER TABLE paired_errors ADD COLUMN truth REAL;

-- How many rows share a key's first columns, for the planner: nobody runs ANALYZE here, and without figures SQLite
-- takes a model's pairs for as few as those of one request. Rounded, of a model with long evidence; only their order
-- of size matters.
ANALYZE sqlite_schema;
DELETE FROM sqlite_stat1;
INSERT INTO sqlite_stat1 (tbl, idx, stat) VALUES
    ('paired_errors', 'paired_errors', '1000000 500000 1'),
    ('paired_errors', 'paired_errors_once', '1000000 500000 3 2 1'),
    ('paired_errors', 'paired_errors_versions', '1000000 500000 200000 100000 1'),
    ('paired_errors', 'paired_errors_aged', '1000000 500000 200000 100000 2 1');
ANALYZE sqlite_schema;
