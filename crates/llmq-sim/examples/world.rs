//! One drawn world, whole: what it is, and what came of it.
//!
//! `cargo run --release -p llmq-sim --example world -- Mixed 404`

use llmq_sim::{Family, Scenario, run};

fn main() {
    let mut words = std::env::args().skip(1);
    let family = words.next().and_then(|name| {
        Family::ALL
            .into_iter()
            .find(|family| format!("{family:?}") == name)
    });
    let seed = words.next().and_then(|seed| seed.parse().ok());
    let (Some(family), Some(seed)) = (family, seed) else {
        eprintln!(
            "which world? a family of {:?} and a seed, such as Mixed 404",
            Family::ALL
        );
        std::process::exit(2);
    };
    let scenario = Scenario::drawn(family, seed);
    println!("{scenario:#?}");
    let report = run(&scenario);
    println!("{report:#?}");
    println!(
        "use {:.5}, beside pacing {:.5}",
        report.use_share(),
        report.use_beside_pacing()
    );
}
