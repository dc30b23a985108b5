//! Endpoints, and the outbox of what they are to be told.

use std::time::Duration;

use llmq_core::{Now, WallTime};
use llmq_store::{
    Attempted, Delivery, DeliveryId, DeliveryState, Endpoint, EndpointId, EventId, NewEvent,
    StoreError, StoredEvent, Target,
};
use rusqlite::{Connection, OptionalExtension, Row, params};
use uuid::Uuid;

use super::desk::{Desk, Done};
use crate::sums::expect_whole;

/// The endpoints, and how many rows of them are not what was written.
pub(crate) fn load(connection: &Connection) -> rusqlite::Result<(Vec<Endpoint>, u64)> {
    let mut query = connection
        .prepare("SELECT data, sum IS checksum(id, data) FROM webhook_endpoints ORDER BY id")?;
    let rows = query.query_map([], |row| {
        expect_whole(row, 1, "webhook_endpoints")?;
        parsed(&row.get::<_, String>(0)?)
    })?;
    let (mut endpoints, mut damaged) = (Vec::new(), 0);
    for row in rows {
        match row {
            Ok(endpoint) => endpoints.push(endpoint),
            Err(error) if is_of_value(&error).is_some() => damaged += 1,
            Err(error) => return Err(error),
        }
    }
    Ok((endpoints, damaged))
}

/// The last number that a delivery was given.
pub(crate) fn last_number(connection: &Connection) -> rusqlite::Result<i64> {
    // AUTOINCREMENT remembers it when the row is gone.
    let query = "SELECT max(seq) FROM sqlite_sequence WHERE name = 'deliveries'";
    let last: Option<i64> = connection.query_row(query, [], |row| row.get(0))?;
    Ok(last.unwrap_or(0))
}

/// Adds delivery `delivery` of event `number`, due at once.
pub(crate) fn add(
    connection: &Connection,
    delivery: i64,
    target: &Target,
    number: u64,
    event: &NewEvent,
    at: WallTime,
) -> rusqlite::Result<()> {
    let stored = StoredEvent {
        id: EventId(number),
        at,
        event: event.clone(),
    };
    let (endpoint, callback) = match target {
        Target::Endpoint(id) => (Some(*id.as_uuid().as_bytes()), None),
        Target::Callback(callback) => (None, Some(written(callback)?)),
    };
    let mut insert = connection.prepare_cached(
        "INSERT INTO deliveries (number, endpoint, callback, event, due_at, delivered, attempts,
           sum)
         VALUES (?1, ?2, ?3, ?4, ?5, 0, 0, checksum(?1, ?2, ?3, ?4, ?5, 0, 0, NULL, NULL))",
    )?;
    insert.execute(params![
        delivery,
        endpoint,
        callback,
        written(&stored)?,
        at.as_micros()
    ])?;
    Ok(())
}

/// Lets go of deliveries that ended long enough ago. How many.
pub(crate) fn let_go(
    connection: &Connection,
    before: WallTime,
    max: usize,
) -> rusqlite::Result<usize> {
    let mut delete = connection.prepare_cached(
        "DELETE FROM deliveries WHERE number IN
           (SELECT number FROM deliveries WHERE due_at IS NULL AND last_attempt_at <= ?1 LIMIT ?2)",
    )?;
    delete.execute(params![before.as_micros(), max as i64])
}

macro_rules! select_deliveries {
    ($which:literal) => {
        concat!(
            "SELECT number, endpoint, callback, event, due_at, delivered, attempts,
               last_attempt_at, last_outcome,
               sum IS checksum(number, endpoint, callback, event, due_at, delivered, attempts,
                 last_attempt_at, last_outcome)
             FROM deliveries ",
            $which
        )
    };
}

