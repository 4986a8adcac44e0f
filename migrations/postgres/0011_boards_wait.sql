-- Since when the service takes no more and the message waits for a turn; nothing once it was brought up to date.
ALTER TABLE refit.boards ADD COLUMN waits_since timestamptz;
