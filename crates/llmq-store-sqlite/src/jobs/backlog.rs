//! What waits to be delivered, by addressee: how much, and when the first of it is due. The
//! deliveries themselves stay in the file.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::time::Duration;

use llmq_core::{Now, Timestamp, WallTime};
use llmq_store::{Addressee, DeliveryId, Endpoint, EndpointId, Take};
use rusqlite::Connection;
use uuid::Uuid;
use xxhash_rust::xxh3::xxh3_64;

/// See the module. Instants are in steady time, but for those of what is out.
#[derive(Debug, Default)]
pub(crate) struct Backlog {
    lines: HashMap<i64, Line>,
    /// Every line's `first_due`.
    by_due: BTreeSet<(WallTime, i64)>,
    out: HashMap<DeliveryId, Out>,
    /// Addressees that are sent nothing: endpoints that are disabled, damaged or removed.
    closed: HashSet<i64>,
    /// Removed endpoints of which deliveries are left.
    pub(crate) removed: BTreeSet<EndpointId>,
}

/// What waits for one addressee.
#[derive(Debug, Default)]
struct Line {
    waiting: u64,
    /// Nothing that is not out is due before; `None`: all that waits is out.
    first_due: Option<WallTime>,
    /// The last that was sent was not taken.
    is_failing: bool,
}

/// A delivery that somebody tries.
#[derive(Debug, Clone, Copy)]
struct Out {
    addressee: i64,
    due: WallTime,
    /// Nobody else is handed it before.
    until: Timestamp,
}

/// The number by which rows name an addressee.
pub(crate) fn number_of(addressee: &Addressee) -> i64 {
    let text = match addressee {
        Addressee::Endpoint(id) => format!("endpoint {id}"),
        Addressee::Host { tenant, host } => format!("host {tenant:?} {host}"),
    };
    xxh3_64(text.as_bytes()).cast_signed()
}

fn of_endpoint(id: EndpointId) -> i64 {
    number_of(&Addressee::Endpoint(id))
}

