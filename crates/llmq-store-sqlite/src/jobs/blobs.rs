//! Large values: appended, read whole, and checked when they are read.

use bytes::Bytes;
use llmq_store::{StoreError, StoredAnswer};
use rusqlite::{Connection, OptionalExtension, params};
use xxhash_rust::xxh3::xxh3_64_with_seed;

pub(crate) fn put(connection: &Connection, number: i64, data: &[u8]) -> rusqlite::Result<()> {
    let mut insert =
        connection.prepare_cached("INSERT INTO blobs (number, data, sum) VALUES (?1, ?2, ?3)")?;
    insert.execute(params![number, data, sum(number, data)])?;
    Ok(())
}

/// The blob with this number, or what is wrong with it.
pub(crate) fn get(
    connection: &Connection,
    number: i64,
) -> rusqlite::Result<Result<Bytes, StoreError>> {
    let mut query = connection.prepare_cached("SELECT data, sum FROM blobs WHERE number = ?1")?;
    let found = query
        .query_row([number], |row| {
            let data = row.get_ref(0)?.as_blob().ok().map(Bytes::copy_from_slice);
            Ok((data, row.get::<_, i64>(1).ok()))
        })
        .optional()?;
    Ok(match found {
        Some((Some(data), Some(stored))) if stored == sum(number, &data) => Ok(data),
        Some(_) => Err(StoreError::damaged(format!(
            "blob {number}: its checksum is wrong"
        ))),
        None => Err(StoreError::damaged(format!("blob {number} is not there"))),
    })
}

pub(crate) fn delete(connection: &Connection, number: i64) -> rusqlite::Result<()> {
    let mut delete = connection.prepare_cached("DELETE FROM blobs WHERE number = ?1")?;
    delete.execute([number])?;
    Ok(())
}

/// The number is part of it, so that two blobs cannot change places unseen.
pub(crate) fn sum(number: i64, data: &[u8]) -> i64 {
    xxh3_64_with_seed(data, number.cast_unsigned()).cast_signed()
}

/// An answer as one blob: status, length of the headers, headers as JSON, body.
pub(crate) fn pack(answer: &StoredAnswer) -> Vec<u8> {
    let headers = serde_json::to_vec(&answer.headers).unwrap_or_default();
    let length = u32::try_from(headers.len()).unwrap_or(u32::MAX);
    let mut packed = Vec::with_capacity(6 + headers.len() + answer.body.len());
    packed.extend_from_slice(&answer.status.to_le_bytes());
    packed.extend_from_slice(&length.to_le_bytes());
    packed.extend_from_slice(&headers);
    packed.extend_from_slice(&answer.body);
    packed
}

/// What [`pack`] packed; `None` for something else.
pub(crate) fn unpack(packed: &Bytes) -> Option<StoredAnswer> {
    let status = u16::from_le_bytes(packed.get(..2)?.try_into().ok()?);
    let length = u32::from_le_bytes(packed.get(2..6)?.try_into().ok()?);
    let end = 6 + usize::try_from(length).ok()?;
    Some(StoredAnswer {
        status,
        headers: serde_json::from_slice(packed.get(6..end)?).ok()?,
        body: packed.slice(end..),
    })
}
