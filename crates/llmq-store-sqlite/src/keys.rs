use std::fmt;

use llmq_core::WallTime;
use rusqlite::types::Type;
use rusqlite::{Connection, OptionalExtension, Row, named_params, params};
use serde::Serialize;
use serde::de::DeserializeOwned;
use uuid::Uuid;

use crate::sums::{expect_whole, whole_ones};
use crate::{Store, StoreError};

/// The checksum of a row of keys.
macro_rules! sum_of_key {
    () => {
        "checksum(id, name, prefix, sha256, scopes, models, tenant, any_tenant, limits,
           tokens_per_day, tokens_per_month, nano_usd_per_day, nano_usd_per_month, created_at,
           revoked_at)"
    };
}

macro_rules! select_keys {
    ($which:literal) => {
        concat!(
            "SELECT *, sum IS ",
            sum_of_key!(),
            " AS is_whole FROM keys ",
            $which
        )
    };
}

/// One of llmq's own API keys, without the key.
#[derive(Clone, PartialEq, Eq)]
pub struct KeyRecord {
    /// A UUIDv7, so that the order of ids is that of creation.
    pub id: Uuid,
    /// What people call it; no other key in use has the same.
    pub name: String,
    /// The key's first characters, to know it by.
    pub prefix: String,
    /// SHA-256 of the key. The key is random and long, so this needs no salt and no slowness.
    pub sha256: [u8; 32],
    /// What it may do, in the words of whoever checks it.
    pub scopes: Vec<String>,
    /// The models it may use; none: every one.
    pub models: Option<Vec<String>>,
    /// Who its calls are charged to; none: its name.
    pub tenant: Option<String>,
    /// Whether its calls may name another tenant.
    pub any_tenant: bool,
    /// Its limits as they were written, such as `rpm=60`.
    pub limits: Vec<String>,
    /// How much it may spend.
    pub budget: Budget,
    /// When it was made.
    pub created_at: WallTime,
    /// Since when it is refused; none: it is in use.
    pub revoked_at: Option<WallTime>,
}

impl fmt::Debug for KeyRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Not the hash: it says nothing to people, and is nobody else's business.
        f.debug_struct("KeyRecord")
            .field("id", &self.id)
            .field("name", &self.name)
            .field("prefix", &self.prefix)
            .field("revoked_at", &self.revoked_at)
            .finish_non_exhaustive()
    }
}

/// How much a key may spend in a day and in a month; none: no bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Budget {
    /// Input and output tokens a day.
    pub tokens_per_day: Option<u64>,
    /// Input and output tokens a month.
    pub tokens_per_month: Option<u64>,
    /// Billionths of a US dollar a day.
    pub nano_usd_per_day: Option<u64>,
    /// Billionths of a US dollar a month.
    pub nano_usd_per_month: Option<u64>,
}

/// What became of a new key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InsertedKey {
    /// It is recorded.
    Inserted,
    /// Another key in use has its name; nothing was recorded.
    NameTaken,
}

/// What became of a key that was to be revoked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RevokedKey {
    /// It is revoked, by this or an earlier call.
    Revoked(Box<KeyRecord>),
    /// There is no such key.
    Unknown,
}

impl Store {
    /// Records a new key. When this returns, the key survives a power cut.
    ///
    /// # Errors
    ///
    /// [`StoreError`]; nothing was recorded then.
    pub async fn insert_key(&self, key: KeyRecord) -> Result<InsertedKey, StoreError> {
        self.write(move |connection| insert(connection, &key)).await
    }

    /// Revokes a key at `now`; one that was revoked before keeps its time. When this returns, the
    /// revocation survives a power cut.
    ///
    /// # Errors
    ///
    /// [`StoreError`]; the key is in use then.
    pub async fn revoke_key(&self, id: Uuid, now: WallTime) -> Result<RevokedKey, StoreError> {
        self.write(move |connection| {
            connection.execute(
                concat!(
                    "UPDATE keys SET revoked_at = ?2, sum = checksum(id, name, prefix, sha256,
                       scopes, models, tenant, any_tenant, limits, tokens_per_day,
                       tokens_per_month, nano_usd_per_day, nano_usd_per_month, created_at, ?2)
                     WHERE id = ?1 AND revoked_at IS NULL AND sum IS ",
                    sum_of_key!()
                ),
                params![id.to_string(), now.as_micros()],
            )?;
            let key = one(connection, id)?;
            Ok(key.map_or(RevokedKey::Unknown, |key| {
                RevokedKey::Revoked(Box::new(key))
            }))
        })
        .await
    }

    /// The keys in use.
    ///
    /// # Errors
    ///
    /// [`StoreError`].
    pub async fn keys_in_use(&self) -> Result<Vec<KeyRecord>, StoreError> {
        self.read(|connection| {
            let mut query =
                connection.prepare_cached(select_keys!("WHERE revoked_at IS NULL ORDER BY id"))?;
            let rows = query.query_map([], key)?;
            whole_ones(rows, usize::MAX)
        })
        .await
    }

    /// The revoked keys that had limits or a budget: what they handed in before may still wait.
    ///
    /// # Errors
    ///
    /// [`StoreError`].
    pub async fn revoked_keys_that_bind(&self) -> Result<Vec<KeyRecord>, StoreError> {
        self.read(|connection| {
            let mut query = connection.prepare_cached(select_keys!(
                "WHERE revoked_at IS NOT NULL
                   AND (limits <> '[]' OR tokens_per_day IS NOT NULL
                     OR tokens_per_month IS NOT NULL OR nano_usd_per_day IS NOT NULL
                     OR nano_usd_per_month IS NOT NULL)
                 ORDER BY id"
            ))?;
            let rows = query.query_map([], key)?;
            whole_ones(rows, usize::MAX)
        })
        .await
    }

    /// One key, in use or revoked.
    ///
    /// # Errors
    ///
    /// [`StoreError`].
    pub async fn key(&self, id: Uuid) -> Result<Option<KeyRecord>, StoreError> {
        self.read(move |connection| one(connection, id)).await
    }

    /// At most `max` keys, in use or revoked, newest first; `before` is the last one of the page
    /// before.
    ///
    /// # Errors
    ///
    /// [`StoreError`].
    pub async fn list_keys(
        &self,
        before: Option<Uuid>,
        max: u32,
    ) -> Result<Vec<KeyRecord>, StoreError> {
        self.read(move |connection| {
            let mut query = connection.prepare_cached(select_keys!(
                "WHERE ?1 IS NULL OR id < ?1 ORDER BY id DESC LIMIT ?2"
            ))?;
            let before = before.map(|id| id.to_string());
            let rows = query.query_map(params![before, max], key)?;
            whole_ones(rows, usize::MAX)
        })
        .await
    }
}