impl Backlog {
    pub(crate) fn load<'a>(
        connection: &Connection,
        endpoints: impl Iterator<Item = &'a Endpoint>,
    ) -> rusqlite::Result<Self> {
        let mut backlog = Self::default();
        let mut query = connection.prepare(
            "SELECT addressee, count(*), min(due_at) FROM deliveries WHERE due_at IS NOT NULL
             GROUP BY addressee",
        )?;
        let lines = query.query_map([], |row| {
            let first = WallTime::from_micros(row.get(2)?);
            Ok((row.get(0)?, row.get::<_, i64>(1)?.cast_unsigned(), first))
        })?;
        for line in lines {
            let (addressee, waiting, first) = line?;
            let line = Line {
                waiting,
                ..Line::default()
            };
            backlog.lines.insert(addressee, line);
            backlog.set_first(addressee, Some(first));
        }
        let open = endpoints.filter(|endpoint| !endpoint.disabled);
        let open: HashSet<_> = open.map(|endpoint| endpoint.id).collect();
        for (id, is_kept) in told(connection)? {
            if !open.contains(&id) {
                backlog.closed.insert(of_endpoint(id));
            }
            if !is_kept {
                backlog.removed.insert(id);
            }
        }
        Ok(backlog)
    }

    /// Keeps what does not follow from the file.
    pub(crate) fn survive(&mut self, before: &mut Self) {
        self.out = std::mem::take(&mut before.out);
        for (addressee, line) in &mut self.lines {
            let known = before.lines.get(addressee);
            line.is_failing = known.is_some_and(|known| known.is_failing);
        }
    }

    /// An endpoint is recorded.
    pub(crate) fn put(&mut self, endpoint: &Endpoint) {
        let addressee = of_endpoint(endpoint.id);
        if endpoint.disabled {
            self.closed.insert(addressee);
        } else {
            self.closed.remove(&addressee);
        }
        self.removed.remove(&endpoint.id);
    }

    /// An endpoint is there no more; what was to be delivered to it is still to be removed.
    pub(crate) fn remove(&mut self, endpoint: EndpointId) {
        self.closed.insert(of_endpoint(endpoint));
        self.removed.insert(endpoint);
    }

    /// Nothing of a removed endpoint is left.
    pub(crate) fn forget(&mut self, endpoint: EndpointId) {
        let addressee = of_endpoint(endpoint);
        self.set_first(addressee, None);
        self.lines.remove(&addressee);
        self.closed.remove(&addressee);
        self.removed.remove(&endpoint);
    }

    /// One more waits from `due` on. How many do.
    pub(crate) fn add(&mut self, addressee: i64, due: WallTime) -> u64 {
        let line = self.lines.entry(addressee).or_default();
        line.waiting += 1;
        let waiting = line.waiting;
        self.due_from(addressee, due);
        waiting
    }

    /// One that waits is due from `due` on.
    pub(crate) fn due_from(&mut self, addressee: i64, due: WallTime) {
        let known = self.lines.get(&addressee).and_then(|line| line.first_due);
        let first = known.map_or(due, |known| known.min(due));
        self.set_first(addressee, Some(first));
    }

    /// So many wait no more.
    pub(crate) fn less(&mut self, addressee: i64, count: u64) {
        let Some(line) = self.lines.get_mut(&addressee) else {
            return;
        };
        line.waiting = line.waiting.saturating_sub(count);
        if line.waiting == 0 {
            self.set_first(addressee, None);
            self.lines.remove(&addressee);
        }
    }

    pub(crate) fn set_first(&mut self, addressee: i64, first: Option<WallTime>) {
        let Some(line) = self.lines.get_mut(&addressee) else {
            return;
        };
        if let Some(before) = std::mem::replace(&mut line.first_due, first) {
            self.by_due.remove(&(before, addressee));
        }
        self.by_due.extend(first.map(|first| (first, addressee)));
    }

    /// Whether the last that was sent to an addressee was taken.
    pub(crate) fn tried(&mut self, addressee: i64, taken: bool) {
        if let Some(line) = self.lines.get_mut(&addressee) {
            line.is_failing = !taken;
        }
    }

    pub(crate) fn is_out(&self, delivery: DeliveryId) -> bool {
        self.out.contains_key(&delivery)
    }

    pub(crate) fn hand_out(
        &mut self,
        delivery: DeliveryId,
        addressee: i64,
        due: WallTime,
        until: Timestamp,
    ) {
        let out = Out {
            addressee,
            due,
            until,
        };
        self.out.insert(delivery, out);
    }

    /// Nobody tries a delivery any more.
    pub(crate) fn came_back(&mut self, delivery: DeliveryId) {
        self.out.remove(&delivery);
    }

    /// What was out for too long is to be handed to somebody else.
    pub(crate) fn free_late(&mut self, now: Now) {
        let late = self.out.extract_if(|_, out| out.until <= now.mono);
        for (_, out) in late.collect::<Vec<_>>() {
            self.due_from(out.addressee, out.due);
        }
    }

    /// Who may be sent something now, longest due first, and how much.
    pub(crate) fn due(&self, take: &Take, steady: WallTime) -> Vec<(i64, usize)> {
        let out = self.counts();
        let due = self.by_due.iter().take_while(|(at, _)| *at <= steady);
        due.map(|(_, addressee)| (*addressee, self.room(*addressee, take, &out)))
            .filter(|(_, room)| *room > 0)
            .take(take.max)
            .collect()
    }

    /// How long it is until somebody may be sent something.
    pub(crate) fn wait(&self, take: &Take, steady: WallTime, now: Now) -> Option<Duration> {
        let out = self.counts();
        let mut waits = self.by_due.iter();
        let first = waits.find(|(_, addressee)| self.room(*addressee, take, &out) > 0);
        let first = first.map(|(at, _)| at.since(steady));
        let held = self.out.values().map(|out| out.until - now.mono).min();
        first.into_iter().chain(held).min()
    }

    /// How many are out to each.
    fn counts(&self) -> HashMap<i64, usize> {
        let mut counts = HashMap::new();
        for out in self.out.values() {
            *counts.entry(out.addressee).or_default() += 1;
        }
        counts
    }

    fn room(&self, addressee: i64, take: &Take, out: &HashMap<i64, usize>) -> usize {
        if self.closed.contains(&addressee) {
            return 0;
        }
        let line = self.lines.get(&addressee);
        let each = if line.is_some_and(|line| line.is_failing) {
            take.each_failing
        } else {
            take.each
        };
        each.saturating_sub(out.get(&addressee).copied().unwrap_or_default())
    }

    /// Disabled endpoints that have something due since `before`.
    pub(crate) fn closed_since(&self, before: WallTime) -> Vec<i64> {
        let closed = self.closed.iter().filter(|addressee| {
            let line = self.lines.get(addressee);
            line.and_then(|line| line.first_due)
                .is_some_and(|first| first <= before)
        });
        closed.copied().collect()
    }
}

/// The endpoints of which there are deliveries, and whether they are there themselves.
fn told(connection: &Connection) -> rusqlite::Result<Vec<(EndpointId, bool)>> {
    // One look in the index for each, however many deliveries they have.
    let mut query = connection.prepare(
        "WITH RECURSIVE told (id) AS (
           SELECT min(endpoint) FROM deliveries WHERE endpoint IS NOT NULL
           UNION ALL
           SELECT (SELECT min(endpoint) FROM deliveries WHERE endpoint > told.id) FROM told
             WHERE told.id IS NOT NULL)
         SELECT id, EXISTS (SELECT 1 FROM webhook_endpoints WHERE webhook_endpoints.id = told.id)
         FROM told WHERE id IS NOT NULL",
    )?;
    let rows = query.query_map([], |row| {
        let id = row.get_ref(0)?.as_blob().ok();
        let id = id.and_then(|id| Uuid::from_slice(id).ok());
        Ok((id.map(EndpointId::from_uuid), row.get(1)?))
    })?;
    // One that is no id belongs to a damaged row.
    let known = rows.filter_map(|row| match row {
        Ok((id, is_kept)) => id.map(|id| Ok((id, is_kept))),
        Err(error) => Some(Err(error)),
    });
    known.collect()
}
