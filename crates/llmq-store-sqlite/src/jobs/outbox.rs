//! Endpoints, and the outbox of what they are to be told.

use llmq_core::{Now, Timestamp, WallTime};
use llmq_store::{
    Addressee, Attempted, Delivery, DeliveryId, DeliveryState, Due, Endpoint, EndpointId, NewEvent,
    NextTry, StoreError, StoredEvent, Take, Target,
};
use rusqlite::{Connection, OptionalExtension, Row, params};
use uuid::Uuid;

use super::backlog;
use super::desk::{Desk, Done, Fault};
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

/// Adds delivery `delivery`, due at `due`. Its addressee.
pub(crate) fn add(
    connection: &Connection,
    delivery: i64,
    target: &Target,
    event: &StoredEvent,
    due: WallTime,
) -> rusqlite::Result<i64> {
    let addressee = backlog::number_of(&Addressee::of(target, &event.event));
    let (endpoint, callback) = match target {
        Target::Endpoint(id) => (Some(*id.as_uuid().as_bytes()), None),
        Target::Callback(callback) => (None, Some(written(callback)?)),
    };
    let mut insert = connection.prepare_cached(
        "INSERT INTO deliveries (number, endpoint, callback, event, due_at, delivered, attempts,
           addressee, sum)
         VALUES (?1, ?2, ?3, ?4, ?5, 0, 0, ?6,
           checksum(?1, ?2, ?3, ?4, ?5, 0, 0, NULL, NULL, ?6))",
    )?;
    insert.execute(params![
        delivery,
        endpoint,
        callback,
        written(event)?,
        due.as_micros(),
        addressee
    ])?;
    Ok(addressee)
}

/// The addressee of a row, for rows that were written before they named it.
pub(crate) fn addressee_of(endpoint: Option<[u8; 16]>, callback: Option<&str>, event: &str) -> i64 {
    let target = match (endpoint, callback) {
        (Some(id), _) => Some(Target::Endpoint(EndpointId::from_uuid(Uuid::from_bytes(
            id,
        )))),
        (None, Some(callback)) => parsed(callback).ok().map(Target::Callback),
        (None, None) => None,
    };
    let event = parsed::<StoredEvent>(event).ok();
    let known = target.zip(event);
    known.map_or(0, |(target, event)| {
        backlog::number_of(&Addressee::of(&target, &event.event))
    })
}

/// Lets go of deliveries that ended long enough ago. How many.
fn let_go(connection: &Connection, before: WallTime, max: usize) -> rusqlite::Result<usize> {
    let mut delete = connection.prepare_cached(
        "DELETE FROM deliveries WHERE number IN
           (SELECT number FROM deliveries WHERE due_at IS NULL AND last_attempt_at <= ?1
              AND sum IS checksum(number, endpoint, callback, event, due_at, delivered, attempts,
                last_attempt_at, last_outcome, addressee) LIMIT ?2)",
    )?;
    delete.execute(params![before.as_micros(), max as i64])
}

