use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use http::HeaderMap;
use jiff::tz::TimeZone;
use llmq_api::{CreateKey, KeyScope};
use llmq_core::{Clock, LimitSpec, WallTime};
use llmq_engine::Tasks;
use llmq_store_sqlite::{
    InsertedKey, KeyRecord, KeyUsage, RevokedKey, Spend, Store, StoreError, UsageRecord,
};
use rustc_hash::FxHashMap;
use subtle::ConstantTimeEq;
use tokio::sync::oneshot;
use uuid::Uuid;

use super::auth::{Shown, shown};
use super::booking::{Booking, BudgetError};
use super::create::{Created, create};
use super::ledger::{Account, Booked, Ledger, Line, Refused, kept_from};
use super::period::{Period, Periods, periods_at};
use super::token::{self, KeyHash};
use super::{AuthError, AuthPolicy, Caller, CreateKeyError, RevokeKeyError, parse_limit};

/// How a key ring is to work.
#[derive(Debug, Clone, PartialEq)]
pub struct KeyRingOptions {
    /// Who may call without a key.
    pub auth: AuthPolicy,
    /// Whose midnight budgets follow.
    pub time_zone: TimeZone,
}

/// Why the keys of a store cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KeyRingError {
    /// They cannot be read.
    #[error("the keys cannot be read")]
    Store(#[from] StoreError),
    /// A key says something that this llmq does not understand. To pass over it could allow what
    /// it forbids.
    #[error("the key `{name}` holds `{what}`, which this llmq does not understand")]
    Damaged {
        /// The key.
        name: String,
        /// What is not understood.
        what: String,
    },
}

/// Every key in use, and what each one has spent.
///
/// Looking a key up takes one SHA-256 and one look at a table that is never locked. Counts of
/// budgets are in memory and ahead of that on disk: see [`KeyRing::reserve`].
pub struct KeyRing {
    store: Store,
    clock: Arc<dyn Clock>,
    options: ArcSwap<KeyRingOptions>,
    keys: ArcSwap<Keys>,
    /// Revoked keys whose last calls may not have been booked yet, and those whose limits still
    /// hold for what they handed in.
    leaving: Mutex<FxHashMap<Uuid, Arc<Key>>>,
    /// Held while keys are made or revoked, so that tables follow one another.
    changing: tokio::sync::Mutex<()>,
    /// For what must not stop halfway when its caller goes.
    tasks: Tasks,
}

/// The keys in use.
#[derive(Debug, Clone, Default)]
struct Keys {
    /// By the first half of their hash: an index. Whether a key is the right one is asked of the
    /// whole hash, in constant time.
    by_hash: FxHashMap<[u8; 16], Arc<Key>>,
    by_id: FxHashMap<Uuid, Arc<Key>>,
}

impl Keys {
    fn find(&self, hash: &KeyHash) -> Option<&Arc<Key>> {
        let key = self.by_hash.get(&index(hash))?;
        bool::from(key.record.sha256.ct_eq(hash)).then_some(key)
    }

    fn insert(&mut self, key: Arc<Key>) {
        self.by_id.insert(key.record.id, Arc::clone(&key));
        self.by_hash.insert(index(&key.record.sha256), key);
    }

    fn remove(&mut self, id: Uuid) -> Option<Arc<Key>> {
        let key = self.by_id.remove(&id)?;
        self.by_hash.remove(&index(&key.record.sha256));
        Some(key)
    }

    fn is_empty(&self) -> bool {
        self.by_id.is_empty()
    }

    fn manages(&self) -> bool {
        self.by_id
            .values()
            .any(|key| key.scopes.contains(&KeyScope::Manage))
    }
}

fn index(hash: &KeyHash) -> [u8; 16] {
    let mut index = [0; 16];
    index.copy_from_slice(&hash[..16]);
    index
}

