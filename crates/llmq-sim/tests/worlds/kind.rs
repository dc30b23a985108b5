//! What the checks of all kinds share.

use std::ops::Range;

use llmq_sim::{Family, Report, Scenario, SeededBug, run};
use llmq_testkit::{env_number, scale};

/// A kind of worlds, and what must hold in them.
pub(crate) struct Kind {
    /// Where they are drawn.
    pub(crate) family: Family,
    /// What holds in each.
    pub(crate) each: fn(&Scenario, &Report) -> Result<(), String>,
    /// What holds for many together.
    pub(crate) all: fn(&Sum) -> Result<(), String>,
}

/// Many worlds together.
#[derive(Default)]
pub(crate) struct Sum {
    /// How many.
    pub(crate) worlds: u32,
    /// All of them.
    pub(crate) report: Report,
    waiting_s: f64,
    idle_s: f64,
}

/// A world counts by the time in which work waited, up to this long: one whose windows are long
/// would outweigh all others.
const WEIGHT_MAX_S: f64 = 60.0;

impl Sum {
    fn add(&mut self, report: &Report) {
        let waiting_s = report.waiting.as_secs_f64().min(WEIGHT_MAX_S);
        self.worlds += 1;
        self.waiting_s += waiting_s;
        self.idle_s += waiting_s * (1.0 - report.use_beside_pacing());
        self.report.add(report);
    }

    /// The share of the room that was used while work waited.
    pub(crate) fn used(&self) -> f64 {
        1.0 - self.idle_s / self.waiting_s.max(f64::MIN_POSITIVE)
    }
}

/// Worlds of one kind in the short form.
const RUNS: u64 = 100;
/// So many worlds in a row must show a seeded bug.
const BATCH: u64 = 15;

/// What was found wrong, and in which worlds.
#[derive(Debug)]
struct Wrong {
    seeds: Range<u64>,
    what: String,
}

impl Kind {
    /// Plays the short form, or the one seed that is asked for.
    pub(crate) fn holds(&self) {
        let seeds = match env_number("LLMQ_SIM_SEED") {
            Some(seed) => seed..seed + 1,
            None => 0..RUNS * scale(),
        };
        if let Err(wrong) = self.play(seeds, None) {
            panic!("{}", wrong.what);
        }
    }

    /// The bug is caught in twenty of twenty runs, and what catches it holds without it.
    pub(crate) fn catches(&self, bug: SeededBug) {
        for number in 0..20 {
            let seeds = number * BATCH..(number + 1) * BATCH;
            match self.play(seeds, Some(bug)) {
                Ok(()) => panic!("{bug:?} was missed in run {number}"),
                Err(wrong) => {
                    let sound = self.play(wrong.seeds, None);
                    assert!(sound.is_ok(), "without {bug:?}: {sound:?}");
                }
            }
        }
    }

    fn play(&self, seeds: Range<u64>, bug: Option<SeededBug>) -> Result<(), Wrong> {
        let mut sum = Sum::default();
        for seed in seeds.clone() {
            let scenario = Scenario {
                bug,
                ..Scenario::drawn(self.family, seed)
            };
            let report = run(&scenario);
            (self.each)(&scenario, &report).map_err(|what| Wrong {
                seeds: seed..seed + 1,
                what: format!(
                    "LLMQ_SIM_SEED={seed} ({:?}): {what}\n{scenario:#?}",
                    self.family
                ),
            })?;
            sum.add(&report);
        }
        let (all, used) = (&sum.report, sum.used());
        println!(
            "{:?}: {} worlds, {} calls sent, {} refused by us, {} by others; use {used:.5} \
             beside pacing",
            self.family, sum.worlds, all.sent, all.ours, all.not_ours,
        );
        // One world alone may be all edges.
        if sum.worlds > 1 {
            (self.all)(&sum).map_err(|what| Wrong { seeds, what })?;
        }
        Ok(())
    }
}

/// The laws that are checked after each step, and that no call is lost: each has come to exactly
/// one end.
pub(crate) fn lawful(report: &Report) -> Result<(), String> {
    if let Some(fault) = report.faults.first() {
        return Err(fault.clone());
    }
    let ends = report.completed + report.failed + report.expired + report.too_large;
    if ends + report.dropped != report.calls {
        return Err(format!("{} calls have {ends} ends", report.calls));
    }
    Ok(())
}

/// The same, and no refusal of ours.
pub(crate) fn unrefused(report: &Report) -> Result<(), String> {
    lawful(report)?;
    match report.refusals.first() {
        Some(refusal) => Err(format!("{} refusals of ours: {refusal}", report.ours)),
        None => Ok(()),
    }
}

/// At least 98 % of the room is used while work waits; in a few worlds, where one of them may
/// be all edges, 95 %.
pub(crate) fn well_used(sum: &Sum) -> Result<(), String> {
    let (used, least) = (sum.used(), if sum.worlds > 50 { 0.98 } else { 0.95 });
    if used < least {
        return Err(format!("{used:.4} of the room is used"));
    }
    Ok(())
}