macro_rules! select_deliveries {
    ($which:literal) => {
        concat!(
            "SELECT number, endpoint, callback, event, due_at, delivered, attempts,
               last_attempt_at, last_outcome,
               sum IS checksum(number, endpoint, callback, event, due_at, delivered, attempts,
                 last_attempt_at, last_outcome, addressee)
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

/// Changes what is to become of a row, if it is whole.
const FOLLOW: &str = "UPDATE deliveries SET due_at = ?2, delivered = ?3, attempts = ?4,
       last_attempt_at = ?5, last_outcome = ?6,
       sum = checksum(number, endpoint, callback, event, ?2, ?3, ?4, ?5, ?6, addressee)
     WHERE number = ?1 AND sum IS checksum(number, endpoint, callback, event, due_at, delivered,
       attempts, last_attempt_at, last_outcome, addressee)";

impl Desk<'_> {
    pub(crate) fn put_endpoint(
        &mut self,
        endpoint: Endpoint,
        event: Option<&NewEvent>,
        now: Now,
    ) -> Done<()> {
        let id = *endpoint.id.as_uuid().as_bytes();
        let there = "SELECT 1 FROM webhook_endpoints WHERE id = ?1";
        // What is there and not known is damaged: what it was is not to be written over.
        if !self.index.endpoints.contains_key(&endpoint.id)
            && self.connection.prepare_cached(there)?.exists([id])?
        {
            let what = format!("the row of webhook_endpoints of {}", endpoint.id);
            return Err(Fault::Store(StoreError::damaged(what)));
        }
        let mut insert = self.connection.prepare_cached(
            "INSERT OR REPLACE INTO webhook_endpoints (id, data, sum)
             VALUES (?1, ?2, checksum(?1, ?2))",
        )?;
        insert.execute(params![id, written(&endpoint)?])?;
        self.index.backlog.put(&endpoint);
        self.index.endpoints.insert(endpoint.id, endpoint);
        match event {
            Some(event) => self.tell(event, now),
            None => Ok(()),
        }
    }

    pub(crate) fn delete_endpoint(&mut self, id: EndpointId) -> Done<bool> {
        let bytes = *id.as_uuid().as_bytes();
        let delete = "DELETE FROM webhook_endpoints WHERE id = ?1";
        let deleted = self.connection.prepare_cached(delete)?.execute([bytes])?;
        self.index.endpoints.remove(&id);
        self.index.backlog.remove(id);
        Ok(deleted == 1)
    }

    /// Adds a delivery, due at once. The oldest of too many for one addressee is given up.
    pub(crate) fn deliver_to(
        &mut self,
        target: &Target,
        event: &StoredEvent,
        now: Now,
    ) -> rusqlite::Result<()> {
        let due = self.index.steady(now);
        self.index.last_delivery += 1;
        let number = self.index.last_delivery;
        let addressee = add(self.connection, number, target, event, due)?;
        if self.index.backlog.add(addressee, due) > self.index.settings.max_deliveries {
            self.give_up_oldest(addressee, now)?;
        }
        Ok(())
    }

    fn give_up_oldest(&mut self, addressee: i64, now: Now) -> rusqlite::Result<()> {
        let mut query = self.connection.prepare_cached(
            "SELECT number, attempts FROM deliveries WHERE addressee = ?1 AND due_at IS NOT NULL
             ORDER BY number",
        )?;
        let mut rows = query.query([addressee])?;
        while let Some(row) = rows.next()? {
            let (number, attempts): (i64, i64) = (row.get(0)?, row.get(1)?);
            let is_out = self
                .index
                .backlog
                .is_out(DeliveryId(number.cast_unsigned()));
            if !is_out && self.give_up(number, attempts, "too many wait", now)? {
                self.index.backlog.less(addressee, 1);
                break;
            }
        }
        Ok(())
    }

    /// Whether it was whole, so that it could be.
    fn give_up(
        &self,
        number: i64,
        attempts: i64,
        outcome: &str,
        now: Now,
    ) -> rusqlite::Result<bool> {
        let mut update = self.connection.prepare_cached(FOLLOW)?;
        let at = now.wall.as_micros();
        let updated = update.execute(params![number, None::<i64>, false, attempts, at, outcome])?;
        Ok(updated == 1)
    }

    /// What is handed out is held in memory: this process alone has the store, and what it held
    /// when it was killed is due for the next one at once.
    pub(crate) fn due_deliveries(&mut self, take: &Take, now: Now) -> Done<Due> {
        let steady = self.index.steady(now);
        self.index.backlog.free_late(now);
        let mut deliveries = Vec::new();
        for (addressee, room) in self.index.backlog.due(take, steady) {
            let room = room.min(take.max - deliveries.len());
            if room == 0 {
                break;
            }
            self.take_of(addressee, room, now.mono + take.hold, now, &mut deliveries)?;
        }
        let wait = self.index.backlog.wait(take, steady, now);
        Ok(Due { deliveries, wait })
    }

    fn take_of(
        &mut self,
        addressee: i64,
        room: usize,
        until: Timestamp,
        now: Now,
        deliveries: &mut Vec<Delivery>,
    ) -> Done<()> {
        let steady = self.index.steady(now);
        let mut query = self.connection.prepare_cached(select_deliveries!(
            "WHERE addressee = ?1 AND due_at IS NOT NULL ORDER BY due_at, number"
        ))?;
        let mut rows = query.query([addressee])?;
        let (mut taken, mut first) = (0, None);
        while let Some(row) = rows.next()? {
            let id = DeliveryId(row.get::<_, i64>(0)?.cast_unsigned());
            let due = WallTime::from_micros(row.get(4)?);
            if self.index.backlog.is_out(id) {
                continue;
            }
            if taken == room || due > steady {
                first = Some(due);
                break;
            }
            match read(row) {
                Ok(delivery) => {
                    self.index.backlog.hand_out(id, addressee, due, until);
                    deliveries.push(self.shown(delivery));
                    taken += 1;
                }
                // The others are delivered all the same.
                Err(error) if is_of_value(&error).is_some() => {}
                Err(error) => return Err(error.into()),
            }
        }
        self.index.backlog.set_first(addressee, first);
        Ok(())
    }

    pub(crate) fn delivered(&mut self, attempts: &[Attempted], now: Now) -> Done<()> {
        let steady = self.index.steady(now);
        for attempt in attempts {
            self.index.backlog.came_back(attempt.delivery);
            let number = attempt.delivery.0.cast_signed();
            let Some((addressee, was_due, before)) = self.standing(number)? else {
                continue;
            };
            let (due, taken) = match attempt.next {
                NextTry::Delivered => (None, true),
                NextTry::GivenUp => (None, false),
                NextTry::After(wait) => (Some(steady + wait), false),
            };
            let mut update = self.connection.prepare_cached(FOLLOW)?;
            update.execute(params![
                number,
                due.map(WallTime::as_micros),
                taken,
                before + 1,
                now.wall.as_micros(),
                &attempt.outcome
            ])?;
            self.index.backlog.tried(addressee, taken);
            self.follow(addressee, was_due.is_some(), due);
        }
        Ok(())
    }

    /// A delivery that waited or not now waits from `due` on, or no more.
    fn follow(&mut self, addressee: i64, waited: bool, due: Option<WallTime>) {
        let backlog = &mut self.index.backlog;
        match (waited, due) {
            (false, Some(due)) => {
                backlog.add(addressee, due);
            }
            (true, Some(due)) => backlog.due_from(addressee, due),
            (true, None) => backlog.less(addressee, 1),
            (false, None) => {}
        }
    }

    /// A row's addressee, when it is due, and its attempts; `None` where it is not whole.
    fn standing(&self, number: i64) -> rusqlite::Result<Option<(i64, Option<i64>, i64)>> {
        let mut query = self.connection.prepare_cached(
            "SELECT addressee, due_at, attempts FROM deliveries
             WHERE number = ?1 AND sum IS checksum(number, endpoint, callback, event, due_at,
               delivered, attempts, last_attempt_at, last_outcome, addressee)",
        )?;
        let standing = query.query_row([number], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)));
        standing.optional()
    }

    /// A delivery as it is shown: with when it is due as the wall will say it.
    fn shown(&self, mut delivery: Delivery) -> Delivery {
        if let DeliveryState::Due(at) = &mut delivery.state {
            *at = self.index.clock().on_the_wall(*at, self.index.now);
        }
        delivery
    }

    /// Whether a delivery goes with its endpoint.
    fn is_removed(&self, target: &Target) -> bool {
        matches!(target, Target::Endpoint(id) if self.index.backlog.removed.contains(id))
    }

    pub(crate) fn delivery(&self, id: DeliveryId) -> Done<Option<Delivery>> {
        let mut query = self
            .connection
            .prepare_cached(select_deliveries!("WHERE number = ?1"))?;
        let found = query.query_row([id.0.cast_signed()], read).optional()?;
        let found = found.filter(|delivery| !self.is_removed(&delivery.target));
        Ok(found.map(|delivery| self.shown(delivery)))
    }

    pub(crate) fn deliveries(
        &self,
        endpoint: Option<EndpointId>,
        after: Option<DeliveryId>,
        limit: usize,
    ) -> Done<Vec<Delivery>> {
        let before = after.map_or(i64::MAX, |after| after.0.cast_signed());
        if endpoint.is_some_and(|id| self.index.backlog.removed.contains(&id)) {
            return Ok(Vec::new());
        }
        let mut query = match endpoint {
            None => self.connection.prepare_cached(select_deliveries!(
                "WHERE number < ?1 AND (?2 IS NULL) ORDER BY number DESC"
            ))?,
            Some(_) => self.connection.prepare_cached(select_deliveries!(
                "WHERE number < ?1 AND endpoint = ?2 ORDER BY number DESC"
            ))?,
        };
        let id = endpoint.map(|id| *id.as_uuid().as_bytes());
        let mut rows = query.query(params![before, id])?;
        let mut found = Vec::new();
        while found.len() < limit
            && let Some(row) = rows.next()?
        {
            match read(row) {
                Ok(delivery) if self.is_removed(&delivery.target) => {}
                Ok(delivery) => found.push(self.shown(delivery)),
                // A damaged one keeps nobody from the others.
                Err(error) => match is_of_value(&error) {
                    Some(damage) => tracing::error!(error = %damage, "a list leaves a row out"),
                    None => return Err(error.into()),
                },
            }
        }
        Ok(found)
    }

    pub(crate) fn redeliver(&mut self, id: DeliveryId, now: Now) -> Done<bool> {
        if self.delivery(id)?.is_none() {
            return Ok(false);
        }
        let (number, due) = (id.0.cast_signed(), self.index.steady(now));
        let Some((addressee, was_due, _)) = self.standing(number)? else {
            return Ok(false);
        };
        let mut update = self.connection.prepare_cached(
            "UPDATE deliveries SET due_at = ?2,
               sum = checksum(number, endpoint, callback, event, ?2, delivered, attempts,
                 last_attempt_at, last_outcome, addressee)
             WHERE number = ?1",
        )?;
        update.execute(params![number, due.as_micros()])?;
        self.index.backlog.came_back(id);
        self.follow(addressee, was_due.is_some(), Some(due));
        Ok(true)
    }

    /// Gives up what disabled endpoints did not ask for in time, removes what removed ones were
    /// to be told, and lets go of what ended long enough ago. Whether there is more.
    pub(crate) fn let_go_of_deliveries(&mut self, slice: usize, now: Now) -> Done<bool> {
        let kept = self.index.settings.keep_results;
        let (before, mut more) = (self.index.steady(now).before(kept), false);
        for addressee in self.index.backlog.closed_since(before) {
            more |= self.give_up_late(addressee, before, slice, now)? >= slice;
        }
        if let Some(endpoint) = self.index.backlog.removed.first().copied() {
            let mut delete = self.connection.prepare_cached(
                "DELETE FROM deliveries WHERE number IN
                   (SELECT number FROM deliveries WHERE endpoint = ?1
                      AND sum IS checksum(number, endpoint, callback, event, due_at, delivered,
                        attempts, last_attempt_at, last_outcome, addressee) LIMIT ?2)",
            )?;
            let id = *endpoint.as_uuid().as_bytes();
            if delete.execute(params![id, slice as i64])? < slice {
                self.index.backlog.forget(endpoint);
            }
            more = true;
        }
        let before = self.index.no_later(now).before(kept);
        more |= let_go(self.connection, before, slice)? >= slice;
        Ok(more)
    }

    fn give_up_late(
        &mut self,
        addressee: i64,
        before: WallTime,
        slice: usize,
        now: Now,
    ) -> Done<usize> {
        let mut query = self.connection.prepare_cached(
            "SELECT number, attempts FROM deliveries WHERE addressee = ?1 AND due_at <= ?2
             ORDER BY due_at LIMIT ?3",
        )?;
        let late = query.query_map(
            params![addressee, before.as_micros(), slice as i64],
            |row| Ok((row.get(0)?, row.get(1)?)),
        )?;
        let late = late.collect::<rusqlite::Result<Vec<(i64, i64)>>>()?;
        let mut given_up = 0;
        for (number, attempts) in &late {
            given_up +=
                u64::from(self.give_up(*number, *attempts, "its webhook was disabled", now)?);
        }
        // Damaged ones stay, and are not looked at again.
        if late.len() < slice || given_up == 0 {
            self.first_again(addressee, before)?;
        }
        self.index.backlog.less(addressee, given_up);
        Ok(usize::try_from(given_up).unwrap_or(usize::MAX))
    }

    /// When the first behind `after` is due.
    fn first_again(&mut self, addressee: i64, after: WallTime) -> rusqlite::Result<()> {
        let mut query = self.connection.prepare_cached(
            "SELECT min(due_at) FROM deliveries WHERE addressee = ?1 AND due_at > ?2",
        )?;
        let first: Option<i64> =
            query.query_row(params![addressee, after.as_micros()], |row| row.get(0))?;
        let first = first.map(WallTime::from_micros);
        self.index.backlog.set_first(addressee, first);
        Ok(())
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