/// A key in use.
pub(super) struct Key {
    pub(super) record: KeyRecord,
    pub(super) scopes: Vec<KeyScope>,
    pub(super) limits: Vec<LimitSpec>,
    ledger: Mutex<Ledger>,
    /// Whether the ledger may hold something that is not on disk. Changed under its lock.
    dirty: AtomicBool,
    /// Held while a portion is drawn, so that calls that need it too wait for that one.
    drawing: tokio::sync::Mutex<()>,
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.record.fmt(f)
    }
}

impl Key {
    fn new(record: KeyRecord) -> Result<Self, KeyRingError> {
        let damaged = |what: &str| KeyRingError::Damaged {
            name: record.name.clone(),
            what: what.to_owned(),
        };
        let scopes = record.scopes.iter();
        let scopes = scopes.map(|word| KeyScope::named(word).ok_or_else(|| damaged(word)));
        let scopes = scopes.collect::<Result<_, _>>()?;
        let limits = record.limits.iter();
        let limits = limits.map(|text| parse_limit(text).map_err(|_| damaged(text)));
        let limits = limits.collect::<Result<_, _>>()?;
        Ok(Self {
            ledger: Mutex::new(Ledger::new(record.budget)),
            record,
            scopes,
            limits,
            dirty: AtomicBool::new(false),
            drawing: tokio::sync::Mutex::default(),
        })
    }

    pub(super) fn tenant(&self) -> &str {
        self.record.tenant.as_ref().unwrap_or(&self.record.name)
    }

    pub(super) fn has_budget(&self) -> bool {
        self.record.budget != llmq_store_sqlite::Budget::default()
    }

