-- When the request of a pair was served: it counts once it is old enough. Unknown of rows that refit scored itself.
ALTER TABLE refit.paired_errors ADD COLUMN served_at timestamptz;
CREATE INDEX paired_errors_aged ON refit.paired_errors (model, one, other, served_at, seq);

-- Requests with a prediction by when they were served, and how many of them have their truth.
CREATE TABLE refit.label_minutes (
    model text NOT NULL,
    version text NOT NULL,
    minute timestamptz NOT NULL,
    predicted bigint NOT NULL,
    labelled bigint NOT NULL,
    PRIMARY KEY (model, minute, version)
);
