//! A job's row: how it is read, written and checked.

use llmq_core::{CallSize, Priority, Status, Usage, WallTime};
use llmq_store::{BatchId, Details, DueAt, Job, JobError, JobId, Member, Place, StoreError};
use rusqlite::{Connection, OptionalExtension, Row, params};
use serde::{Deserialize, Serialize};
use uuid::Uuid;
use xxhash_rust::xxh3::Xxh3;

use super::names::Names;
use crate::error::is_damage;

/// What is wrong with a row on a page that is not what was written.
pub(crate) const UNREADABLE: &str = "its page of the file, or one beside it, is damaged";

/// Flags of a row.
pub(crate) const MAY_HAVE_BEEN_SENT: i64 = 1;
pub(crate) const CALENDAR: i64 = 2;
pub(crate) const HAS_KEY: i64 = 4;

/// A row of `jobs`, as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct JobRow {
    pub(crate) number: i64,
    pub(crate) id: JobId,
    pub(crate) status: Status,
    pub(crate) queue: i64,
    pub(crate) tenant: i64,
    pub(crate) priority: Priority,
    pub(crate) place: Place,
    pub(crate) size: CallSize,
    pub(crate) attempts: u32,
    pub(crate) max_attempts: u32,
    pub(crate) throttles: u32,
    pub(crate) flags: i64,
    pub(crate) bytes: i64,
    pub(crate) token: i64,
    pub(crate) created_at: i64,
    pub(crate) deadline: Option<i64>,
    pub(crate) not_before: Option<i64>,
    pub(crate) started_at: Option<i64>,
    pub(crate) finished_at: Option<i64>,
    pub(crate) stage: Option<i64>,
    pub(crate) batch: Option<i64>,
    pub(crate) line: Option<i64>,
    pub(crate) body: i64,
    pub(crate) answer: Option<i64>,
    pub(crate) details: String,
    pub(crate) outcome: Option<String>,
}

/// What is known of a job's attempts and end, beside its row's columns.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Outcome {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) upstream: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) usage: Option<Usage>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) cost_nano_usd: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) error: Option<JobError>,
}

/// What a row's JSON holds beside [`Details`].
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Noted {
    #[serde(flatten)]
    pub(crate) details: Details,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) member: Option<NotedMember>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct NotedMember {
    pub(crate) batch: BatchId,
    pub(crate) custom_id: String,
}

/// A query of whole rows, for [`JobRow::read`].
macro_rules! select_jobs {
    ($which:literal) => {
        concat!(
            "SELECT number, id, status, queue, tenant, priority, place, input_tokens, output_max,
               choices, attempts, max_attempts, throttles, flags, bytes, token, created_at,
               deadline, not_before, started_at, finished_at, stage, batch, line, body, answer,
               details, outcome, sum FROM jobs ",
            $which
        )
    };
}
pub(crate) use select_jobs;

/// A row that was read, or what is wrong with it.
pub(crate) type Checked = Result<JobRow, Damage>;

/// A row that is not what was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Damage {
    pub(crate) number: i64,
    /// The id as it reads, where it can be read.
    pub(crate) id: Option<JobId>,
    pub(crate) what: &'static str,
}

impl Damage {
    /// A row on a page that is not what was written.
    pub(crate) fn unreadable(number: i64, id: Option<JobId>) -> Self {
        let what = UNREADABLE;
        Self { number, id, what }
    }

    /// Which row it is, for people.
    pub(crate) fn of(&self) -> String {
        match self.id {
            Some(id) => called(id, self.number),
            None => format!("row {} of jobs", self.number),
        }
    }
}

/// A row of a job, for people: they know jobs by their ids.
pub(crate) fn called(id: JobId, number: i64) -> String {
    format!("job {id} (row {number} of jobs)")
}

impl From<Damage> for StoreError {
    fn from(damage: Damage) -> Self {
        Self::damaged(format!("{}: {}", damage.of(), damage.what))
    }
}

fn id_of(row: &Row<'_>) -> rusqlite::Result<Option<JobId>> {
    let id = row.get_ref(1)?.as_blob().ok();
    let id = id.and_then(|id| Uuid::from_slice(id).ok());
    Ok(id.map(JobId::from_uuid))
}

pub(crate) fn by_id(connection: &Connection, id: JobId) -> rusqlite::Result<Option<Checked>> {
    let mut query = connection.prepare_cached(select_jobs!("WHERE id = ?1"))?;
    let uuid = id.as_uuid();
    let found = query.query_row([uuid.as_bytes()], JobRow::read).optional();
    found.map_err(|error| match error {
        // Whoever met it first is told whose row it is, too.
        rusqlite::Error::SqliteFailure(code, _) if is_damage(&error) => {
            let what = format!("job {id}: {UNREADABLE}");
            rusqlite::Error::SqliteFailure(code, Some(what))
        }
        other => other,
    })
}

