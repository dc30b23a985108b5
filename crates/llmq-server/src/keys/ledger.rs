//! What one key spent, and what it may still spend: pure arithmetic.
//!
//! Three figures for each period and unit: *spent* by calls that ended, *held* for calls that are
//! under way, and *drawn*, which is on disk. The law is `spent + held <= drawn <= budget` at every
//! instant at which a call may start; so whenever the process ends, what is on disk is never less
//! than what was spent. Drawing is done in portions of a hundredth of the budget, so that most
//! calls find theirs drawn already.

use std::collections::BTreeMap;
use std::fmt;

use llmq_core::Usage;
use llmq_store_sqlite::{Budget, Spend};

use super::period::{Period, PeriodKind, Periods};
use crate::shown::usd;

/// What is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SpendUnit {
    /// Input and output tokens.
    Tokens,
    /// Billionths of a US dollar.
    NanoUsd,
}

const UNITS: [SpendUnit; 2] = [SpendUnit::Tokens, SpendUnit::NanoUsd];

/// A budget that has no room for a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Overspent {
    /// Which budget.
    pub unit: SpendUnit,
    /// Of the day or of the month.
    pub period: PeriodKind,
    /// The budget, in its unit.
    pub budget: u64,
    /// What of it is neither spent nor held for calls under way.
    pub left: u64,
    /// The most that the call could have cost.
    pub needed: u64,
}

impl fmt::Display for Overspent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let amount = |amount: u64| match self.unit {
            SpendUnit::Tokens => format!("{amount} tokens"),
            SpendUnit::NanoUsd => format!("{:.6} USD", usd(amount)),
        };
        write!(
            f,
            "the key's budget of {} a {} has {} left, and this call may cost {}",
            amount(self.budget),
            self.period,
            amount(self.left),
            amount(self.needed)
        )
    }
}

/// Why a call may not start now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refused {
    /// A budget has no room for it.
    Overspent(Overspent),
    /// The budget has room, but not enough of it is drawn: [`Ledger::to_draw`], then again.
    NotDrawn,
}

/// How far back accounts are kept, so that a clock that is set back finds them again.
const KEPT_DAYS: i32 = 40;
const KEPT_MONTHS: i32 = 14;

/// The first day and the first month that are kept at `now`.
pub(super) fn kept_from(now: Periods) -> Periods {
    let [day, month] = now;
    [day.before(KEPT_DAYS), month.before(KEPT_MONTHS)]
}

/// What is known of one period.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Account {
    /// What was booked, to be shown.
    pub(super) booked: Booked,
    /// By calls that ended, or whose fate is unknown.
    spent: Spend,
    /// The most that the calls under way can cost.
    held: Spend,
    /// What is on disk as spent.
    drawn: Spend,
    /// What is on disk as booked.
    on_disk: Booked,
}

/// What calls that ended have really used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Booked {
    pub(super) input_tokens: u64,
    pub(super) output_tokens: u64,
    pub(super) nano_usd: u64,
}

/// What is to be on disk of one period.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Line {
    pub(super) period: Period,
    pub(super) booked: Booked,
    pub(super) drawn: Spend,
}

/// The accounts of one key.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    budget: Budget,
    accounts: BTreeMap<Period, Account>,
}

impl Ledger {
    pub(super) fn new(budget: Budget) -> Self {
        Self {
            budget,
            accounts: BTreeMap::new(),
        }
    }

    /// Takes over what an earlier process left on disk. All that it had drawn counts as spent:
    /// after a stop of its own it had drawn no more than it had spent.
    pub(super) fn restore(&mut self, line: Line) {
        let account = Account {
            booked: line.booked,
            spent: line.drawn,
            held: Spend::default(),
            drawn: line.drawn,
            on_disk: line.booked,
        };
        self.accounts.insert(line.period, account);
    }

    pub(super) fn account(&self, period: Period) -> Account {
        self.accounts.get(&period).copied().unwrap_or_default()
    }

