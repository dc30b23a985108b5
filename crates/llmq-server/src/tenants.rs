//! Who calls are charged to, as the dispatcher knows them.

use std::sync::{PoisonError, RwLock};

use llmq_core::{Host, Now};
use llmq_dispatch::{Dispatcher, LimitId, LimitSetup, Scope, TenantId};
use llmq_engine::Hub;
use llmq_engine::books::Memory;
use llmq_limit::charge_rule;
use rustc_hash::FxHashMap;
use uuid::Uuid;

use crate::keys::{Caller, KeyRing};

/// More tenants than this share the place of those without a name.
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
    /// By name, and by key where the key has limits of its own.
    tenants: FxHashMap<String, TenantId>,
    /// The limits of keys: one set each, whoever its calls are charged to.
    limits: FxHashMap<Uuid, Vec<LimitId>>,
}

impl Tenants {
    pub(crate) fn new(nameless: TenantId, memory: Option<Memory>) -> Self {
        Self {
            nameless,
            memory,
            known: RwLock::default(),
        }
    }

    /// The tenant of that name, with the limits of its key if it has one: for what was accepted
    /// earlier.
    pub(crate) fn named(&self, name: &str, keys: &KeyRing, hub: &Hub, now: Now) -> TenantId {
        let caller = keys.of_tenant(name).unwrap_or_else(Caller::anonymous);
        self.of(&caller, name, hub, now)
    }

    /// The tenant `name` of a caller; made when it calls first.
    pub(crate) fn of(&self, caller: &Caller, name: &str, hub: &Hub, now: Now) -> TenantId {
        if caller.key_id().is_none() && name == caller.tenant() {
            return self.nameless;
        }
        let limits = caller.limits();
        let known_as = match caller.key_id() {
            Some(key) if !limits.is_empty() => format!("{name} {key}"),
            _ => name.to_owned(),
        };
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(tenant) = known.tenants.get(&known_as) {
            return *tenant;
        }
        drop(known);
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(tenant) = known.tenants.get(&known_as) {
            return *tenant;
        }
        if known.tenants.len() >= TENANTS_MAX {
            return self.nameless;
        }
        let tenant = hub.with(|dispatcher| {
            let ids = match caller.key_id() {
                Some(key) if !limits.is_empty() => {
                    let made = known.limits.entry(key);
                    made.or_insert_with(|| self.limits(caller, dispatcher, now))
                        .clone()
                }
                _ => Vec::new(),
            };
            dispatcher.add_tenant(1.0, ids)
        });
        known.tenants.insert(known_as, tenant);
        tenant
    }

    /// The limits of a caller's key, with what was used of them by an earlier process.
    fn limits(&self, caller: &Caller, dispatcher: &mut Dispatcher, now: Now) -> Vec<LimitId> {
        let name = caller.key_name().unwrap_or_default();
        let limits = caller.limits().iter().map(|spec| {
            let setup = LimitSetup {
                name: format!("{} key {name}", spec.name()),
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