fn read(row: &Row<'_>) -> rusqlite::Result<Delivery> {
    expect_whole(row, 9, "deliveries")?;
    let endpoint: Option<[u8; 16]> = row.get(1)?;
    let target = match endpoint {
        Some(id) => Target::Endpoint(EndpointId::from_uuid(Uuid::from_bytes(id))),
        None => Target::Callback(parsed(&row.get::<_, String>(2)?)?),
    };
    let due_at: Option<i64> = row.get(4)?;
    let state = match (due_at, row.get(5)?) {
        (Some(at), _) => DeliveryState::Due(WallTime::from_micros(at)),
        (None, true) => DeliveryState::Delivered,
        (None, false) => DeliveryState::GivenUp,
    };
    Ok(Delivery {
        id: DeliveryId(row.get::<_, i64>(0)?.cast_unsigned()),
        target,
        event: parsed(&row.get::<_, String>(3)?)?,
        state,
        attempts: row.get(6)?,
        last_attempt_at: row.get::<_, Option<i64>>(7)?.map(WallTime::from_micros),
        last_outcome: row.get(8)?,
    })
}

impl Desk<'_> {
    pub(crate) fn put_endpoint(
        &mut self,
        endpoint: Endpoint,
        event: Option<&NewEvent>,
        now: Now,
    ) -> Done<()> {
        let mut insert = self.connection.prepare_cached(
            "INSERT OR REPLACE INTO webhook_endpoints (id, data, sum)
             VALUES (?1, ?2, checksum(?1, ?2))",
        )?;
        insert.execute(params![
            endpoint.id.as_uuid().as_bytes(),
            written(&endpoint)?
        ])?;
        self.index.endpoints.insert(endpoint.id, endpoint);
        match event {
            Some(event) => self.tell(event, now),
            None => Ok(()),
        }
    }

    pub(crate) fn delete_endpoint(&mut self, id: EndpointId) -> Done<bool> {
        let bytes = *id.as_uuid().as_bytes();
        let delete = "DELETE FROM deliveries WHERE endpoint = ?1";
        self.connection.prepare_cached(delete)?.execute([bytes])?;
        let delete = "DELETE FROM webhook_endpoints WHERE id = ?1";
        let deleted = self.connection.prepare_cached(delete)?.execute([bytes])?;
        self.index.endpoints.remove(&id);
        Ok(deleted == 1)
    }

    /// What is handed out is held in memory: this process alone has the store, and what it held
    /// when it was killed is due for the next one at once.
    pub(crate) fn due_deliveries(
        &mut self,
        max: usize,
        hold: Duration,
        now: Now,
    ) -> Done<Vec<Delivery>> {
        let handed_out = &mut self.index.handed_out;
        handed_out.retain(|_, until| *until > now.wall);
        let mut query = self.connection.prepare_cached(select_deliveries!(
            "WHERE due_at <= ?1 ORDER BY due_at, number"
        ))?;
        let mut rows = query.query([now.wall.as_micros()])?;
        let until = now.wall + hold;
        let mut due = Vec::new();
        while due.len() < max
            && let Some(row) = rows.next()?
        {
            let mut delivery = match read(row) {
                Ok(delivery) => delivery,
                // The others are delivered all the same.
                Err(error) if is_of_value(&error).is_some() => continue,
                Err(error) => return Err(error.into()),
            };
            let is_held = self.index.handed_out.contains_key(&delivery.id);
            if !is_held && !self.is_disabled(&delivery.target) {
                self.index.handed_out.insert(delivery.id, until);
                delivery.state = DeliveryState::Due(until);
                due.push(delivery);
            }
        }
        Ok(due)
    }

    fn is_disabled(&self, target: &Target) -> bool {
        match target {
            Target::Endpoint(id) => self.index.endpoints.get(id).is_none_or(|it| it.disabled),
            Target::Callback(_) => false,
        }
    }

    pub(crate) fn next_delivery(&self) -> Done<Option<WallTime>> {
        let mut query = self.connection.prepare_cached(select_deliveries!(
            "WHERE due_at IS NOT NULL ORDER BY due_at"
        ))?;
        let mut rows = query.query([])?;
        let mut next: Option<WallTime> = None;
        while let Some(row) = rows.next()? {
            let delivery = match read(row) {
                Ok(delivery) => delivery,
                Err(error) if is_of_value(&error).is_some() => continue,
                Err(error) => return Err(error.into()),
            };
            let DeliveryState::Due(at) = delivery.state else {
                continue;
            };
            if next.is_some_and(|next| next <= at) {
                break;
            }
            if !self.is_disabled(&delivery.target) {
                let held_until = self.index.handed_out.get(&delivery.id);
                let at = held_until.map_or(at, |until| at.max(*until));
                next = Some(next.map_or(at, |next| next.min(at)));
            }
        }
        Ok(next)
    }

    pub(crate) fn delivered(&mut self, attempts: Vec<Attempted>, now: Now) -> Done<()> {
        let mut update = self.connection.prepare_cached(
            "UPDATE deliveries SET due_at = ?2, delivered = ?3, attempts = attempts + 1,
               last_attempt_at = ?4, last_outcome = ?5,
               sum = checksum(number, endpoint, callback, event, ?2, ?3, attempts + 1, ?4, ?5)
             WHERE number = ?1 AND sum IS checksum(number, endpoint, callback, event, due_at,
               delivered, attempts, last_attempt_at, last_outcome)",
        )?;
        for attempt in attempts {
            self.index.handed_out.remove(&attempt.delivery);
            let due_at = match attempt.state {
                DeliveryState::Due(at) => Some(at.as_micros()),
                DeliveryState::Delivered | DeliveryState::GivenUp => None,
            };
            update.execute(params![
                attempt.delivery.0.cast_signed(),
                due_at,
                attempt.state == DeliveryState::Delivered,
                now.wall.as_micros(),
                attempt.outcome
            ])?;
        }
        Ok(())
    }

    pub(crate) fn delivery(&self, id: DeliveryId) -> Done<Option<Delivery>> {
        let mut query = self
            .connection
            .prepare_cached(select_deliveries!("WHERE number = ?1"))?;
        Ok(query.query_row([id.0.cast_signed()], read).optional()?)
    }

    pub(crate) fn deliveries(
        &self,
        endpoint: Option<EndpointId>,
        after: Option<DeliveryId>,
        limit: usize,
    ) -> Done<Vec<Delivery>> {
        let before = after.map_or(i64::MAX, |after| after.0.cast_signed());
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let found: rusqlite::Result<Vec<_>> = match endpoint {
            None => {
                let mut query = self.connection.prepare_cached(select_deliveries!(
                    "WHERE number < ?1 ORDER BY number DESC LIMIT ?2"
                ))?;
                query.query_map(params![before, limit], read)?.collect()
            }
            Some(id) => {
                let mut query = self.connection.prepare_cached(select_deliveries!(
                    "WHERE number < ?1 AND endpoint = ?3 ORDER BY number DESC LIMIT ?2"
                ))?;
                let id = *id.as_uuid().as_bytes();
                query.query_map(params![before, limit, id], read)?.collect()
            }
        };
        Ok(found?)
    }

    pub(crate) fn redeliver(&mut self, id: DeliveryId, now: Now) -> Done<bool> {
        self.index.handed_out.remove(&id);
        let mut update = self.connection.prepare_cached(
            "UPDATE deliveries SET due_at = ?2,
               sum = checksum(number, endpoint, callback, event, ?2, delivered, attempts,
                 last_attempt_at, last_outcome)
             WHERE number = ?1 AND sum IS checksum(number, endpoint, callback, event, due_at,
               delivered, attempts, last_attempt_at, last_outcome)",
        )?;
        let updated = update.execute(params![id.0.cast_signed(), now.wall.as_micros()])?;
        Ok(updated == 1)
    }
}

pub(crate) fn written(value: &impl serde::Serialize) -> rusqlite::Result<String> {
    crate::keys::to_json(value)
}

/// What was written as JSON.
pub(crate) fn parsed<T: serde::de::DeserializeOwned>(json: &str) -> rusqlite::Result<T> {
    serde_json::from_str(json).map_err(|error| {
        rusqlite::Error::FromSqlConversionFailure(0, rusqlite::types::Type::Text, Box::new(error))
    })
}

/// Whether an error of SQLite's interface says that a value is not what was written, and nothing
/// of the file.
pub(crate) fn is_of_value(error: &rusqlite::Error) -> Option<StoreError> {
    match error {
        rusqlite::Error::FromSqlConversionFailure(..)
        | rusqlite::Error::InvalidColumnType(..)
        | rusqlite::Error::IntegralValueOutOfRange(..) => {
            Some(StoreError::damaged(error.to_string()))
        }
        _ => None,
    }
}