pub(crate) fn by_number(connection: &Connection, number: i64) -> rusqlite::Result<Option<Checked>> {
    let mut query = connection.prepare_cached(select_jobs!("WHERE number = ?1"))?;
    query.query_row([number], JobRow::read).optional()
}

impl JobRow {
    /// The row of a statement made by `select_jobs!`.
    pub(crate) fn read(row: &Row<'_>) -> rusqlite::Result<Checked> {
        let number = row.get(0)?;
        let id = id_of(row)?;
        let damage = |what| Ok(Err(Damage { number, id, what }));
        let read = Self::columns(row, number);
        let (found, sum) = match read {
            Ok(found) => found,
            // A value of another kind than was written.
            Err(
                rusqlite::Error::InvalidColumnType(..)
                | rusqlite::Error::FromSqlConversionFailure(..)
                | rusqlite::Error::IntegralValueOutOfRange(..),
            ) => return damage("a value of it cannot be read"),
            Err(error) => return Err(error),
        };
        let Some(found) = found else {
            return damage("a value of it is out of range");
        };
        if found.sum() != sum {
            return damage("its checksum is wrong");
        }
        Ok(Ok(found))
    }

    fn columns(row: &Row<'_>, number: i64) -> rusqlite::Result<(Option<Self>, i64)> {
        let id = id_of(row)?;
        let status = status_of(row.get(2)?);
        let priority = Priority::new(row.get(5)?);
        let (Some(id), Some(status), Some(priority)) = (id, status, priority) else {
            return Ok((None, 0));
        };
        let found = Self {
            number,
            id,
            status,
            queue: row.get(3)?,
            tenant: row.get(4)?,
            priority,
            place: Place(row.get::<_, i64>(6)?.cast_unsigned()),
            size: CallSize {
                input_tokens: row.get(7)?,
                max_output_tokens: row.get(8)?,
                choices: row.get(9)?,
            },
            attempts: row.get(10)?,
            max_attempts: row.get(11)?,
            throttles: row.get(12)?,
            flags: row.get(13)?,
            bytes: row.get(14)?,
            token: row.get(15)?,
            created_at: row.get(16)?,
            deadline: row.get(17)?,
            not_before: row.get(18)?,
            started_at: row.get(19)?,
            finished_at: row.get(20)?,
            stage: row.get(21)?,
            batch: row.get(22)?,
            line: row.get(23)?,
            body: row.get(24)?,
            answer: row.get(25)?,
            details: row.get(26)?,
            outcome: row.get(27)?,
        };
        Ok((Some(found), row.get(28)?))
    }

    /// The checksum of all of it.
    pub(crate) fn sum(&self) -> i64 {
        // No value is written that NULL could be mistaken for.
        const NULL: i64 = i64::MIN;
        let numbers = [
            self.number,
            i64::from(status_number(self.status)),
            self.queue,
            self.tenant,
            i64::from(self.priority.value()),
            self.place.0.cast_signed(),
            i64::from(self.size.input_tokens),
            self.size.max_output_tokens.map_or(NULL, i64::from),
            i64::from(self.size.choices),
            i64::from(self.attempts),
            i64::from(self.max_attempts),
            i64::from(self.throttles),
            self.flags,
            self.bytes,
            self.token,
            self.created_at,
            self.deadline.unwrap_or(NULL),
            self.not_before.unwrap_or(NULL),
            self.started_at.unwrap_or(NULL),
            self.finished_at.unwrap_or(NULL),
            self.stage.unwrap_or(NULL),
            self.batch.unwrap_or(NULL),
            self.line.unwrap_or(NULL),
            self.body,
            self.answer.unwrap_or(NULL),
            self.details.len() as i64,
        ];
        let mut bytes = [0; 8 * 26];
        for (to, number) in bytes.chunks_exact_mut(8).zip(numbers) {
            to.copy_from_slice(&number.to_le_bytes());
        }
        let mut sum = Xxh3::new();
        sum.update(&bytes);
        sum.update(self.id.as_uuid().as_bytes());
        sum.update(self.details.as_bytes());
        sum.update(self.outcome.as_deref().unwrap_or_default().as_bytes());
        sum.digest().cast_signed()
    }

