use rusqlite::{Connection, params};
use uuid::Uuid;

use crate::keys::{from_db, to_db};
use crate::sums::{expect_whole, whole_ones, wrong};
use crate::{Store, StoreError};

/// Tokens and money together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Spend {
    /// Input and output tokens.
    pub tokens: u64,
    /// Billionths of a US dollar.
    pub nano_usd: u64,
}

/// What one key used in one day or month.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyUsage {
    /// The key.
    pub key: Uuid,
    /// The day, such as `2026-01-31`, or the month, such as `2026-01`.
    pub period: String,
    /// Input tokens that were booked.
    pub input_tokens: u64,
    /// Output tokens that were booked.
    pub output_tokens: u64,
    /// Billionths of a US dollar that were booked.
    pub nano_usd: u64,
    /// What may have been spent at most. It is written ahead of what is spent, so that it is
    /// never less than what was really spent, whenever the process ends.
    pub drawn: Spend,
}

/// What a record of usage means for those before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UsageRecord {
    /// Counts go on: no figure becomes smaller, in whatever order records arrive.
    Running,
    /// The last one of a process that stops: the figures are exactly these, so that what was
    /// drawn and not spent is free again.
    Final,
}

impl Store {
    /// Records what keys used: all of `usages`, or nothing. When this returns, `drawn` may be
    /// spent: it survives a power cut.
    ///
    /// # Errors
    ///
    /// [`StoreError`]; what was recorded before stands.
    pub async fn save_key_usage(
        &self,
        usages: Vec<KeyUsage>,
        record: UsageRecord,
    ) -> Result<(), StoreError> {
        self.write(move |connection| {
            usages
                .iter()
                .try_for_each(|usage| save(connection, usage, record))
        })
        .await
    }

    /// All that is recorded of periods that are not before `day` (such as `2026-01-31`) or
    /// `month` (such as `2026-01`), of keys in use and revoked ones.
    ///
    /// # Errors
    ///
    /// [`StoreError`].
    pub async fn key_usage(&self, day: String, month: String) -> Result<Vec<KeyUsage>, StoreError> {
        self.read(move |connection| {
            let mut query = connection.prepare_cached(
                "SELECT key_id, period, input_tokens, output_tokens, nano_usd, drawn_tokens,
                   drawn_nano_usd,
                   key_usage.sum IS checksum(key_id, period, input_tokens, output_tokens, nano_usd,
                     drawn_tokens, drawn_nano_usd)
                 FROM key_usage
                 WHERE (length(period) = 10 AND period >= ?1)
                   OR (length(period) = 7 AND period >= ?2)
                 ORDER BY key_id, period",
            )?;
            let rows = query.query_map([&day, &month], |row| {
                expect_whole(row, 7, "key_usage")?;
                let count = |index| row.get::<_, i64>(index).map(from_db);
                let id: String = row.get(0)?;
                Ok(KeyUsage {
                    key: Uuid::parse_str(&id).unwrap_or_default(),
                    period: row.get(1)?,
                    input_tokens: count(2)?,
                    output_tokens: count(3)?,
                    nano_usd: count(4)?,
                    drawn: Spend {
                        tokens: count(5)?,
                        nano_usd: count(6)?,
                    },
                })
            })?;
            whole_ones(rows, usize::MAX)
        })
        .await
    }
}

fn save(connection: &Connection, usage: &KeyUsage, record: UsageRecord) -> rusqlite::Result<()> {
    let mut statement = connection.prepare_cached(match record {
        UsageRecord::Running => {
            "INSERT INTO key_usage (key_id, period, input_tokens, output_tokens, nano_usd,
               drawn_tokens, drawn_nano_usd, sum)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, checksum(?1, ?2, ?3, ?4, ?5, ?6, ?7))
             ON CONFLICT (key_id, period) DO UPDATE SET
               input_tokens = max(input_tokens, excluded.input_tokens),
               output_tokens = max(output_tokens, excluded.output_tokens),
               nano_usd = max(nano_usd, excluded.nano_usd),
               drawn_tokens = max(drawn_tokens, excluded.drawn_tokens),
               drawn_nano_usd = max(drawn_nano_usd, excluded.drawn_nano_usd),
               sum = checksum(key_id, period, max(input_tokens, excluded.input_tokens),
                 max(output_tokens, excluded.output_tokens), max(nano_usd, excluded.nano_usd),
                 max(drawn_tokens, excluded.drawn_tokens),
                 max(drawn_nano_usd, excluded.drawn_nano_usd))
             WHERE sum IS checksum(key_id, period, input_tokens, output_tokens, nano_usd,
               drawn_tokens, drawn_nano_usd)"
        }
        UsageRecord::Final => {
            "INSERT OR REPLACE INTO key_usage (key_id, period, input_tokens, output_tokens,
               nano_usd, drawn_tokens, drawn_nano_usd, sum)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, checksum(?1, ?2, ?3, ?4, ?5, ?6, ?7))"
        }
    })?;
    let saved = statement.execute(params![
        usage.key.to_string(),
        usage.period,
        to_db(usage.input_tokens),
        to_db(usage.output_tokens),
        to_db(usage.nano_usd),
        to_db(usage.drawn.tokens),
        to_db(usage.drawn.nano_usd),
    ])?;
    // What was drawn is not recorded in a row that cannot be trusted, and so may not be spent.
    if saved == 0 {
        return Err(wrong(0, "key_usage"));
    }
    Ok(())
}
