//! Keys in the store itself, where no server runs.

use std::error::Error;
use std::sync::Arc;

use jiff::tz::TimeZone;
use llmq_api::{CreateKey, CreatedKey, KeyInfo};
use llmq_core::Clock;
use llmq_engine::{SystemClock, Tasks};
use llmq_server::keys::{AuthPolicy, CreateKeyError, KeyRing, KeyRingOptions, RevokeKeyError};
use llmq_store_sqlite::{OpenError, Place, Store};
use tokio::runtime::{Builder, Runtime};
use uuid::Uuid;

use super::PAGE;
use crate::exit::{FAILED, Failure, with_causes};

/// The keys of a store that this process owns meanwhile.
pub(super) struct Offline {
    runtime: Runtime,
    ring: Arc<KeyRing>,
}

impl Offline {
    pub(super) fn open(place: &Place) -> Result<Self, Failure> {
        if *place == Place::Memory {
            return Err(Failure::usage(
                "--store: memory: ends with this command; use sqlite:PATH",
            ));
        }
        let runtime = Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|error| Failure::wrong(&error))?;
        let clock = SystemClock::new();
        let store = Store::open(place, clock.now().wall).map_err(|error| {
            let mut failure = Failure::of_store(&error);
            if let OpenError::Owned { .. } = error {
                failure
                    .message
                    .push_str(": while a server runs, leave --store out and ask it (--base-url)");
            }
            failure
        })?;
        let options = KeyRingOptions {
            auth: AuthPolicy::Keys,
            // Nothing is spent here.
            time_zone: TimeZone::UTC,
        };
        let ring = runtime.block_on(KeyRing::open(
            store,
            Arc::new(clock),
            options,
            &Tasks::new(),
        ));
        let ring = ring.map_err(|error| failed(&error))?;
        Ok(Self { runtime, ring })
    }

    pub(super) fn create(&self, wanted: CreateKey) -> Result<CreatedKey, Failure> {
        let created = self.runtime.block_on(self.ring.create(wanted));
        let created = created.map_err(|error| match error {
            CreateKeyError::Store(_) => failed(&error),
            _ => Failure::wrong(&error),
        })?;
        Ok(CreatedKey {
            key: created.key.expose().to_owned(),
            info: self.ring.info(&created.record),
        })
    }

    pub(super) fn page(
        &self,
        cursor: Option<Uuid>,
    ) -> Result<(Vec<KeyInfo>, Option<Uuid>), Failure> {
        let records = self.runtime.block_on(self.ring.list(cursor, PAGE));
        let records = records.map_err(|error| failed(&error))?;
        let last = records.last().map(|record| record.id);
        let more = records.len() == PAGE as usize;
        let infos = records.iter().map(|record| self.ring.info(record));
        Ok((infos.collect(), last.filter(|_| more)))
    }

    pub(super) fn revoke(&self, id: Uuid) -> Result<KeyInfo, Failure> {
        let record = self.runtime.block_on(self.ring.revoke(id));
        let record = record.map_err(|error| match error {
            RevokeKeyError::Store(_) => failed(&error),
            _ => Failure {
                code: FAILED,
                message: error.to_string(),
            },
        })?;
        Ok(self.ring.info(&record))
    }
}

fn failed(error: &(dyn Error + 'static)) -> Failure {
    Failure {
        code: FAILED,
        message: with_causes(error),
    }
}
