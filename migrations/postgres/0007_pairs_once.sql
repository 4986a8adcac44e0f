-- A request has one pair of errors of two versions, whichever served it and however often it is reported: the two are
-- kept in the order of their names.
DELETE FROM refit.paired_errors p
    USING (
        SELECT model, seq, row_number() OVER (
            PARTITION BY model, request_id, least(served, shadow), greatest(served, shadow) ORDER BY seq
        ) AS nth
        FROM refit.paired_errors
    ) d
    WHERE d.nth > 1 AND p.model = d.model AND p.seq = d.seq;
UPDATE refit.paired_errors
    SET served = shadow, served_error = shadow_error, shadow = served, shadow_error = served_error
    WHERE served COLLATE "C" > shadow COLLATE "C";
ALTER TABLE refit.paired_errors RENAME COLUMN served TO one;
ALTER TABLE refit.paired_errors RENAME COLUMN served_error TO one_error;
ALTER TABLE refit.paired_errors RENAME COLUMN shadow TO other;
ALTER TABLE refit.paired_errors RENAME COLUMN shadow_error TO other_error;
CREATE UNIQUE INDEX paired_errors_once ON refit.paired_errors (model, request_id, one, other);
CREATE INDEX paired_errors_versions ON refit.paired_errors (model, one, other, seq);
