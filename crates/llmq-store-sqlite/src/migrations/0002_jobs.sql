-- The store's own id, drawn when it was made, and numbers that only ever grow.
CREATE TABLE store_facts (
    name  TEXT PRIMARY KEY NOT NULL,
    value BLOB NOT NULL
) STRICT, WITHOUT ROWID;

-- Names of queues, tenants and upstreams: rows of jobs hold their numbers.
CREATE TABLE names (
    number INTEGER PRIMARY KEY,
    name   TEXT NOT NULL UNIQUE
) STRICT;

-- Jobs. Narrow, since a row is written three times in its life; what is large lies in blobs.
-- Instants are microseconds since 1970.
CREATE TABLE jobs (
    number        INTEGER PRIMARY KEY,
    id            BLOB NOT NULL UNIQUE CHECK (length(id) = 16),
    status        INTEGER NOT NULL,      -- 0 queued, 1 processing, 2 completed, 3 failed, 4 expired, 5 cancelled
    queue         INTEGER NOT NULL,      -- names
    tenant        INTEGER NOT NULL,      -- names
    priority      INTEGER NOT NULL,
    place         INTEGER NOT NULL,      -- in its lane: smaller goes first
    input_tokens  INTEGER NOT NULL,
    output_max    INTEGER,
    choices       INTEGER NOT NULL,
    attempts      INTEGER NOT NULL,
    max_attempts  INTEGER NOT NULL,
    throttles     INTEGER NOT NULL,
    flags         INTEGER NOT NULL,      -- 1 may have been sent, 2 not_before is of the calendar, 4 has an idempotency key
    bytes         INTEGER NOT NULL,      -- what it counts for in the capacity
    token         INTEGER NOT NULL,      -- of its newest lease; 0 before the first
    created_at    INTEGER NOT NULL,
    deadline      INTEGER,               -- in its queue's time, which stands while the queue does
    not_before    INTEGER,
    started_at    INTEGER,
    finished_at   INTEGER,
    stage         INTEGER,               -- stages: seen only once that is published
    batch         INTEGER,               -- batches
    line          INTEGER,
    body          INTEGER NOT NULL,      -- blobs
    answer        INTEGER,               -- blobs
    details       TEXT NOT NULL,         -- JSON: what its acceptor noted
    outcome       TEXT,                  -- JSON: upstream, usage, cost, error
    sum           INTEGER NOT NULL,      -- XXH3 of all other columns
    CHECK ((status >= 2) = (finished_at IS NOT NULL))
) STRICT;

-- The jobs that have not ended, in their order: what is read when the store is opened.
CREATE INDEX jobs_open ON jobs (place) WHERE status < 2;
CREATE INDEX jobs_of_batch ON jobs (batch, line) WHERE batch IS NOT NULL;

-- Requests, answers and parts of files: only ever appended, and removed with what points to them.
CREATE TABLE blobs (
    number INTEGER PRIMARY KEY,
    data   BLOB NOT NULL,
    sum    INTEGER NOT NULL              -- XXH3 of number and data
) STRICT;

-- Inserts too large for one transaction: their rows count only once they are published.
CREATE TABLE stages (
    number       INTEGER PRIMARY KEY,
    published_at INTEGER,
    shift        INTEGER NOT NULL        -- added to the deadlines of its rows: they began to count when it was published
) STRICT;

CREATE TABLE idempotency (
    tenant  INTEGER NOT NULL,            -- names
    key     TEXT NOT NULL,
    hash    BLOB NOT NULL CHECK (length(hash) = 32),
    job     BLOB NOT NULL CHECK (length(job) = 16),
    used_at INTEGER NOT NULL,
    PRIMARY KEY (tenant, key)
) STRICT, WITHOUT ROWID;
CREATE INDEX idempotency_by_age ON idempotency (used_at);
CREATE INDEX idempotency_by_job ON idempotency (job);

-- What was decided about queues, and how many jobs they have in each status.
CREATE TABLE queues (
    queue         INTEGER PRIMARY KEY,   -- names
    paused        INTEGER NOT NULL,
    drains        INTEGER NOT NULL,
    stood         INTEGER NOT NULL,      -- microseconds, over all pauses that have ended
    stands_since  INTEGER,
    queued        INTEGER NOT NULL,
    processing    INTEGER NOT NULL,
    completed     INTEGER NOT NULL,
    failed        INTEGER NOT NULL,
    expired       INTEGER NOT NULL,
    cancelled     INTEGER NOT NULL,
    bytes         INTEGER NOT NULL
) STRICT;

-- The log of events: those of one transaction are one row, named by the number of its last.
CREATE TABLE event_log (
    last   INTEGER PRIMARY KEY,
    count  INTEGER NOT NULL,
    at     INTEGER NOT NULL,
    packed BLOB NOT NULL,
    sum    INTEGER NOT NULL
) STRICT;

CREATE TABLE webhook_endpoints (
    id   BLOB PRIMARY KEY NOT NULL CHECK (length(id) = 16),
    data TEXT NOT NULL                   -- JSON
) STRICT, WITHOUT ROWID;

CREATE TABLE deliveries (
    number          INTEGER PRIMARY KEY AUTOINCREMENT,
    endpoint        BLOB,                -- NULL: a job's own callback
    callback        TEXT,                -- JSON
    event           TEXT NOT NULL,       -- JSON
    due_at          INTEGER,             -- NULL: nobody tries any more
    delivered       INTEGER NOT NULL,
    attempts        INTEGER NOT NULL,
    last_attempt_at INTEGER,
    last_outcome    TEXT
) STRICT;
CREATE INDEX deliveries_due ON deliveries (due_at) WHERE due_at IS NOT NULL;
CREATE INDEX deliveries_of_endpoint ON deliveries (endpoint, number) WHERE endpoint IS NOT NULL;
CREATE INDEX deliveries_done ON deliveries (last_attempt_at) WHERE due_at IS NULL;

CREATE TABLE batches (
    number INTEGER PRIMARY KEY,
    id     BLOB NOT NULL UNIQUE CHECK (length(id) = 16),
    tenant TEXT NOT NULL,
    stage  INTEGER NOT NULL,             -- stages
    ended  INTEGER,                      -- when it came to its final status
    data   TEXT NOT NULL                 -- JSON
) STRICT;
CREATE INDEX batches_ended ON batches (ended) WHERE ended IS NOT NULL;

CREATE TABLE files (
    id         BLOB PRIMARY KEY NOT NULL CHECK (length(id) = 16),
    tenant     TEXT NOT NULL,
    state      INTEGER NOT NULL,         -- 0 being written, 1 to be seen, 2 to be removed
    expires_at INTEGER,
    data       TEXT NOT NULL             -- JSON
) STRICT, WITHOUT ROWID;
CREATE INDEX files_to_remove ON files (state) WHERE state = 2;
CREATE INDEX files_by_end ON files (expires_at) WHERE state = 1 AND expires_at IS NOT NULL;
CREATE TABLE file_chunks (
    file  BLOB NOT NULL,
    chunk INTEGER NOT NULL,
    blob  INTEGER NOT NULL,              -- blobs
    PRIMARY KEY (file, chunk)
) STRICT, WITHOUT ROWID;
