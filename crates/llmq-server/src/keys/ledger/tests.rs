use llmq_core::WallTime;
use proptest::prelude::*;

use super::super::period::periods_at;
use super::*;

/// Noon of the `day`th day of 2026.
fn periods(day: u32) -> Periods {
    const NEW_YEAR: i64 = 1_767_225_600;
    let seconds = NEW_YEAR + i64::from(day) * 86_400 + 43_200;
    let noon = WallTime::from_micros(seconds * 1_000_000);
    periods_at(noon, &jiff::tz::TimeZone::UTC)
}

fn spend(amount: u64) -> Spend {
    Spend {
        tokens: amount,
        nano_usd: amount * 3,
    }
}

fn usage(amount: u64) -> Usage {
    Usage {
        input_tokens: amount / 2,
        output_tokens: amount - amount / 2,
        ..Usage::default()
    }
}

const BUDGET: Budget = Budget {
    tokens_per_day: Some(1_000),
    tokens_per_month: Some(2_500),
    nano_usd_per_day: Some(2_700),
    nano_usd_per_month: None,
};

/// Holds, drawing first where that is needed, as the key ring does.
fn hold(ledger: &mut Ledger, most: Spend, periods: Periods) -> Result<(), Overspent> {
    loop {
        match ledger.hold(most, periods) {
            Ok(()) => return Ok(()),
            Err(Refused::Overspent(overspent)) => return Err(overspent),
            Err(Refused::NotDrawn) => {
                let lines = ledger.to_draw(most, periods);
                ledger.written(&lines);
            }
        }
    }
}

#[test]
fn a_call_that_could_go_beyond_any_budget_is_refused_with_that_budget() {
    let check = |unit, period, budget: Budget, most| {
        let mut ledger = Ledger::new(budget);
        let overspent = hold(&mut ledger, most, periods(0)).unwrap_err();
        assert_eq!((overspent.unit, overspent.period), (unit, period));
        assert_eq!(ledger.last_lines(), [], "nothing is held");
    };
    let (tokens, usd) = (SpendUnit::Tokens, SpendUnit::NanoUsd);
    let (day, month) = (PeriodKind::Day, PeriodKind::Month);
    let none = Budget::default();
    let most = Spend {
        tokens: 11,
        nano_usd: 12,
    };
    #[rustfmt::skip]
    let cases = [
        (tokens, day, Budget { tokens_per_day: Some(10), ..none }),
        (tokens, month, Budget { tokens_per_month: Some(10), ..none }),
        (usd, day, Budget { nano_usd_per_day: Some(11), ..none }),
        (usd, month, Budget { nano_usd_per_month: Some(11), ..none }),
        (tokens, day, Budget { tokens_per_day: Some(0), ..none }),
    ];
    for (unit, period, budget) in cases {
        check(unit, period, budget, most);
    }
    let mut free = Ledger::new(none);
    assert_eq!(free.hold(spend(u64::MAX / 4), periods(0)), Ok(()));
}

#[test]
fn the_last_token_can_be_spent_and_a_new_day_has_all_of_them() {
    let mut ledger = Ledger::new(BUDGET);
    hold(&mut ledger, spend(900), periods(0)).unwrap();
    ledger.settle(spend(900), &usage(890), 890 * 3, periods(0));
    assert!(hold(&mut ledger, spend(11), periods(0)).is_err());
    hold(&mut ledger, spend(10), periods(0)).unwrap();
    hold(&mut ledger, spend(900), periods(1)).unwrap();
    let month = periods(0)[1];
    assert_eq!(ledger.account(month).booked.input_tokens, 445);
}

#[test]
fn what_was_not_sent_is_free_again_and_what_may_have_been_is_not() {
    let mut ledger = Ledger::new(BUDGET);
    hold(&mut ledger, spend(600), periods(0)).unwrap();
    ledger.give_back(spend(600), periods(0));
    hold(&mut ledger, spend(600), periods(0)).unwrap();
    ledger.keep(spend(600), periods(0));
    assert!(hold(&mut ledger, spend(500), periods(0)).is_err());
    let booked = ledger.account(periods(0)[0]).booked;
    assert_eq!(booked, Booked::default(), "nobody knows what it used");
}

