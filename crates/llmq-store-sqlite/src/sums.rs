//! Checksums of the rows of small tables, as a function of SQL: what a statement writes and what it
//! reads is summed where it stands, and a migration sums what is there.

use rusqlite::functions::{Context, FunctionFlags};
use rusqlite::types::{Type, ValueRef};
use rusqlite::{Connection, Row};
use xxhash_rust::xxh3::Xxh3;

use crate::jobs::{addressee_of, blob_sum, is_of_value};

/// The tables whose rows have a `sum`, with the other columns in the order in which they are
/// summed.
pub(crate) const SUMMED: [(&str, &str); 18] = [
    ("names", "number, name"),
    ("webhook_endpoints", "id, data"),
    (
        "deliveries",
        "number, endpoint, callback, event, due_at, delivered, attempts, last_attempt_at, \
         last_outcome, addressee",
    ),
    ("batches", "number, id, tenant, stage, ended, data"),
    ("files", "id, tenant, state, expires_at, data"),
    ("file_chunks", "file, chunk, blob"),
    (
        "keys",
        "id, name, prefix, sha256, scopes, models, tenant, any_tenant, limits, tokens_per_day, \
         tokens_per_month, nano_usd_per_day, nano_usd_per_month, created_at, revoked_at",
    ),
    (
        "key_usage",
        "key_id, period, input_tokens, output_tokens, nano_usd, drawn_tokens, drawn_nano_usd",
    ),
    ("learned_limits", "upstream, host, limits"),
    ("limit_books", "name, used"),
    ("quota_books", "upstream, state"),
    ("charges", "name, charged_per_million"),
    ("sign_of_life", "only, alive_at, clean"),
    ("store_facts", "name, value"),
    ("event_log", "last, count, at, packed"),
    ("stages", "number, published_at, shift"),
    ("idempotency", "tenant, key, hash, job, used_at"),
    (
        "queues",
        "queue, paused, drains, stood, stands_since, queued, processing, completed, failed, \
         expired, cancelled, bytes",
    ),
];

/// Makes what our statements call known to a connection: `checksum(…)`, a number of all its
/// arguments and their kinds, `blob_sum(number, data)` of a blob, and
/// `addressee(endpoint, callback, event)` of a delivery.
pub(crate) fn register(connection: &Connection) -> rusqlite::Result<()> {
    let flags = FunctionFlags::SQLITE_UTF8 | FunctionFlags::SQLITE_DETERMINISTIC;
    connection.create_scalar_function("checksum", -1, flags, |context| Ok(sum(context)))?;
    connection.create_scalar_function("blob_sum", 2, flags, |values| {
        Ok(blob_sum(values.get(0)?, values.get_raw(1).as_blob()?))
    })?;
    connection.create_scalar_function("addressee", 3, flags, |values| {
        let endpoint = values.get_raw(0).as_blob_or_null().ok().flatten();
        let endpoint = endpoint.and_then(|id| id.try_into().ok());
        let text = |at| values.get_raw(at).as_str_or_null().ok().flatten();
        Ok(addressee_of(endpoint, text(1), text(2).unwrap_or_default()))
    })
}

fn sum(values: &Context<'_>) -> i64 {
    let mut sum = Xxh3::new();
    for at in 0..values.len() {
        let mut add = |kind: u8, bytes: &[u8]| {
            sum.update(&[kind]);
            sum.update(&(bytes.len() as u64).to_le_bytes());
            sum.update(bytes);
        };
        match values.get_raw(at) {
            ValueRef::Null => add(0, &[]),
            ValueRef::Integer(number) => add(1, &number.to_le_bytes()),
            ValueRef::Real(number) => add(2, &number.to_le_bytes()),
            ValueRef::Text(text) => add(3, text),
            ValueRef::Blob(bytes) => add(4, bytes),
        }
    }
    sum.digest().cast_signed()
}

/// The first `max` rows that are what was written. One that is not is left out and said in the log:
/// it keeps nobody from the others, and no server from its start, and `llmq store check` finds it.
pub(crate) fn whole_ones<T>(
    rows: impl Iterator<Item = rusqlite::Result<T>>,
    max: usize,
) -> rusqlite::Result<Vec<T>> {
    let mut whole = Vec::new();
    for row in rows {
        if whole.len() == max {
            break;
        }
        match row {
            Ok(row) => whole.push(row),
            Err(error) => match is_of_value(&error) {
                Some(damage) => tracing::error!(error = %damage, "a list leaves a row out"),
                None => return Err(error),
            },
        }
    }
    Ok(whole)
}

/// That column `at` of a row, a comparison of its sum with what was summed now, says yes.
pub(crate) fn expect_whole(row: &Row<'_>, at: usize, what: &str) -> rusqlite::Result<()> {
    if row.get::<_, bool>(at)? {
        return Ok(());
    }
    Err(wrong(at, what))
}

/// The checksum of a row of `what`, which is column `at` of what was asked, is wrong.
pub(crate) fn wrong(at: usize, what: &str) -> rusqlite::Error {
    rusqlite::Error::FromSqlConversionFailure(
        at,
        Type::Integer,
        format!("{what}: the checksum of a row is wrong").into(),
    )
}
