//! How well limits are kept and used over many drawn worlds: one JSON object a family.
//!
//! `cargo run --release -p llmq-sim --example limits -- 2500` plays that many of each family,
//! and `-- 2500 Shared` of that one.
//! Unlike the tests it does not stop at a world that breaks a law: it counts them, and names the
//! first seeds.

use llmq_sim::{Family, Report, Scenario, run};

/// Seeds that are named.
const NAMED: usize = 20;

fn main() {
    let runs: u64 = match std::env::args().nth(1).map(|text| text.parse()) {
        None => 10,
        Some(Ok(runs)) => runs,
        Some(Err(_)) => {
            eprintln!("how many worlds of each family? such as 2500");
            std::process::exit(2);
        }
    };
    let only = std::env::args().nth(2);
    for family in Family::ALL {
        let name = format!("{family:?}");
        if only.as_ref().is_none_or(|only| *only == name) {
            play(family, runs);
        }
    }
}

fn play(family: Family, runs: u64) {
    let mut all = Report::default();
    let mut broken = 0_u64;
    let mut seeds = Vec::new();
    // The worlds with most refusals of ours: how many, and the seed.
    let mut refused: Vec<(u64, u64)> = Vec::new();
    // Worlds in which a window met more than one refusal for what others had used.
    let mut crowded = 0_u64;
    // Those where all of them were sent when the provider had said something.
    let mut crowded_told = 0_u64;
    // Those where one of them was of a call that was started when the first was known.
    let mut crowded_heard = 0_u64;
    let mut mean = 0.0;
    for seed in 0..runs {
        let report = run(&Scenario::drawn(family, seed));
        if !report.faults.is_empty() {
            broken += 1;
            seeds.push(seed);
            seeds.truncate(NAMED);
        }
        if report.ours > 0 {
            refused.push((report.ours, seed));
            refused.sort_unstable_by(|a, b| b.cmp(a));
            refused.truncate(NAMED);
        }
        crowded += u64::from(report.not_ours_in_a_window > 1);
        crowded_told += u64::from(report.told_in_a_window > 1);
        crowded_heard += u64::from(report.heard_in_a_window > 0);
        mean += report.use_beside_pacing();
        all.add(&report);
    }
    #[expect(clippy::cast_precision_loss, reason = "a count of runs")]
    let mean = mean / runs.max(1) as f64;
    println!(
        r#"{{"family":"{family:?}","runs":{runs},"sent":{},"ours":{},"not_ours":{},"crowded":{crowded},"crowded_told":{crowded_told},"crowded_heard":{crowded_heard},"literal":{:.5},"used":{:.5},"mean":{mean:.5},"broken":{broken},"seeds":{seeds:?},"refused":{}}}"#,
        all.sent,
        all.ours,
        all.not_ours,
        all.use_share(),
        all.use_beside_pacing(),
        format!("{refused:?}").replace('(', "[").replace(')', "]"),
    );
}
