//! Who calls are charged to, as the dispatcher knows them.

use std::sync::{PoisonError, RwLock};

use llmq_core::{Host, Now};
use llmq_dispatch::{Dispatcher, LimitId, LimitSetup, Scope, TenantId};
use llmq_engine::Hub;
use llmq_engine::books::{Memory, limit_names};
use llmq_limit::charge_rule;
use rustc_hash::FxHashMap;
use uuid::Uuid;

use crate::keys::Caller;

/// More tenants than this share one place of their key, or that of those without a name.
const TENANTS_MAX: usize = 10_000;

/// The tenants that have called so far.
#[derive(Debug)]
pub(crate) struct Tenants {
    nameless: TenantId,
    /// None: nothing is kept from one process to the next.
    memory: Option<Memory>,
    known: RwLock<Known>,
}

#[derive(Debug, Default)]
struct Known {
    /// By name.
    named: FxHashMap<String, TenantId>,
    /// Those whose key has limits of its own.
    limited: FxHashMap<Uuid, Limited>,
    count: usize,
}

/// The tenants that a key with limits calls for.
#[derive(Debug)]
struct Limited {
    /// One set, whoever its calls are charged to.
    limits: Vec<LimitId>,
    named: FxHashMap<String, TenantId>,
    /// Of all names that there was no more room for.
    others: Option<TenantId>,
}

impl Known {
    /// The tenant of that name, of a key with limits or without.
    fn get(&self, limited: Option<Uuid>, name: &str) -> Option<TenantId> {
        let named = match limited {
            None => &self.named,
            Some(key) => &self.limited.get(&key)?.named,
        };
        named.get(name).copied()
    }
}

impl Tenants {
    pub(crate) fn new(nameless: TenantId, memory: Option<Memory>) -> Self {
        Self {
            nameless,
            memory,
            known: RwLock::default(),
        }
    }

    /// The tenant `name` of a caller; made when it calls first.
    pub(crate) fn of(&self, caller: &Caller, name: &str, hub: &Hub, now: Now) -> TenantId {
        if caller.key_id().is_none() && name == caller.tenant() {
            return self.nameless;
        }
        let limited = caller.key_id().filter(|_| !caller.limits().is_empty());
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(tenant) = known.get(limited, name) {
            return tenant;
        }
        drop(known);
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(tenant) = known.get(limited, name) {
            return tenant;
        }
        let has_room = known.count < TENANTS_MAX;
        known.count += usize::from(has_room);
        let Some(key) = limited else {
            if !has_room {
                return self.nameless;
            }
            let tenant = hub.with(|dispatcher| dispatcher.add_tenant(1.0, Vec::new()));
            known.named.insert(name.to_owned(), tenant);
            return tenant;
        };
        hub.with(|dispatcher| {
            let limited = known.limited.entry(key).or_insert_with(|| Limited {
                limits: self.limits(key, caller, dispatcher, now),
                named: FxHashMap::default(),
                others: None,
            });
            let mut add = || dispatcher.add_tenant(1.0, limited.limits.clone());
            if !has_room {
                // Whatever it calls itself, its limits hold.
                return *limited.others.get_or_insert_with(add);
            }
            let tenant = add();
            limited.named.insert(name.to_owned(), tenant);
            tenant
        })
    }

