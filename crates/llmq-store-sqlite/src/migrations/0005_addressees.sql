-- Each addressee has its own line of deliveries: `addressee` is a function of llmq.
ALTER TABLE deliveries ADD COLUMN addressee INTEGER NOT NULL DEFAULT 0;
UPDATE deliveries SET addressee = addressee(endpoint, callback, event);
-- What was damaged before stays so.
UPDATE deliveries SET sum = checksum(number, endpoint, callback, event, due_at, delivered, attempts,
  last_attempt_at, last_outcome, addressee)
WHERE sum IS checksum(number, endpoint, callback, event, due_at, delivered, attempts,
  last_attempt_at, last_outcome);
DROP INDEX deliveries_due;
CREATE INDEX deliveries_due ON deliveries (addressee, due_at) WHERE due_at IS NOT NULL;
CREATE INDEX deliveries_by_age ON deliveries (addressee, number) WHERE due_at IS NOT NULL;
