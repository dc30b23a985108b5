-- A checksum of all other columns, as jobs and blobs have had one: `checksum` is a function of llmq.
ALTER TABLE names ADD COLUMN sum INTEGER NOT NULL DEFAULT 0;
UPDATE names SET sum = checksum(number, name);

ALTER TABLE webhook_endpoints ADD COLUMN sum INTEGER NOT NULL DEFAULT 0;
UPDATE webhook_endpoints SET sum = checksum(id, data);

ALTER TABLE deliveries ADD COLUMN sum INTEGER NOT NULL DEFAULT 0;
UPDATE deliveries SET sum = checksum(number, endpoint, callback, event, due_at, delivered, attempts,
  last_attempt_at, last_outcome);

ALTER TABLE batches ADD COLUMN sum INTEGER NOT NULL DEFAULT 0;
UPDATE batches SET sum = checksum(number, id, tenant, stage, ended, data);

ALTER TABLE files ADD COLUMN sum INTEGER NOT NULL DEFAULT 0;
UPDATE files SET sum = checksum(id, tenant, state, expires_at, data);

ALTER TABLE file_chunks ADD COLUMN sum INTEGER NOT NULL DEFAULT 0;
UPDATE file_chunks SET sum = checksum(file, chunk, blob);
