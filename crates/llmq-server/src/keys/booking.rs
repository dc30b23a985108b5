use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

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
/// Dropped while no attempt of it may have been billed, it gives everything back; else it counts
/// the most that the call could cost, for each attempt that may have been.
#[must_use = "dropped at once it holds nothing"]
pub struct Booking {
    /// None: nobody counts.
    held: Option<Held>,
}

struct Held {
    key: Arc<Key>,
    most: Spend,
    periods: Periods,
    /// Attempts before the last that the provider has perhaps billed.
    earlier: u32,
    /// Whether any of the attempt that began last has left; none: it was free.
    last: Option<Arc<AtomicBool>>,
}

impl Held {
    /// Attempts that the provider has perhaps billed.
    fn billable(&self) -> u32 {
        let has_left = |last: &Arc<AtomicBool>| last.load(Ordering::Acquire);
        self.earlier + u32::from(self.last.as_ref().is_some_and(has_left))
    }
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
                earlier: 0,
                last: None,
            }),
        }
    }

    /// An attempt begins: once `has_left` is true it may cost something.
    pub fn begins(&mut self, has_left: Arc<AtomicBool>) {
        if let Some(held) = &mut self.held {
            held.earlier = held.billable();
            held.last = Some(has_left);
        }
    }

    /// The attempt that began last has cost nothing: it did not leave, or was refused.
    pub fn was_free(&mut self) {
        if let Some(held) = &mut self.held {
            held.last = None;
        }
    }

    /// The attempt that began last was answered, and used this: `nano_usd` in billionths of a US
    /// dollar, 0 where no price is known. Earlier ones that may have been billed count in full.
    pub fn settle(mut self, usage: &Usage, nano_usd: u64) {
        if let Some(Held {
            key,
            most,
            periods,
            earlier,
            last: _,
        }) = self.held.take()
        {
            key.change(|ledger| {
                ledger.settle(most, usage, nano_usd, periods);
                for _ in 0..earlier {
                    ledger.keep_more(most, periods);
                }
            });
        }
    }
}

impl Drop for Booking {
    fn drop(&mut self) {
        let Some(held) = self.held.take() else {
            return;
        };
        let billable = held.billable();
        held.key.change(|ledger| {
            if billable == 0 {
                return ledger.give_back(held.most, held.periods);
            }
            ledger.keep(held.most, held.periods);
            for _ in 1..billable {
                ledger.keep_more(held.most, held.periods);
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
