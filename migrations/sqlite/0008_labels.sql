-- When the request of a pair was served: it counts once it is old enough. Unknown of rows that refit scored itself.
ALTER TABLE paired_errors ADD COLUMN served_at TEXT;
CREATE INDEX paired_errors_aged ON paired_errors (model, one, other, served_at, seq);

-- Requests with a prediction by when they were served, and how many of them have their truth.
CREATE TABLE label_minutes (
    model TEXT NOT NULL,
    version TEXT NOT NULL,
    minute TEXT NOT NULL,
    predicted INTEGER NOT NULL,
    labelled INTEGER NOT NULL,
    PRIMARY KEY (model, minute, version)
) STRICT, WITHOUT ROWID;
