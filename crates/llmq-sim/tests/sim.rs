//! The promises about limits, on drawn worlds: no refusal of ours, no idle room, nobody lost,
//! nobody starved; and each of the bugs that were seeded on purpose is caught by the same checks.
//!
//! `LLMQ_SIM_SEED=n` plays that one seed of every family; `LLMQ_TEST_SCALE` multiplies how many
//! are played.

use llmq_core::{LimitSpec, Priority};
use llmq_sim::{
    Account, Arrivals, Family, Report, Scenario, SeededBug, Sizes, Source, Spread, UpstreamPlan,
    run,
};
use llmq_testkit::{env_number, scale};

/// Runs of one family in the short form.
const RUNS: u64 = 400;

fn seeds() -> Vec<u64> {
    match env_number("LLMQ_SIM_SEED") {
        Some(seed) => vec![seed],
        None => (0..RUNS * scale()).collect(),
    }
}

/// What every run must keep: the laws, and no refusal of ours where sizes are known.
fn check(report: &Report) -> Result<(), String> {
    if let Some(fault) = report.faults.first() {
        return Err(fault.clone());
    }
    match report.refusals.first() {
        Some(refusal) => Err(format!("{} refusals of ours: {refusal}", report.ours)),
        None => Ok(()),
    }
}

/// Plays the seeds of a family; every run must pass `check`. Returns the sum of all runs and
/// the mean of their use.
fn play(family: Family, check: impl Fn(&Report) -> Result<(), String>) -> (Report, f64) {
    let mut all = Report::default();
    let mut used = 0.0;
    let seeds = seeds();
    for seed in &seeds {
        let scenario = Scenario::drawn(family, *seed);
        let report = run(&scenario);
        if let Err(what) = check(&report) {
            panic!("LLMQ_SIM_SEED={seed} ({family:?}): {what}\n{scenario:#?}");
        }
        used += report.use_beside_pacing();
        all.add(&report);
    }
    #[expect(clippy::cast_precision_loss, reason = "a count of runs")]
    let mean = used / seeds.len() as f64;
    println!(
        "{family:?}: {} runs, {} calls sent, {} refused by us, {} by others; use {:.5} of the \
         time and {:.5} beside pacing, {mean:.5} in the mean of runs",
        seeds.len(),
        all.sent,
        all.ours,
        all.not_ours,
        all.use_share(),
        all.use_beside_pacing(),
    );
    (all, mean)
}

#[test]
fn a_steady_load_meets_no_refusal_and_leaves_no_room_idle() {
    let (all, mean) = play(Family::Steady, check);
    assert_eq!(all.ours, 0);
    assert!(
        all.use_beside_pacing() >= 0.995,
        "{}",
        all.use_beside_pacing()
    );
    assert!(mean >= 0.98, "{mean}");
}

fn laws_only(report: &Report) -> Result<(), String> {
    report.faults.first().cloned().map_or(Ok(()), Err)
}

#[test]
fn mixed_loads_keep_every_law() {
    let (all, _) = play(Family::Mixed, laws_only);
    assert!(all.ours_share() <= 0.000_01, "{}", all.ours_share());
    assert!(
        all.use_beside_pacing() >= 0.98,
        "{}",
        all.use_beside_pacing()
    );
}

/// Wrong estimates break no law. Estimates 15 % off cost fewer than one refusal in a thousand
/// calls. Room counts as room only for the largest that the next call may be, since nobody knows
/// its size; of that the goal is 98 %, and half a point to a point of it is missed: where
/// failures leave it open what was counted, how the provider counts is learned slowly.
#[test]
fn wrong_estimates_break_no_law_and_seldom_meet_a_refusal() {
    for (family, most, least) in [(Family::Off15, 0.001, 0.965), (Family::Off30, 0.001, 0.955)] {
        let (all, _) = play(family, laws_only);
        assert!(all.ours_share() <= most, "{}", all.ours_share());
        let used = all.use_beside_pacing();
        assert!(used >= least, "{used}");
    }
}

