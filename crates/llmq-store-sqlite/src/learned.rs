use rusqlite::params;

use crate::keys::{from_json, to_json};
use crate::sums::{expect_whole, whole_ones};
use crate::{Store, StoreError};

/// The limits that the headers of a server told of, and nobody configured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LearnedLimits {
    /// The upstream's name.
    pub upstream: String,
    /// Its server. Another server under the same name has limits of its own.
    pub host: String,
    /// The limits, such as `requests=500/1m`.
    pub limits: Vec<String>,
}

impl Store {
    /// Records the limits of `upstream` at `host`, in the place of those before; an empty list
    /// forgets them. When this returns, they survive a power cut.
    ///
    /// # Errors
    ///
    /// [`StoreError`]; what was recorded before stands.
    pub async fn save_learned(
        &self,
        upstream: &str,
        host: &str,
        limits: Vec<String>,
    ) -> Result<(), StoreError> {
        let (upstream, host) = (upstream.to_owned(), host.to_owned());
        self.write(move |connection| {
            if limits.is_empty() {
                connection.execute(
                    "DELETE FROM learned_limits WHERE upstream = ?1 AND host = ?2",
                    params![upstream, host],
                )?;
                return Ok(());
            }
            connection.execute(
                "INSERT OR REPLACE INTO learned_limits (upstream, host, limits, sum)
                 VALUES (?1, ?2, ?3, checksum(?1, ?2, ?3))",
                params![upstream, host, to_json(&limits)?],
            )?;
            Ok(())
        })
        .await
    }

    /// All that was learned, by upstream and host.
    ///
    /// # Errors
    ///
    /// [`StoreError`].
    pub async fn learned(&self) -> Result<Vec<LearnedLimits>, StoreError> {
        self.read(|connection| {
            let mut query = connection.prepare_cached(
                "SELECT *, sum IS checksum(upstream, host, limits) AS is_whole
                     FROM learned_limits ORDER BY upstream, host",
            )?;
            let rows = query.query_map([], |row| {
                expect_whole(
                    row,
                    row.as_ref().column_index("is_whole")?,
                    "learned_limits",
                )?;
                Ok(LearnedLimits {
                    upstream: row.get("upstream")?,
                    host: row.get("host")?,
                    limits: from_json(row, "limits")?,
                })
            })?;
            whole_ones(rows, usize::MAX)
        })
        .await
    }
}
