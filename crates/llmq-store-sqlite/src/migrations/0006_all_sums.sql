-- The rest of the tables have a checksum of all other columns too.
ALTER TABLE keys ADD COLUMN sum INTEGER NOT NULL DEFAULT 0;
UPDATE keys SET sum = checksum(id, name, prefix, sha256, scopes, models, tenant, any_tenant, limits,
  tokens_per_day, tokens_per_month, nano_usd_per_day, nano_usd_per_month, created_at, revoked_at);

ALTER TABLE key_usage ADD COLUMN sum INTEGER NOT NULL DEFAULT 0;
UPDATE key_usage SET sum = checksum(key_id, period, input_tokens, output_tokens, nano_usd,
  drawn_tokens, drawn_nano_usd);

ALTER TABLE learned_limits ADD COLUMN sum INTEGER NOT NULL DEFAULT 0;
UPDATE learned_limits SET sum = checksum(upstream, host, limits);

ALTER TABLE limit_books ADD COLUMN sum INTEGER NOT NULL DEFAULT 0;
UPDATE limit_books SET sum = checksum(name, used);

ALTER TABLE quota_books ADD COLUMN sum INTEGER NOT NULL DEFAULT 0;
UPDATE quota_books SET sum = checksum(upstream, state);

ALTER TABLE charges ADD COLUMN sum INTEGER NOT NULL DEFAULT 0;
UPDATE charges SET sum = checksum(name, charged_per_million);

ALTER TABLE sign_of_life ADD COLUMN sum INTEGER NOT NULL DEFAULT 0;
UPDATE sign_of_life SET sum = checksum(only, alive_at, clean);

ALTER TABLE store_facts ADD COLUMN sum INTEGER NOT NULL DEFAULT 0;
UPDATE store_facts SET sum = checksum(name, value);

ALTER TABLE stages ADD COLUMN sum INTEGER NOT NULL DEFAULT 0;
UPDATE stages SET sum = checksum(number, published_at, shift);

ALTER TABLE idempotency ADD COLUMN sum INTEGER NOT NULL DEFAULT 0;
UPDATE idempotency SET sum = checksum(tenant, key, hash, job, used_at);

ALTER TABLE queues ADD COLUMN sum INTEGER NOT NULL DEFAULT 0;
UPDATE queues SET sum = checksum(queue, paused, drains, stood, stands_since, queued, processing,
  completed, failed, expired, cancelled, bytes);

-- Events were summed without how many they are and when; what was damaged before stays so.
UPDATE event_log SET sum = checksum(last, count, at, packed) WHERE sum = blob_sum(last, packed);