/// On a busy machine the dispatcher hears late of what was written and answered. What it dates late
/// for that stands idle, and a word on calls that it does not know of yet seems to tell of others.
#[test]
fn being_told_late_breaks_no_law_and_seldom_meets_a_refusal() {
    let (all, _) = play(Family::Late, laws_only);
    assert!(all.ours_share() <= 0.000_01, "{}", all.ours_share());
    let used = all.use_beside_pacing();
    assert!(used >= 0.92, "{used}");
}

/// Room came with time and without an event, and whoever was tried next took it from those who
/// waited for it.
#[test]
fn room_that_comes_unannounced_is_not_for_the_less_urgent() {
    let shared = [1416, 1446, 1946, 2493].map(|seed| (Family::Shared, seed));
    for (family, seed) in shared.into_iter().chain([(Family::Off15, 1446)]) {
        let report = run(&Scenario::drawn(family, seed));
        assert_eq!(report.faults, Vec::<String>::new(), "{family:?} {seed}");
    }
}

fn source(arrivals: Arrivals, calls: u32, priority: Priority) -> Source {
    Source {
        queue: 0,
        tenant: 0,
        priority,
        arrivals,
        calls,
        sizes: Sizes {
            input: 200,
            output: 300,
            cap: None,
            spread: Spread::Pareto(2.2),
        },
        ttl: None,
    }
}

fn world(seed: u64, account: Account, limits: &[&str], sources: Vec<Source>) -> Scenario {
    let limits: Vec<LimitSpec> = limits
        .iter()
        .map(|text| text.parse().expect("a limit"))
        .collect();
    Scenario::new(seed, vec![UpstreamPlan::new(account, limits)], sources)
}

/// Worlds in which each bug must show, and nothing else may.
fn world_for(bug: SeededBug, seed: u64) -> Scenario {
    match bug {
        SeededBug::ForgetsDebt => {
            let file = source(Arrivals::AtOnce, 2_000, Priority::LOW);
            world(seed, Account::ToUsage, &["tokens=100k/1m"], vec![file])
        }
        SeededBug::TakesDayForMinute => {
            let file = source(Arrivals::AtOnce, 600, Priority::LOW);
            let limits = ["requests=100/1m", "requests=200/1d"];
            world(seed, Account::OnArrival, &limits, vec![file])
        }
        SeededBug::Starves => {
            let urgent = Arrivals::Random { per_second: 0.9 };
            let sources = vec![
                source(urgent, 4_000, Priority::HIGH),
                source(Arrivals::AtOnce, 200, Priority::LOW),
            ];
            world(seed, Account::OnArrival, &["requests=30/1m"], sources)
        }
        other => unreachable!("{other:?} has its world in tests/worlds"),
    }
}

#[test]
fn another_client_on_the_account_loses_nobody() {
    for seed in seeds().into_iter().take(20) {
        let report = run(&Scenario::drawn(Family::Shared, seed));
        assert_eq!(laws_only(&report), Ok(()), "LLMQ_SIM_SEED={seed}");
    }
}

#[test]
fn every_seeded_bug_is_caught_in_twenty_of_twenty_runs() {
    for bug in [
        SeededBug::ForgetsDebt,
        SeededBug::TakesDayForMinute,
        SeededBug::Starves,
    ] {
        for seed in 0..20 {
            let sound = world_for(bug, seed);
            let report = run(&sound);
            assert_eq!(
                check(&report),
                Ok(()),
                "{bug:?}, seed {seed}, without the bug"
            );
            let broken = Scenario {
                bug: Some(bug),
                ..sound
            };
            let report = run(&broken);
            assert!(check(&report).is_err(), "{bug:?}, seed {seed}, was missed");
        }
    }
}

#[test]
fn the_same_seed_is_the_same_run() {
    for seed in 0..20 {
        let scenario = Scenario::drawn(Family::Mixed, seed);
        assert_eq!(run(&scenario), run(&scenario));
    }
}
