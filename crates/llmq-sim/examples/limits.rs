//! How well limits are kept and used over many drawn worlds: one JSON object a family.
//!
//! `cargo run --release -p llmq-sim --example limits -- 2500` plays that many of each family.
//! Unlike the tests it does not stop at a world that breaks a law: it counts them, and names the
//! first seeds.

use llmq_sim::{Family, Report, Scenario, run};

const FAMILIES: [Family; 4] = [Family::Steady, Family::Mixed, Family::Off15, Family::Off30];
/// Seeds that are named.
const NAMED: usize = 5;

fn main() {
    let runs: u64 = match std::env::args().nth(1).map(|text| text.parse()) {
        None => 10,
        Some(Ok(runs)) => runs,
        Some(Err(_)) => {
            eprintln!("how many worlds of each family? such as 2500");
            std::process::exit(2);
        }
    };
    for family in FAMILIES {
        play(family, runs);
    }
}

fn play(family: Family, runs: u64) {
    let mut all = Report::default();
    let mut broken = 0_u64;
    let mut seeds = Vec::new();
    for seed in 0..runs {
        let report = run(&Scenario::drawn(family, seed));
        if !report.faults.is_empty() {
            broken += 1;
            seeds.push(seed);
            seeds.truncate(NAMED);
        }
        all.add(&report);
    }
    println!(
        r#"{{"family":"{family:?}","runs":{runs},"sent":{},"ours":{},"used":{:.5},"broken":{broken},"seeds":{seeds:?}}}"#,
        all.sent,
        all.ours,
        all.use_beside_pacing(),
    );
}
