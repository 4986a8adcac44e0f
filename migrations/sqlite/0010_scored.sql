-- The truth of a row that refit scored itself, until the app's own report of that request has met it: a pair that has
-- none was made of, or has met, a report. Of pairs from before it is not known; they are taken for reported.
ALTER TABLE paired_errors ADD COLUMN truth REAL;
