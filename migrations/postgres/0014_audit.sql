-- What was known of the canary that a change of a release is about, and the SHA-256 of the configuration it is
-- judged under, both as of the change; nothing where no canary was out, where no run is concerned.
ALTER TABLE refit.release_audit ADD COLUMN evidence jsonb;
ALTER TABLE refit.release_audit ADD COLUMN configuration text;