    /// Holds `most` in both periods, or changes nothing.
    pub(super) fn hold(&mut self, most: Spend, periods: Periods) -> Result<(), Refused> {
        let mut drawn = true;
        for (period, unit, budget) in self.budgets(periods) {
            let account = self.account(period);
            let used = account.used(unit);
            let needed = unit.of(most);
            let after = used.saturating_add(needed);
            if after > budget {
                return Err(Refused::Overspent(Overspent {
                    unit,
                    period: period.kind,
                    budget,
                    left: budget.saturating_sub(used),
                    needed,
                }));
            }
            drawn &= after <= unit.of(account.drawn);
        }
        if !drawn {
            return Err(Refused::NotDrawn);
        }
        for period in periods {
            let account = self.accounts.entry(period).or_default();
            account.held = plus(account.held, most);
        }
        Ok(())
    }

    /// What must be on disk before a call that can cost `most` may start, and a portion more.
    pub(super) fn to_draw(&self, most: Spend, periods: Periods) -> Vec<Line> {
        periods.map(|period| self.line(period, most)).to_vec()
    }

    /// The lines that should be written: what is older on disk than here, and the periods of
    /// `now` in which less than half a portion is left of what is drawn. Each is a portion
    /// ahead.
    pub(super) fn stale_lines(&self, now: Periods) -> Vec<Line> {
        let accounts = self.accounts.iter();
        let stale = accounts.filter(|(period, account)| {
            account.is_behind() || now.contains(period) && self.runs_low(**period, account)
        });
        stale
            .map(|(period, _)| self.line(*period, Spend::default()))
            .collect()
    }

    fn runs_low(&self, period: Period, account: &Account) -> bool {
        UNITS.into_iter().any(|unit| {
            unit.budget(&self.budget, period.kind)
                .is_some_and(|budget| {
                    let soon = account.used(unit).saturating_add(budget.div_ceil(200));
                    unit.of(account.drawn) < soon.min(budget)
                })
        })
    }

    /// Forgets periods that ended long before `now`.
    pub(super) fn forget_old(&mut self, now: Periods) {
        let oldest = kept_from(now);
        self.accounts.retain(|period, account| {
            let old = oldest
                .iter()
                .any(|first| first.kind == period.kind && period < first);
            !old || account.is_behind() || account.held != Spend::default()
        });
    }

    /// `lines` are on disk: what they have drawn may be spent.
    pub(super) fn written(&mut self, lines: &[Line]) {
        for line in lines {
            let account = self.accounts.entry(line.period).or_default();
            account.drawn = larger(account.drawn, line.drawn);
            account.on_disk = account.on_disk.larger(line.booked);
        }
    }

    /// A call that [held](Ledger::hold) `most` ended and used this.
    pub(super) fn settle(&mut self, most: Spend, usage: &Usage, nano_usd: u64, periods: Periods) {
        let tokens = usage.input_tokens.saturating_add(usage.output_tokens);
        for period in periods {
            let account = self.accounts.entry(period).or_default();
            account.held = minus(account.held, most);
            account.spent = plus(account.spent, Spend { tokens, nano_usd });
            account.booked.add(usage, nano_usd);
        }
    }

    /// A call that held `most` ended, and nobody knows what it used: all of it.
    pub(super) fn keep(&mut self, most: Spend, periods: Periods) {
        for period in periods {
            let account = self.accounts.entry(period).or_default();
            account.held = minus(account.held, most);
            account.spent = plus(account.spent, most);
        }
    }

    /// Another attempt of a call that held `most` may have been billed too.
    pub(super) fn keep_more(&mut self, most: Spend, periods: Periods) {
        for period in periods {
            let account = self.accounts.entry(period).or_default();
            account.spent = plus(account.spent, most);
        }
    }

    /// A call that held `most` was never sent.
    pub(super) fn give_back(&mut self, most: Spend, periods: Periods) {
        for period in periods {
            let account = self.accounts.entry(period).or_default();
            account.held = minus(account.held, most);
        }
    }

