-- A request has one pair of errors of two versions, whichever served it and however often it is reported.
DELETE FROM refit.paired_errors WHERE (model, seq) NOT IN (
    SELECT model, min(seq) FROM refit.paired_errors
    GROUP BY model, request_id, least(served, shadow), greatest(served, shadow)
);
CREATE UNIQUE INDEX paired_errors_once
    ON refit.paired_errors (model, request_id, least(served, shadow), greatest(served, shadow));
CREATE INDEX paired_errors_versions ON refit.paired_errors (model, served, shadow, seq);
