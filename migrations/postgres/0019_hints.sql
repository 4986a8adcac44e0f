-- What the queue writes of a wake-up that is there is a hint: one that a crash takes back is told again, or found by the
-- reaper. So fetching one and saying that it is done wait for no disk. Making one does: that is in the transaction of what
-- it tells of.
CREATE FUNCTION refit.write_hint() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM set_config('synchronous_commit', 'off', TRUE);
    RETURN NULL;
END
$$;

CREATE TRIGGER refit_hints BEFORE UPDATE OR DELETE ON apalis.jobs
    FOR EACH STATEMENT EXECUTE FUNCTION refit.write_hint();
