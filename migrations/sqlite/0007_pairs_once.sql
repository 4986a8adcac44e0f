-- A request has one pair of errors of two versions, whichever served it and however often it is reported: the two are
-- kept in the order of their names.
DELETE FROM paired_errors WHERE (model, seq) NOT IN (
    SELECT model, min(seq) FROM paired_errors
    GROUP BY model, request_id, min(served, shadow), max(served, shadow)
);
UPDATE paired_errors
    SET served = shadow, served_error = shadow_error, shadow = served, shadow_error = served_error
    WHERE served > shadow;
ALTER TABLE paired_errors RENAME COLUMN served TO one;
ALTER TABLE paired_errors RENAME COLUMN served_error TO one_error;
ALTER TABLE paired_errors RENAME COLUMN shadow TO other;
ALTER TABLE paired_errors RENAME COLUMN shadow_error TO other_error;
CREATE UNIQUE INDEX paired_errors_once ON paired_errors (model, request_id, one, other);
CREATE INDEX paired_errors_versions ON paired_errors (model, one, other, seq);