    /// Writes a new row. Whether there was none with its id.
    pub(crate) fn insert(&self, connection: &Connection) -> rusqlite::Result<bool> {
        let mut statement = connection.prepare_cached(
            "INSERT INTO jobs (number, id, status, queue, tenant, priority, place, input_tokens,
               output_max, choices, attempts, max_attempts, throttles, flags, bytes, token,
               created_at, deadline, not_before, started_at, finished_at, stage, batch, line, body,
               answer, details, outcome, sum)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17,
               ?18, ?19, ?20, ?21, ?22, ?23, ?24, ?25, ?26, ?27, ?28, ?29)
             ON CONFLICT (id) DO NOTHING",
        )?;
        let written = statement.execute(params![
            self.number,
            self.id.as_uuid().as_bytes().as_slice(),
            status_number(self.status),
            self.queue,
            self.tenant,
            self.priority.value(),
            self.place.0.cast_signed(),
            self.size.input_tokens,
            self.size.max_output_tokens,
            self.size.choices,
            self.attempts,
            self.max_attempts,
            self.throttles,
            self.flags,
            self.bytes,
            self.token,
            self.created_at,
            self.deadline,
            self.not_before,
            self.started_at,
            self.finished_at,
            self.stage,
            self.batch,
            self.line,
            self.body,
            self.answer,
            self.details,
            self.outcome,
            self.sum(),
        ])?;
        Ok(written == 1)
    }

    /// Writes what can change of it.
    pub(crate) fn update(&self, connection: &Connection) -> rusqlite::Result<()> {
        let mut statement = connection.prepare_cached(
            "UPDATE jobs SET status = ?2, place = ?3, attempts = ?4, throttles = ?5, flags = ?6,
               token = ?7, deadline = ?8, not_before = ?9, started_at = ?10, finished_at = ?11,
               stage = ?12, answer = ?13, outcome = ?14, sum = ?15
             WHERE number = ?1",
        )?;
        statement.execute(params![
            self.number,
            status_number(self.status),
            self.place.0.cast_signed(),
            self.attempts,
            self.throttles,
            self.flags,
            self.token,
            self.deadline,
            self.not_before,
            self.started_at,
            self.finished_at,
            self.stage,
            self.answer,
            self.outcome,
            self.sum(),
        ])?;
        Ok(())
    }

    /// When it may start.
    pub(crate) fn due(&self) -> DueAt {
        match self.not_before.map(WallTime::from_micros) {
            None => DueAt::Now,
            Some(at) if self.flags & CALENDAR != 0 => DueAt::On(at),
            Some(at) => DueAt::After(at),
        }
    }

    /// The key of its lane.
    pub(crate) fn key(&self) -> Option<Uuid> {
        #[derive(Deserialize)]
        struct Keyed {
            key: Option<Uuid>,
        }
        // Most have none, and their notes are not read.
        if !self.details.contains("\"key\":") {
            return None;
        }
        let keyed = serde_json::from_str::<Keyed>(&self.details);
        keyed.ok()?.key
    }

    pub(crate) fn noted(&self) -> Result<Noted, Damage> {
        self.parse(&self.details)
    }

    pub(crate) fn known(&self) -> Result<Outcome, Damage> {
        let known = self.outcome.as_deref().map(|json| self.parse(json));
        known.unwrap_or_else(|| Ok(Outcome::default()))
    }

    /// Changes what is known of its attempts and end.
    pub(crate) fn know(&mut self, change: impl FnOnce(&mut Outcome)) -> Result<(), Damage> {
        let mut known = self.known()?;
        change(&mut known);
        self.outcome = if known == Outcome::default() {
            None
        } else {
            serde_json::to_string(&known).ok()
        };
        Ok(())
    }

    fn parse<'a, T: Deserialize<'a>>(&self, json: &'a str) -> Result<T, Damage> {
        serde_json::from_str(json).map_err(|_| Damage {
            number: self.number,
            id: Some(self.id),
            what: "its notes cannot be read",
        })
    }

    /// The job as it is shown; `instants` turns instants of the store's clock into the wall's.
    pub(crate) fn to_job(&self, names: &Names, instants: &Instants) -> Result<Job, Damage> {
        let noted = self.noted()?;
        let known = self.known()?;
        let wall = WallTime::from_micros;
        let line = self.line.and_then(|line| u32::try_from(line).ok());
        Ok(Job {
            id: self.id,
            queue: names.name(self.queue).to_string(),
            priority: self.priority,
            tenant: names.name(self.tenant).to_string(),
            status: self.status,
            size: self.size,
            attempts: self.attempts,
            max_attempts: self.max_attempts,
            throttles: self.throttles,
            may_have_been_sent: self.flags & MAY_HAVE_BEEN_SENT != 0,
            created_at: wall(self.created_at),
            not_before: instants.not_before,
            expires_at: instants.expires_at,
            started_at: self.started_at.map(wall),
            finished_at: self.finished_at.map(wall),
            usage: known.usage,
            cost_nano_usd: known.cost_nano_usd,
            upstream: known.upstream,
            error: known.error,
            member: noted.member.zip(line).map(|(member, line)| Member {
                batch: member.batch,
                line,
                custom_id: member.custom_id,
            }),
            details: noted.details,
        })
    }
}

/// Instants of a row that depend on the clock and its queue, as they are shown.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Instants {
    pub(crate) not_before: Option<WallTime>,
    pub(crate) expires_at: Option<WallTime>,
}

pub(crate) fn status_number(status: Status) -> u8 {
    match status {
        Status::Queued => 0,
        Status::Processing => 1,
        Status::Completed => 2,
        Status::Failed => 3,
        Status::Expired => 4,
        Status::Cancelled => 5,
    }
}

pub(crate) fn status_of(number: u8) -> Option<Status> {
    Status::ALL
        .into_iter()
        .find(|status| status_number(*status) == number)
}
