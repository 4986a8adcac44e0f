-- A request has one pair of errors of two versions, whichever served it and however often it is reported.
DELETE FROM paired_errors WHERE (model, seq) NOT IN (
    SELECT model, min(seq) FROM paired_errors
    GROUP BY model, request_id, min(served, shadow), max(served, shadow)
);
CREATE UNIQUE INDEX paired_errors_once
    ON paired_errors (model, request_id, min(served, shadow), max(served, shadow));
CREATE INDEX paired_errors_versions ON paired_errors (model, served, shadow, seq);
