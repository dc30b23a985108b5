use std::collections::BTreeMap;

use llmq_core::WallTime;
use rusqlite::{Connection, OptionalExtension, params};
use serde::{Deserialize, Serialize};

use crate::keys::{from_db, from_json, to_db, to_json};
use crate::sums::{expect_whole, whole_ones};
use crate::{Store, StoreError};

/// A part of what was spent of a limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "(u64, u64)", into = "(u64, u64)")]
pub struct UsedPart {
    /// How long before the books were written it was spent, in milliseconds.
    pub age_ms: u64,
    /// How much, in what the limit counts.
    pub amount: u64,
}

impl From<(u64, u64)> for UsedPart {
    fn from((age_ms, amount): (u64, u64)) -> Self {
        Self { age_ms, amount }
    }
}

impl From<UsedPart> for (u64, u64) {
    fn from(part: UsedPart) -> Self {
        (part.age_ms, part.amount)
    }
}

/// What was spent of the limits, for the next process.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LimitBooks {
    /// When the process was last alive.
    pub alive_at: WallTime,
    /// Whether it stopped by itself: then this is all that was used. Otherwise more may have been,
    /// of every limit that is not written ahead.
    pub clean: bool,
    /// By the limit's name, what was spent, oldest first.
    pub used: BTreeMap<String, Vec<UsedPart>>,
    /// By the limit's name, how many tokens its provider charges for a million that our rules
    /// say.
    pub charged_per_million: BTreeMap<String, u64>,
    /// By upstream, the state of its daily quota in the form of its owner (JSON).
    pub quota: BTreeMap<String, String>,
}

impl Store {
    /// Records the books, in the place of those before: all of them or nothing. When this
    /// returns, what they write ahead may be used: they survive a power cut.
    ///
    /// # Errors
    ///
    /// [`StoreError`]; the books before stand.
    pub async fn save_limit_books(&self, books: LimitBooks) -> Result<(), StoreError> {
        self.write(move |connection| save(connection, &books)).await
    }

    /// The books as they were last recorded; none before the first time.
    ///
    /// # Errors
    ///
    /// [`StoreError`].
    pub async fn limit_books(&self) -> Result<Option<LimitBooks>, StoreError> {
        self.read(load).await
    }
}

fn save(connection: &Connection, books: &LimitBooks) -> rusqlite::Result<()> {
    connection.execute("DELETE FROM limit_books", [])?;
    connection.execute("DELETE FROM quota_books", [])?;
    for (name, used) in &books.used {
        connection
            .prepare_cached(
                "INSERT INTO limit_books (name, used, sum) VALUES (?1, ?2, checksum(?1, ?2))",
            )?
            .execute(params![name, to_json(used)?])?;
    }
    // Most times as it was, and then nothing is written.
    connection.execute(
        "DELETE FROM charges WHERE name NOT IN (SELECT value FROM json_each(?1))",
        params![to_json(
            &books.charged_per_million.keys().collect::<Vec<_>>()
        )?],
    )?;
    for (name, charged) in &books.charged_per_million {
        connection
            .prepare_cached(
                "INSERT INTO charges (name, charged_per_million, sum)
                 VALUES (?1, ?2, checksum(?1, ?2))
                 ON CONFLICT (name) DO UPDATE SET charged_per_million = ?2, sum = excluded.sum
                 WHERE charged_per_million <> ?2 OR sum <> excluded.sum",
            )?
            .execute(params![name, to_db(*charged)])?;
    }
    for (upstream, state) in &books.quota {
        connection
            .prepare_cached(
                "INSERT INTO quota_books (upstream, state, sum) VALUES (?1, ?2, checksum(?1, ?2))",
            )?
            .execute(params![upstream, state])?;
    }
    connection.execute(
        "INSERT OR REPLACE INTO sign_of_life (only, alive_at, clean, sum)
         VALUES (1, ?1, ?2, checksum(1, ?1, ?2))",
        params![books.alive_at.as_micros(), books.clean],
    )?;
    Ok(())
}

fn load(connection: &Connection) -> rusqlite::Result<Option<LimitBooks>> {
    let sign = connection
        .query_row(
            "SELECT alive_at, clean, sum IS checksum(only, alive_at, clean) FROM sign_of_life",
            [],
            |row| {
                expect_whole(row, 2, "sign_of_life")?;
                Ok((row.get(0)?, row.get(1)?))
            },
        )
        .optional()?;
    let Some((alive_at, clean)) = sign else {
        return Ok(None);
    };
    let select = "SELECT name, used, sum IS checksum(name, used) FROM limit_books";
    let mut query = connection.prepare(select)?;
    let used = query.query_map([], |row| {
        expect_whole(row, 2, "limit_books")?;
        Ok((row.get(0)?, from_json(row, "used")?))
    })?;
    let used = whole_ones(used, usize::MAX)?.into_iter().collect();
    let select = "SELECT name, charged_per_million, sum IS checksum(name, charged_per_million)
                  FROM charges";
    let mut query = connection.prepare(select)?;
    let charged = query.query_map([], |row| {
        expect_whole(row, 2, "charges")?;
        Ok((row.get(0)?, from_db(row.get(1)?)))
    })?;
    let charged_per_million = whole_ones(charged, usize::MAX)?.into_iter().collect();
    let select = "SELECT upstream, state, sum IS checksum(upstream, state) FROM quota_books";
    let mut query = connection.prepare(select)?;
    let quota = query.query_map([], |row| {
        expect_whole(row, 2, "quota_books")?;
        Ok((row.get(0)?, row.get(1)?))
    })?;
    let quota = whole_ones(quota, usize::MAX)?.into_iter().collect();
    Ok(Some(LimitBooks {
        alive_at: WallTime::from_micros(alive_at),
        clean,
        used,
        charged_per_million,
        quota,
    }))
}