    fn with<T>(&self, change: impl FnOnce(&mut Ledger) -> T) -> T {
        change(&mut self.ledger.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Changes what will have to be written.
    pub(super) fn change(&self, change: impl FnOnce(&mut Ledger)) {
        self.with(|ledger| {
            change(ledger);
            self.dirty.store(true, Ordering::Release);
        });
    }

    /// `lines` are on disk.
    fn written(&self, lines: &[Line], now: Periods) {
        self.with(|ledger| {
            ledger.written(lines);
            let done = ledger.stale_lines(now).is_empty();
            self.dirty.store(!done, Ordering::Release);
        });
    }

    fn is_dirty(&self) -> bool {
        self.dirty.load(Ordering::Acquire)
    }

    fn rows(&self, lines: &[Line]) -> Vec<KeyUsage> {
        let row = |line: &Line| KeyUsage {
            key: self.record.id,
            period: line.period.name(),
            input_tokens: line.booked.input_tokens,
            output_tokens: line.booked.output_tokens,
            nano_usd: line.booked.nano_usd,
            drawn: line.drawn,
        };
        lines.iter().map(row).collect()
    }
}

impl KeyRing {
    /// Reads the keys of `store`, and what they have spent. Changes of keys are among `tasks`.
    ///
    /// # Errors
    ///
    /// [`KeyRingError`].
    pub async fn open(
        store: Store,
        clock: Arc<dyn Clock>,
        options: KeyRingOptions,
        tasks: &Tasks,
    ) -> Result<Arc<Self>, KeyRingError> {
        let now = periods_at(clock.now().wall, &options.time_zone);
        let [day, month] = kept_from(now);
        let usage = store.key_usage(day.name(), month.name()).await?;
        let restore = |key: &Key| {
            let rows = usage.iter().filter(|row| row.key == key.record.id);
            key.with(|ledger| rows.filter_map(line).for_each(|line| ledger.restore(line)));
        };
        let mut keys = Keys::default();
        for record in store.keys_in_use().await? {
            let key = Key::new(record)?;
            restore(&key);
            keys.insert(Arc::new(key));
        }
        let mut leaving = FxHashMap::default();
        for record in store.revoked_keys_that_bind().await? {
            // One that is not understood opens nothing: nobody can show it.
            if let Ok(key) = Key::new(record) {
                restore(&key);
                leaving.insert(key.record.id, Arc::new(key));
            }
        }
        Ok(Arc::new(Self {
            store,
            clock,
            options: ArcSwap::from_pointee(options),
            keys: ArcSwap::from_pointee(keys),
            leaving: Mutex::new(leaving),
            changing: tokio::sync::Mutex::default(),
            tasks: tasks.clone(),
        }))
    }

    /// Works otherwise from here on.
    pub fn set_options(&self, options: KeyRingOptions) {
        self.options.store(Arc::new(options));
    }

    /// Who sent a request with these headers.
    ///
    /// # Errors
    ///
    /// [`AuthError`]: 401.
    pub fn authenticate(&self, headers: &HeaderMap) -> Result<Caller, AuthError> {
        let keys = self.keys.load();
        let open = self.is_open(&keys);
        let refused = match shown(headers) {
            Shown::Nothing => AuthError::Missing,
            Shown::Foreign => AuthError::NotOurs,
            Shown::Ours(key) => match keys.find(&token::hash(key)) {
                Some(key) => {
                    return Ok(Caller {
                        key: Some(Arc::clone(key)),
                    });
                }
                None => AuthError::Refused,
            },
        };
        // SDKs always send some key, so a server that asks for none must not mind a wrong one.
        if open {
            Ok(Caller::anonymous())
        } else {
            Err(refused)
        }
    }

    /// The caller with the key of this id, in use or revoked: whose calls are its, although nobody
    /// shows it now. None for one that was revoked long ago and has neither limits nor a budget.
    #[must_use]
    pub fn by_id(&self, id: Uuid) -> Option<Caller> {
        let in_use = self.keys.load().by_id.get(&id).cloned();
        let key = in_use.or_else(|| self.leaving().get(&id).cloned())?;
        Some(Caller { key: Some(key) })
    }

    /// Whether a caller would be let in now, as it was before.
    pub(crate) fn lets_in(&self, caller: &Caller) -> bool {
        match caller.key_id() {
            Some(id) => self.keys.load().by_id.contains_key(&id),
            None => self.asks_nobody(),
        }
    }

    /// Whether those without a key may call.
    #[must_use]
    pub fn asks_nobody(&self) -> bool {
        self.is_open(&self.keys.load())
    }

    fn is_open(&self, keys: &Keys) -> bool {
        match self.options.load().auth {
            AuthPolicy::Open => true,
            AuthPolicy::OpenUntilKeys => keys.is_empty(),
            AuthPolicy::Keys => false,
        }
    }

    /// Makes a key. When this returns, it is on disk and in use.
    ///
    /// # Errors
    ///
    /// [`CreateKeyError`]; no key was made then.
    ///
    /// # Cancel safety
    ///
    /// A key whose maker has gone is known to nobody, and is revoked.
    pub async fn create(self: &Arc<Self>, wanted: CreateKey) -> Result<Created, CreateKeyError> {
        let (tell, told) = oneshot::channel();
        let ring = Arc::clone(self);
        self.tasks.spawn(async move {
            let made = ring.make(wanted).await;
            if let Err(Ok(Created { record, .. })) = tell.send(made)
                && let Err(error) = ring.take_out(record.id).await
            {
                let error = &error as &dyn std::error::Error;
                tracing::warn!(
                    key = record.name,
                    error,
                    "nobody has this key, and it stays"
                );
            }
        });
        // A task that ends without a word has panicked.
        told.await.unwrap_or(Err(StoreError::Closed.into()))
    }

    async fn make(&self, wanted: CreateKey) -> Result<Created, CreateKeyError> {
        let _turn = self.changing.lock().await;
        let created = create(wanted, self.clock.now().wall)?;
        let key = Key::new(created.record.clone());
        let key = key.map_err(|error| CreateKeyError::Invalid {
            field: "limits".to_owned(),
            message: error.to_string(),
        })?;
        let mut keys = Keys::clone(&self.keys.load());
        if !keys.manages() && !key.scopes.contains(&KeyScope::Manage) {
            return Err(CreateKeyError::NobodyManages);
        }
        match self.store.insert_key(created.record.clone()).await? {
            InsertedKey::NameTaken => {
                return Err(CreateKeyError::NameTaken(created.record.name));
            }
            InsertedKey::Inserted => {}
        }
        keys.insert(Arc::new(key));
        self.keys.store(Arc::new(keys));
        Ok(created)
    }

    /// Revokes a key; one that was revoked before stays so. When this returns, it is on disk and
    /// no request with it is let in any more.
    ///
    /// # Errors
    ///
    /// [`RevokeKeyError`].
    ///
    /// # Cancel safety
    ///
    /// It goes on without its caller.
    pub async fn revoke(self: &Arc<Self>, id: Uuid) -> Result<KeyRecord, RevokeKeyError> {
        let ring = Arc::clone(self);
        let revoking = async move { ring.take_out(id).await };
        let revoked = self.tasks.spawn(revoking).await;
        revoked.unwrap_or(Err(StoreError::Closed.into()))
    }

    async fn take_out(&self, id: Uuid) -> Result<KeyRecord, RevokeKeyError> {
        let _turn = self.changing.lock().await;
        let mut keys = Keys::clone(&self.keys.load());
        let managed = keys.manages();
        let leaving = keys.remove(id);
        if let Some(key) = &leaving
            && managed
            && !keys.manages()
            && !keys.is_empty()
        {
            return Err(RevokeKeyError::LastManager(key.record.name.clone()));
        }
        let now = self.clock.now().wall;
        let record = match self.store.revoke_key(id, now).await? {
            RevokedKey::Revoked(record) => *record,
            RevokedKey::Unknown => return Err(RevokeKeyError::Unknown(id)),
        };
        self.keys.store(Arc::new(keys));
        self.leaving().extend(leaving.map(|key| (id, key)));
        Ok(record)
    }

    /// Holds `most`, the most that a call can cost, of the caller's budget.
    ///
    /// Nearly always this is a few additions under a short lock; once for each hundredth of the
    /// budget it waits until the next hundredth is on disk. So what is on disk is never less
    /// than what was spent, and a process that is killed loses at most a hundredth of the budget
    /// and what its calls under way could cost, and never spends beyond it.
    ///
    /// # Errors
    ///
    /// [`BudgetError::Overspent`] when the budget has no room for it.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: nothing is held then.
    pub async fn reserve(&self, caller: &Caller, most: Spend) -> Result<Booking, BudgetError> {
        let Some(key) = &caller.key else {
            return Ok(Booking::nothing());
        };
        let periods = self.periods();
        if !self.hold(key, most, periods)? {
            // Boxed, so that calls in line hold no room for it.
            Box::pin(self.draw(key, most, periods)).await?;
        }
        Ok(Booking::new(Arc::clone(key), most, periods))
    }

    /// Draws on disk until `most` can be held, and holds it.
    async fn draw(&self, key: &Key, most: Spend, periods: Periods) -> Result<(), BudgetError> {
        let _turn = key.drawing.lock().await;
        while !self.hold(key, most, periods)? {
            let lines = key.with(|ledger| ledger.to_draw(most, periods));
            let rows = key.rows(&lines);
            self.store
                .save_key_usage(rows, UsageRecord::Running)
                .await?;
            key.written(&lines, periods);
        }
        Ok(())
    }

    /// Whether it could be held; false when not enough is drawn.
    fn hold(&self, key: &Key, most: Spend, periods: Periods) -> Result<bool, BudgetError> {
        match key.with(|ledger| ledger.hold(most, periods)) {
            Ok(()) => Ok(true),
            Err(Refused::NotDrawn) => Ok(false),
            Err(Refused::Overspent(overspent)) => {
                let period = periods
                    .into_iter()
                    .find(|period| period.kind == overspent.period);
                Err(BudgetError::Overspent {
                    overspent,
                    resets_at: period.map_or(WallTime::default(), |period| {
                        period.end(&self.options.load().time_zone)
                    }),
                })
            }
        }
    }

    /// Writes what was booked since the last time, and draws the next portions before calls
    /// must wait for them. To be called about once a second while requests are served.
    ///
    /// # Errors
    ///
    /// [`StoreError`]; the next call tries again.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: the next call writes what this one may not have written.
    pub async fn save_usage(&self) -> Result<(), StoreError> {
        let now = self.periods();
        // Nobody calls with it any more, nothing is left to write, and what it handed in may run
        // without it.
        self.leaving().retain(|_, key| {
            let binds = !key.limits.is_empty() || key.has_budget();
            Arc::strong_count(key) > 1 || key.is_dirty() || binds
        });
        let dirty = self.all_keys().into_iter().filter(|key| key.is_dirty());
        let stale: Vec<(Arc<Key>, Vec<Line>)> = dirty
            .map(|key| {
                let lines = key.with(|ledger| {
                    ledger.forget_old(now);
                    ledger.stale_lines(now)
                });
                (key, lines)
            })
            .collect();
        let rows = stale.iter().flat_map(|(key, lines)| key.rows(lines));
        let rows: Vec<KeyUsage> = rows.collect();
        if !rows.is_empty() {
            self.store
                .save_key_usage(rows, UsageRecord::Running)
                .await?;
        }
        for (key, lines) in &stale {
            key.written(lines, now);
        }
        Ok(())
    }

    /// Writes the last books when the process stops: what was drawn and not spent is free again.
    /// To be called when no call is under way any more; what is still held then counts as spent.
    ///
    /// # Errors
    ///
    /// [`StoreError`]; then the next process counts all that was drawn as spent.
    pub async fn save_last_usage(&self) -> Result<(), StoreError> {
        let keys = self.all_keys();
        let rows = keys
            .iter()
            .flat_map(|key| key.rows(&key.with(|ledger| ledger.last_lines())));
        let rows: Vec<KeyUsage> = rows.collect();
        self.store.save_key_usage(rows, UsageRecord::Final).await
    }

    /// One page of all keys, revoked ones included, newest first.
    ///
    /// # Errors
    ///
    /// [`StoreError`].
    pub async fn list(&self, before: Option<Uuid>, max: u32) -> Result<Vec<KeyRecord>, StoreError> {
        self.store.list_keys(before, max).await
    }

    pub(super) async fn one(&self, id: Uuid) -> Result<Option<KeyRecord>, StoreError> {
        self.store.key(id).await
    }

    /// What a key in use has booked today and this month; none for another.
    pub(super) fn booked(&self, record: &KeyRecord) -> Option<[Booked; 2]> {
        let keys = self.keys.load();
        let key = keys.by_id.get(&record.id)?;
        let periods = self.periods();
        let booked = |period| {
            let Account { booked, .. } = key.with(|ledger| ledger.account(period));
            booked
        };
        Some(periods.map(booked))
    }

    fn periods(&self) -> Periods {
        periods_at(self.clock.now().wall, &self.options.load().time_zone)
    }

    fn all_keys(&self) -> Vec<Arc<Key>> {
        let keys = self.keys.load();
        let leaving = self.leaving();
        let keys = keys.by_id.values().chain(leaving.values());
        keys.cloned().collect()
    }

    fn leaving(&self) -> std::sync::MutexGuard<'_, FxHashMap<Uuid, Arc<Key>>> {
        self.leaving.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for KeyRing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyRing")
            .field("auth", &self.options.load().auth)
            .field("keys", &self.keys.load().by_id.len())
            .finish_non_exhaustive()
    }
}

fn line(row: &KeyUsage) -> Option<Line> {
    Some(Line {
        period: Period::named(&row.period)?,
        booked: Booked {
            input_tokens: row.input_tokens,
            output_tokens: row.output_tokens,
            nano_usd: row.nano_usd,
        },
        drawn: row.drawn,
    })
}

#[cfg(test)]
mod tests;