    /// Every line as it is at a stop: drawn is what was spent, and what is held for calls whose
    /// end nobody will see.
    pub(super) fn last_lines(&self) -> Vec<Line> {
        let lines = self.accounts.iter().map(|(period, account)| Line {
            period: *period,
            booked: account.booked,
            drawn: plus(account.spent, account.held),
        });
        lines.collect()
    }

    /// The line of `period` with room for `most` and a portion.
    fn line(&self, period: Period, most: Spend) -> Line {
        let account = self.account(period);
        let mut drawn = plus(plus(account.spent, account.held), most);
        for unit in UNITS {
            if let Some(budget) = unit.budget(&self.budget, period.kind) {
                let needed = unit.of(drawn);
                let ahead = needed.saturating_add(budget.div_ceil(100));
                // Nothing is drawn beyond the budget, but what was overspent stays so.
                unit.set(&mut drawn, ahead.min(budget.max(needed)));
            }
        }
        Line {
            period,
            booked: account.booked,
            drawn: larger(drawn, account.drawn),
        }
    }

    fn budgets(&self, periods: Periods) -> impl Iterator<Item = (Period, SpendUnit, u64)> {
        let budget = self.budget;
        periods.into_iter().flat_map(move |period| {
            UNITS.into_iter().filter_map(move |unit| {
                let count = unit.budget(&budget, period.kind)?;
                Some((period, unit, count))
            })
        })
    }
}

impl Account {
    fn used(&self, unit: SpendUnit) -> u64 {
        unit.of(self.spent).saturating_add(unit.of(self.held))
    }

    /// Whether the disk knows of less than happened.
    fn is_behind(&self) -> bool {
        self.booked != self.on_disk || larger(self.spent, self.drawn) != self.drawn
    }
}

impl Booked {
    /// Counts only grow, so the larger one is the later one.
    fn larger(self, other: Self) -> Self {
        Self {
            input_tokens: self.input_tokens.max(other.input_tokens),
            output_tokens: self.output_tokens.max(other.output_tokens),
            nano_usd: self.nano_usd.max(other.nano_usd),
        }
    }

    fn add(&mut self, usage: &Usage, nano_usd: u64) {
        self.input_tokens = self.input_tokens.saturating_add(usage.input_tokens);
        self.output_tokens = self.output_tokens.saturating_add(usage.output_tokens);
        self.nano_usd = self.nano_usd.saturating_add(nano_usd);
    }
}

impl SpendUnit {
    fn of(self, spend: Spend) -> u64 {
        match self {
            Self::Tokens => spend.tokens,
            Self::NanoUsd => spend.nano_usd,
        }
    }

    fn set(self, spend: &mut Spend, amount: u64) {
        match self {
            Self::Tokens => spend.tokens = amount,
            Self::NanoUsd => spend.nano_usd = amount,
        }
    }

    fn budget(self, budget: &Budget, period: PeriodKind) -> Option<u64> {
        match (self, period) {
            (Self::Tokens, PeriodKind::Day) => budget.tokens_per_day,
            (Self::Tokens, PeriodKind::Month) => budget.tokens_per_month,
            (Self::NanoUsd, PeriodKind::Day) => budget.nano_usd_per_day,
            (Self::NanoUsd, PeriodKind::Month) => budget.nano_usd_per_month,
        }
    }
}

fn each(a: Spend, b: Spend, join: fn(u64, u64) -> u64) -> Spend {
    Spend {
        tokens: join(a.tokens, b.tokens),
        nano_usd: join(a.nano_usd, b.nano_usd),
    }
}

fn plus(a: Spend, b: Spend) -> Spend {
    each(a, b, u64::saturating_add)
}

fn minus(a: Spend, b: Spend) -> Spend {
    each(a, b, u64::saturating_sub)
}

fn larger(a: Spend, b: Spend) -> Spend {
    each(a, b, u64::max)
}

#[cfg(test)]
mod tests;
