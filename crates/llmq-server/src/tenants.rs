//! Who calls are charged to, as the dispatcher knows them.

use std::sync::{PoisonError, RwLock};

use llmq_core::{Host, Now};
use llmq_dispatch::{LimitSetup, Scope, TenantId};
use llmq_engine::Hub;
use llmq_limit::charge_rule;
use rustc_hash::FxHashMap;

use crate::keys::Caller;

/// More tenants than this share the place of those without a name.
const TENANTS_MAX: usize = 10_000;

/// The tenants that have called so far.
#[derive(Debug)]
pub(crate) struct Tenants {
    nameless: TenantId,
    /// By name, and by key where the key has limits of its own.
    known: RwLock<FxHashMap<String, TenantId>>,
}

impl Tenants {
    pub(crate) fn new(nameless: TenantId) -> Self {
        Self {
            nameless,
            known: RwLock::default(),
        }
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
        if let Some(tenant) = known.get(&known_as) {
            return *tenant;
        }
        drop(known);
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(tenant) = known.get(&known_as) {
            return *tenant;
        }
        if known.len() >= TENANTS_MAX {
            return self.nameless;
        }
        let tenant = hub.with(|dispatcher| {
            let ids = limits.iter().map(|spec| {
                let setup = LimitSetup {
                    name: format!("{} key {}", spec.name(), caller.key_name().unwrap_or(name)),
                    spec: *spec,
                    rule: charge_rule(Host::Unknown, spec.kind),
                    scope: Scope::Tenant,
                };
                dispatcher.add_limit(setup, now)
            });
            let ids = ids.collect();
            dispatcher.add_tenant(1.0, ids)
        });
        known.insert(known_as, tenant);
        tenant
    }
}
