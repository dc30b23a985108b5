-- llmq's own API keys. The key itself is nowhere: only its SHA-256.
CREATE TABLE keys (
    id                 TEXT PRIMARY KEY NOT NULL,   -- UUIDv7: the order of ids is that of creation
    name               TEXT NOT NULL,
    prefix             TEXT NOT NULL,               -- the key's first characters, to know it by
    sha256             BLOB NOT NULL UNIQUE CHECK (length(sha256) = 32),
    scopes             TEXT NOT NULL,               -- JSON array of text
    models             TEXT,                        -- JSON array of text; NULL: every model
    tenant             TEXT,                        -- NULL: the name
    any_tenant         INTEGER NOT NULL CHECK (any_tenant IN (0, 1)),
    limits             TEXT NOT NULL,               -- JSON array of text such as "rpm=60"
    tokens_per_day     INTEGER CHECK (tokens_per_day >= 0),
    tokens_per_month   INTEGER CHECK (tokens_per_month >= 0),
    nano_usd_per_day   INTEGER CHECK (nano_usd_per_day >= 0),
    nano_usd_per_month INTEGER CHECK (nano_usd_per_month >= 0),
    created_at         INTEGER NOT NULL,            -- microseconds since 1970, as every instant here
    revoked_at         INTEGER
) STRICT;

-- A name tells one key that is in use; one that was revoked no longer needs it.
CREATE UNIQUE INDEX keys_in_use ON keys (name) WHERE revoked_at IS NULL;

-- What a key used in a day ("2026-01-31") or month ("2026-01").
CREATE TABLE key_usage (
    key_id         TEXT NOT NULL REFERENCES keys (id),
    period         TEXT NOT NULL,
    input_tokens   INTEGER NOT NULL,
    output_tokens  INTEGER NOT NULL,
    nano_usd       INTEGER NOT NULL,
    -- What its budget may have spent at most: never less than what was really spent, whenever
    -- the process ends.
    drawn_tokens   INTEGER NOT NULL,
    drawn_nano_usd INTEGER NOT NULL,
    PRIMARY KEY (key_id, period)
) STRICT, WITHOUT ROWID;

-- Limits that nobody configured, as the headers of an upstream's server told them.
CREATE TABLE learned_limits (
    upstream TEXT NOT NULL,
    host     TEXT NOT NULL,
    limits   TEXT NOT NULL,                         -- JSON array of text such as "requests=500/1m"
    PRIMARY KEY (upstream, host)
) STRICT, WITHOUT ROWID;

-- What was spent of each limit, and the state of each upstream's daily quota.
CREATE TABLE limit_books (
    name TEXT PRIMARY KEY NOT NULL,
    used TEXT NOT NULL                              -- JSON array of [age in ms, amount], oldest first
) STRICT, WITHOUT ROWID;
CREATE TABLE quota_books (
    upstream TEXT PRIMARY KEY NOT NULL,
    state    TEXT NOT NULL                          -- JSON of the quota monitor
) STRICT, WITHOUT ROWID;

-- When the process that kept these books was last alive, and whether it stopped by itself.
CREATE TABLE sign_of_life (
    only     INTEGER PRIMARY KEY CHECK (only = 1),
    alive_at INTEGER NOT NULL,
    clean    INTEGER NOT NULL CHECK (clean IN (0, 1))
) STRICT;
