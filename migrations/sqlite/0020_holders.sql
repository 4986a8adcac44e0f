-- The registered worker that has the message in hand: once it is dead, the message is anybody's.
ALTER TABLE outbox ADD COLUMN holder BLOB;
CREATE INDEX outbox_holder ON outbox (holder) WHERE holder IS NOT NULL;
ALTER TABLE boards ADD COLUMN holder BLOB;
CREATE INDEX boards_holder ON boards (holder) WHERE holder IS NOT NULL;
