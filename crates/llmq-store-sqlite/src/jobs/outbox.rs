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

pub(crate) fn load(connection: &Connection) -> rusqlite::Result<Vec<Endpoint>> {
    let mut query = connection.prepare("SELECT data FROM webhook_endpoints ORDER BY id")?;
    let rows = query.query_map([], |row| parsed(&row.get::<_, String>(0)?))?;
    rows.collect()
}

/// Adds a delivery of event `number`, due at once.
pub(crate) fn add(
    connection: &Connection,
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
        "INSERT INTO deliveries (endpoint, callback, event, due_at, delivered, attempts)
         VALUES (?1, ?2, ?3, ?4, 0, 0)",
    )?;
    insert.execute(params![
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
               last_attempt_at, last_outcome FROM deliveries ",
            $which
        )
    };
}

fn read(row: &Row<'_>) -> rusqlite::Result<Delivery> {
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
            "INSERT OR REPLACE INTO webhook_endpoints (id, data) VALUES (?1, ?2)",
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

    pub(crate) fn due_deliveries(
        &mut self,
        max: usize,
        hold: Duration,
        now: Now,
    ) -> Done<Vec<Delivery>> {
        let mut query = self.connection.prepare_cached(select_deliveries!(
            "WHERE due_at <= ?1 ORDER BY due_at, number"
        ))?;
        let mut rows = query.query([now.wall.as_micros()])?;
        let mut due = Vec::new();
        while due.len() < max
            && let Some(row) = rows.next()?
        {
            let delivery = read(row)?;
            if !self.is_disabled(&delivery.target) {
                due.push(delivery);
            }
        }
        let until = now.wall + hold;
        for delivery in &mut due {
            self.set_due(delivery.id, until)?;
            delivery.state = DeliveryState::Due(until);
        }
        Ok(due)
    }

    fn is_disabled(&self, target: &Target) -> bool {
        match target {
            Target::Endpoint(id) => self.index.endpoints.get(id).is_none_or(|it| it.disabled),
            Target::Callback(_) => false,
        }
    }

    fn set_due(&self, id: DeliveryId, at: WallTime) -> rusqlite::Result<usize> {
        let mut update = self
            .connection
            .prepare_cached("UPDATE deliveries SET due_at = ?2 WHERE number = ?1")?;
        update.execute(params![id.0.cast_signed(), at.as_micros()])
    }

    pub(crate) fn next_delivery(&self) -> Done<Option<WallTime>> {
        let mut query = self.connection.prepare_cached(
            "SELECT due_at, endpoint FROM deliveries WHERE due_at IS NOT NULL ORDER BY due_at",
        )?;
        let mut rows = query.query([])?;
        while let Some(row) = rows.next()? {
            let endpoint: Option<[u8; 16]> = row.get(1)?;
            let endpoint = endpoint.map(|id| EndpointId::from_uuid(Uuid::from_bytes(id)));
            let is_open = endpoint
                .is_none_or(|id| self.index.endpoints.get(&id).is_some_and(|it| !it.disabled));
            if is_open {
                return Ok(Some(WallTime::from_micros(row.get(0)?)));
            }
        }
        Ok(None)
    }

    pub(crate) fn delivered(&mut self, attempts: Vec<Attempted>, now: Now) -> Done<()> {
        let mut update = self.connection.prepare_cached(
            "UPDATE deliveries SET due_at = ?2, delivered = ?3, attempts = attempts + 1,
               last_attempt_at = ?4, last_outcome = ?5 WHERE number = ?1",
        )?;
        for attempt in attempts {
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
        Ok(self.set_due(id, now.wall)? == 1)
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
