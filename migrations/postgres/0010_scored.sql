-- The truth of a row that refit scored itself, until the app's own report of that request has met it: a pair that has
-- none was made of, or has met, a report. Of pairs from before it is not known; they are taken for reported.
ALTER TABLE refit.paired_errors ADD COLUMN truth double precision;