#[test]
fn a_call_that_cost_more_than_was_held_counts_in_full() {
    let mut ledger = Ledger::new(BUDGET);
    hold(&mut ledger, spend(10), periods(0)).unwrap();
    ledger.settle(spend(10), &usage(1_200), 0, periods(0));
    let overspent = hold(&mut ledger, spend(0), periods(0)).unwrap_err();
    assert_eq!((overspent.left, overspent.budget), (0, 1_000));
    assert!(!ledger.stale_lines(periods(0)).is_empty());
}

#[test]
fn a_clock_that_is_set_back_finds_the_day_as_it_was() {
    let mut ledger = Ledger::new(BUDGET);
    hold(&mut ledger, spend(850), periods(0)).unwrap();
    ledger.settle(spend(850), &usage(850), 0, periods(0));
    hold(&mut ledger, spend(850), periods(30)).unwrap();
    ledger.forget_old(periods(30));
    assert!(hold(&mut ledger, spend(200), periods(0)).is_err());
    ledger.written(&ledger.stale_lines(periods(50)));
    ledger.forget_old(periods(50));
    assert_eq!(ledger.account(periods(0)[0]), Account::default());
    assert_ne!(ledger.account(periods(0)[1]), Account::default());
}

/// What can happen to a key, and to the process that counts for it.
#[derive(Debug, Clone)]
enum Step {
    /// A call wants to start that can cost this.
    Start(u64),
    /// The draw that it needs is written, but the process ends before it goes on.
    StartAndCrash(u64),
    /// The nth call under way ends, having cost this many hundredths of what it could.
    Settle(usize, u64),
    Keep(usize),
    GiveBack(usize),
    /// The writing of each second, done or failed.
    Save(bool),
    Crash,
    Stop,
    NextDay,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0u64..300).prop_map(Step::Start),
        1 => (0u64..300).prop_map(Step::StartAndCrash),
        4 => (any::<usize>(), 0u64..=100).prop_map(|(call, part)| Step::Settle(call, part)),
        1 => any::<usize>().prop_map(Step::Keep),
        1 => any::<usize>().prop_map(Step::GiveBack),
        2 => any::<bool>().prop_map(Step::Save),
        1 => Just(Step::Crash),
        1 => Just(Step::Stop),
        1 => Just(Step::NextDay),
    ]
}

/// A key through the lives of several processes, beside what was really spent.
struct World {
    ledger: Ledger,
    disk: BTreeMap<Period, Line>,
    under_way: Vec<(Spend, Periods)>,
    really: BTreeMap<Period, Spend>,
    day: u32,
}

impl World {
    fn new() -> Self {
        Self {
            ledger: Ledger::new(BUDGET),
            disk: BTreeMap::new(),
            under_way: Vec::new(),
            really: BTreeMap::new(),
            day: 0,
        }
    }

    fn play(&mut self, step: &Step) {
        match *step {
            Step::Start(amount) => self.start(amount),
            Step::StartAndCrash(amount) => {
                let lines = self.ledger.to_draw(spend(amount), periods(self.day));
                if self.ledger.hold(spend(amount), periods(self.day)) == Err(Refused::NotDrawn) {
                    self.write(&lines);
                }
                self.crash();
            }
            Step::Settle(call, part) => {
                if let Some((most, periods)) = self.take(call) {
                    let cost = most.tokens * part / 100;
                    self.spend(spend(cost), periods);
                    self.ledger
                        .settle(most, &usage(cost), spend(cost).nano_usd, periods);
                }
            }
            Step::Keep(call) => {
                if let Some((most, periods)) = self.take(call) {
                    self.spend(most, periods);
                    self.ledger.keep(most, periods);
                }
            }
            Step::GiveBack(call) => {
                if let Some((most, periods)) = self.take(call) {
                    self.ledger.give_back(most, periods);
                }
            }
            Step::Save(works) => {
                let lines = self.ledger.stale_lines(periods(self.day));
                if works {
                    self.write(&lines);
                    self.ledger.written(&lines);
                }
            }
            Step::Crash => self.crash(),
            Step::Stop => {
                self.disk = self
                    .ledger
                    .last_lines()
                    .into_iter()
                    .map(|line| (line.period, line))
                    .collect();
                self.restart();
            }
            Step::NextDay => self.day += 1,
        }
    }