fn insert(connection: &Connection, key: &KeyRecord) -> rusqlite::Result<InsertedKey> {
    let taken = connection
        .query_row(
            "SELECT 1 FROM keys WHERE name = ?1 AND revoked_at IS NULL",
            [&key.name],
            |_| Ok(()),
        )
        .optional()?;
    if taken.is_some() {
        return Ok(InsertedKey::NameTaken);
    }
    connection.execute(
        "INSERT INTO keys (id, name, prefix, sha256, scopes, models, tenant, any_tenant, limits,
           tokens_per_day, tokens_per_month, nano_usd_per_day, nano_usd_per_month,
           created_at, revoked_at, sum)
         VALUES (:id, :name, :prefix, :sha256, :scopes, :models, :tenant, :any_tenant, :limits,
           :tokens_per_day, :tokens_per_month, :nano_usd_per_day, :nano_usd_per_month,
           :created_at, :revoked_at,
           checksum(:id, :name, :prefix, :sha256, :scopes, :models, :tenant, :any_tenant, :limits,
             :tokens_per_day, :tokens_per_month, :nano_usd_per_day, :nano_usd_per_month,
             :created_at, :revoked_at))",
        named_params! {
            ":id": key.id.to_string(),
            ":name": key.name,
            ":prefix": key.prefix,
            ":sha256": key.sha256,
            ":scopes": to_json(&key.scopes)?,
            ":models": key.models.as_ref().map(to_json).transpose()?,
            ":tenant": key.tenant,
            ":any_tenant": key.any_tenant,
            ":limits": to_json(&key.limits)?,
            ":tokens_per_day": key.budget.tokens_per_day.map(to_db),
            ":tokens_per_month": key.budget.tokens_per_month.map(to_db),
            ":nano_usd_per_day": key.budget.nano_usd_per_day.map(to_db),
            ":nano_usd_per_month": key.budget.nano_usd_per_month.map(to_db),
            ":created_at": key.created_at.as_micros(),
            ":revoked_at": key.revoked_at.map(WallTime::as_micros),
        },
    )?;
    Ok(InsertedKey::Inserted)
}

fn one(connection: &Connection, id: Uuid) -> rusqlite::Result<Option<KeyRecord>> {
    connection
        .prepare_cached(select_keys!("WHERE id = ?1"))?
        .query_row([id.to_string()], key)
        .optional()
}

fn key(row: &Row<'_>) -> rusqlite::Result<KeyRecord> {
    let count = |name| {
        row.get::<_, Option<i64>>(name)
            .map(|count| count.map(from_db))
    };
    expect_whole(row, row.as_ref().column_index("is_whole")?, "keys")?;
    let models: Option<String> = row.get("models")?;
    Ok(KeyRecord {
        id: parsed(row, "id", |text: String| Uuid::parse_str(&text))?,
        name: row.get("name")?,
        prefix: row.get("prefix")?,
        sha256: row.get("sha256")?,
        scopes: from_json(row, "scopes")?,
        models: models.map(|_| from_json(row, "models")).transpose()?,
        tenant: row.get("tenant")?,
        any_tenant: row.get("any_tenant")?,
        limits: from_json(row, "limits")?,
        budget: Budget {
            tokens_per_day: count("tokens_per_day")?,
            tokens_per_month: count("tokens_per_month")?,
            nano_usd_per_day: count("nano_usd_per_day")?,
            nano_usd_per_month: count("nano_usd_per_month")?,
        },
        created_at: WallTime::from_micros(row.get("created_at")?),
        revoked_at: row
            .get::<_, Option<i64>>("revoked_at")?
            .map(WallTime::from_micros),
    })
}

/// SQLite's integers have a sign; what is larger than they can hold is as good as the largest.
pub(crate) fn to_db(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

pub(crate) fn from_db(count: i64) -> u64 {
    u64::try_from(count).unwrap_or(0)
}

pub(crate) fn to_json(value: &impl Serialize) -> rusqlite::Result<String> {
    serde_json::to_string(value)
        .map_err(|error| rusqlite::Error::ToSqlConversionFailure(Box::new(error)))
}

pub(crate) fn from_json<T: DeserializeOwned>(row: &Row<'_>, column: &str) -> rusqlite::Result<T> {
    parsed(row, column, |text: String| serde_json::from_str(&text))
}

fn parsed<T, E: std::error::Error + Send + Sync + 'static>(
    row: &Row<'_>,
    column: &str,
    parse: impl FnOnce(String) -> Result<T, E>,
) -> rusqlite::Result<T> {
    let index = row.as_ref().column_index(column)?;
    parse(row.get(index)?).map_err(|error| {
        rusqlite::Error::FromSqlConversionFailure(index, Type::Text, Box::new(error))
    })
}
