use std::fmt;
use std::sync::Arc;

use llmq_core::{Usage, WallTime};
use llmq_store_sqlite::{Spend, StoreError};

use super::ledger::Overspent;
use super::period::Periods;
use super::ring::Key;

/// Why a call may not cost anything now.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum BudgetError {
    /// The key's budget has no room for it.
    #[error("{overspent}")]
    Overspent {
        /// Which budget, and what is left of it.
        overspent: Overspent,
        /// When the next day or month begins.
        resets_at: WallTime,
    },
    /// What may be spent could not be recorded, so nothing may be.
    #[error("the key's budget cannot be recorded")]
    Store(#[from] StoreError),
}

/// What is held of a key's budget for one call, from before it waits for its turn until its cost
/// is known.
///
/// Dropped before [`Booking::sent`] it gives everything back; dropped afterwards, when the
/// provider has perhaps billed the call, it counts the most that the call could cost.
#[must_use = "dropped at once it holds nothing"]
pub struct Booking {
    /// None: nobody counts.
    held: Option<Held>,
}

struct Held {
    key: Arc<Key>,
    most: Spend,
    periods: Periods,
    sent: bool,
}

impl Booking {
    /// A booking that holds nothing and counts nothing.
    pub fn nothing() -> Self {
        Self { held: None }
    }

    pub(super) fn new(key: Arc<Key>, most: Spend, periods: Periods) -> Self {
        Self {
            held: Some(Held {
                key,
                most,
                periods,
                sent: false,
            }),
        }
    }

    /// The call's bytes are on their way: from now on it may cost something.
    pub fn sent(&mut self) {
        if let Some(held) = &mut self.held {
            held.sent = true;
        }
    }

    /// The call ended and used this, all attempts together: `nano_usd` in billionths of a US
    /// dollar, 0 where no price is known.
    pub fn settle(mut self, usage: &Usage, nano_usd: u64) {
        if let Some(Held {
            key, most, periods, ..
        }) = self.held.take()
        {
            key.change(|ledger| ledger.settle(most, usage, nano_usd, periods));
        }
    }
}

impl Drop for Booking {
    fn drop(&mut self) {
        let Some(held) = self.held.take() else {
            return;
        };
        held.key.change(|ledger| {
            if held.sent {
                ledger.keep(held.most, held.periods);
            } else {
                ledger.give_back(held.most, held.periods);
            }
        });
    }
}

impl fmt::Debug for Booking {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let held = self.held.as_ref();
        f.debug_struct("Booking")
            .field("key", &held.map(|held| &held.key.record.name))
            .field("most", &held.map(|held| held.most))
            .finish()
    }
}