    fn start(&mut self, amount: u64) {
        let (most, now) = (spend(amount), periods(self.day));
        for _ in 0..2 {
            match self.ledger.hold(most, now) {
                Ok(()) => return self.under_way.push((most, now)),
                Err(Refused::Overspent(_)) => return,
                Err(Refused::NotDrawn) => {
                    let lines = self.ledger.to_draw(most, now);
                    self.write(&lines);
                    self.ledger.written(&lines);
                }
            }
        }
        panic!("what was drawn was not enough");
    }

    fn take(&mut self, call: usize) -> Option<(Spend, Periods)> {
        let count = self.under_way.len();
        (count > 0).then(|| self.under_way.swap_remove(call % count))
    }

    fn spend(&mut self, cost: Spend, periods: Periods) {
        for period in periods {
            let really = self.really.entry(period).or_default();
            *really = plus(*really, cost);
        }
    }

    /// As the store writes: no figure becomes smaller.
    fn write(&mut self, lines: &[Line]) {
        for line in lines {
            let on_disk = self.disk.entry(line.period).or_insert(*line);
            on_disk.drawn = larger(on_disk.drawn, line.drawn);
            on_disk.booked = on_disk.booked.larger(line.booked);
        }
    }

    /// The provider bills what was under way, whatever becomes of us.
    fn crash(&mut self) {
        for (most, periods) in std::mem::take(&mut self.under_way) {
            self.spend(most, periods);
        }
        self.restart();
    }

    fn restart(&mut self) {
        for (most, periods) in std::mem::take(&mut self.under_way) {
            self.spend(most, periods);
        }
        self.ledger = Ledger::new(BUDGET);
        for line in self.disk.values() {
            self.ledger.restore(*line);
        }
    }

    fn check(&self) {
        for (period, really) in &self.really {
            for unit in UNITS {
                if let Some(budget) = unit.budget(&BUDGET, period.kind) {
                    let spent = unit.of(*really);
                    assert!(
                        spent <= budget,
                        "{spent} of {budget} {unit:?} in {period:?}"
                    );
                    let on_disk = self.disk.get(period).map(|line| unit.of(line.drawn));
                    let on_disk = on_disk.unwrap_or(0);
                    assert!(spent <= on_disk, "{spent} spent, {on_disk} on disk");
                }
            }
        }
    }
}

proptest! {
    #[test]
    fn no_budget_is_exceeded_whatever_the_order_and_the_crashes(
        steps in prop::collection::vec(step(), 1..200),
    ) {
        let mut world = World::new();
        for step in &steps {
            world.play(step);
            world.check();
        }
    }

    #[test]
    fn a_crash_costs_at_most_a_hundredth_and_what_was_under_way(
        calls in prop::collection::vec((0u64..40, any::<bool>()), 1..60),
    ) {
        let (mut world, day) = (World::new(), periods(0)[0]);
        let used = |world: &World| world.ledger.account(day).used(SpendUnit::Tokens);
        let mut most_at_once = 0;
        for (amount, ends) in calls {
            world.start(amount);
            most_at_once = most_at_once.max(used(&world));
            if ends {
                world.play(&Step::Settle(0, 50));
            }
        }
        let really = world.really.get(&day).copied().unwrap_or_default().tokens;
        world.crash();
        let hundredth = 10;
        prop_assert!((really..=most_at_once + hundredth).contains(&used(&world)));
    }
}
