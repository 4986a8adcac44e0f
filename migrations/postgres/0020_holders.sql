-- The registered worker that has the message in hand: once it is dead, the message is anybody's.
ALTER TABLE refit.outbox ADD COLUMN holder uuid;
CREATE INDEX outbox_holder ON refit.outbox (holder) WHERE holder IS NOT NULL;
ALTER TABLE refit.boards ADD COLUMN holder uuid;
CREATE INDEX boards_holder ON refit.boards (holder) WHERE holder IS NOT NULL;