    /// The limits of a caller's key, with what was used of them by an earlier process.
    fn limits(
        &self,
        key: Uuid,
        caller: &Caller,
        dispatcher: &mut Dispatcher,
        now: Now,
    ) -> Vec<LimitId> {
        let name = caller.key_name().unwrap_or_default();
        // The books know them by this, and a revoked key may have had the same name.
        let names = limit_names(caller.limits(), &format!("key {name} ({key})"));
        let limits = caller.limits().iter().zip(names).map(|(spec, name)| {
            let setup = LimitSetup {
                name,
                spec: *spec,
                rule: charge_rule(Host::Unknown, spec.kind),
                scope: Scope::Tenant,
            };
            let id = dispatcher.add_limit(setup, now);
            if let Some(memory) = &self.memory {
                memory.open(dispatcher, id, now);
            }
            id
        });
        limits.collect()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use http::{HeaderMap, HeaderValue};
    use jiff::tz::TimeZone;
    use llmq_api::{CreateKey, KeyScope};
    use llmq_core::Clock;
    use llmq_dispatch::Rules;
    use llmq_engine::books::{Earlier, Parts, Spent, Wanted};
    use llmq_engine::{SystemClock, Tasks};
    use llmq_store_sqlite::{Place, Store};

    use super::*;
    use crate::keys::{AuthPolicy, KeyRing, KeyRingOptions};

    async fn caller(keys: &Arc<KeyRing>, name: &str, limits: &[&str]) -> Caller {
        let wanted = CreateKey {
            name: name.to_owned(),
            scopes: KeyScope::ALL.to_vec(),
            models: None,
            tenant: None,
            any_tenant: true,
            limits: limits.iter().map(|limit| (*limit).to_owned()).collect(),
            budget: llmq_api::KeyBudget::default(),
        };
        let key = keys.create(wanted).await.unwrap().key;
        let mut headers = HeaderMap::new();
        let shown = format!("Bearer {}", key.expose());
        headers.insert("authorization", HeaderValue::from_str(&shown).unwrap());
        keys.authenticate(&headers).unwrap()
    }

    async fn ring(clock: &SystemClock, tasks: &Tasks) -> Arc<KeyRing> {
        let store = Store::open(&Place::Memory, clock.now().wall).unwrap();
        let options = KeyRingOptions {
            auth: AuthPolicy::Keys,
            time_zone: TimeZone::UTC,
        };
        let keys = KeyRing::open(store, Arc::new(clock.clone()), options, tasks);
        keys.await.unwrap()
    }

    /// A key that was made in the place of a revoked one, under its name, began with what that one
    /// had used before the last restart.
    #[tokio::test]
    async fn a_new_key_begins_with_nothing_of_what_a_revoked_one_of_its_name_used() {
        let (clock, tasks) = (SystemClock::new(), Tasks::new());
        let keys = ring(&clock, &tasks).await;
        let before = caller(&keys, "x", &["rpd=3"]).await;
        keys.revoke(before.key_id().unwrap()).await.unwrap();
        let after = caller(&keys, "x", &["rpd=3"]).await;
        let now = clock.now();
        // The name of the last limit once the caller has called, and what is used of it.
        let called = |caller: &Caller, memory: Option<Memory>| {
            let mut dispatcher = Dispatcher::new(Rules::default(), 1);
            let nameless = dispatcher.add_tenant(1.0, Vec::new());
            let hub = llmq_engine::run(dispatcher, clock.clone(), &tasks);
            let _tenant = Tenants::new(nameless, memory).of(caller, "x", &hub, now);
            hub.with(|dispatcher| {
                let limit = dispatcher.limit_ids().last().unwrap();
                let saved = dispatcher.limit_mut(limit).saved(now.mono);
                let used: u64 = saved.iter().map(|(_, used)| used).sum();
                (dispatcher.limit_name(limit).to_owned(), used)
            })
        };
        let (name, _) = called(&before, None);
        let used = Parts { used: vec![(0, 2)] };
        let earlier = Earlier {
            spent: Spent {
                clean: true,
                limits: [(name, used)].into(),
                ..Spent::default()
            },
            alive_at: Some(now.wall),
            ..Earlier::default()
        };
        let memory = Memory::new(earlier, Wanted::default());
        assert_eq!(called(&before, Some(memory.clone())).1, 2);
        assert_eq!(called(&after, Some(memory)).1, 0);
        tasks.cancel();
    }

    /// They had one place in the books, and after a restart the use of one was that of both.
    #[tokio::test]
    async fn a_keys_limits_of_one_period_have_names_of_their_own() {
        let (clock, tasks) = (SystemClock::new(), Tasks::new());
        let keys = ring(&clock, &tasks).await;
        let caller = caller(&keys, "x", &["rpd=3", "requests=9/1d:fixed"]).await;
        let mut dispatcher = Dispatcher::new(Rules::default(), 1);
        let limits = Tenants::new(dispatcher.add_tenant(1.0, Vec::new()), None).limits(
            caller.key_id().unwrap(),
            &caller,
            &mut dispatcher,
            clock.now(),
        );
        let [first, second] = [limits[0], limits[1]].map(|limit| dispatcher.limit_name(limit));
        assert_ne!(first, second);
        tasks.cancel();
    }

    /// Once the 10,001st name was the nameless, who have no limits.
    #[tokio::test]
    async fn a_key_that_names_more_tenants_than_fit_keeps_its_limits() {
        let (clock, tasks) = (SystemClock::new(), Tasks::new());
        let mut dispatcher = Dispatcher::new(Rules::default(), 1);
        let nameless = dispatcher.add_tenant(1.0, Vec::new());
        let hub = llmq_engine::run(dispatcher, clock.clone(), &tasks);
        let keys = ring(&clock, &tasks).await;
        let one = caller(&keys, "one", &["rpm=1"]).await;
        let two = caller(&keys, "two", &["rpm=1"]).await;
        let free = caller(&keys, "free", &[]).await;
        let tenants = Tenants::new(nameless, None);
        let of = |caller: &Caller, name: &str| tenants.of(caller, name, &hub, clock.now());
        let first = of(&one, "0");
        for number in 1..=TENANTS_MAX {
            let tenant = of(&one, &number.to_string());
            assert_ne!(tenant, nameless, "{number}");
        }
        assert_eq!(of(&one, "0"), first);
        let over = of(&one, "one more");
        assert_eq!(of(&one, "and another"), over);
        assert!(![nameless, over].contains(&of(&two, "one more")));
        assert_eq!(of(&free, "one more"), nameless);
        tasks.cancel();
    }
}
