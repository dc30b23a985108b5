//! The embedded store on a disk that loses power, gets full or breaks.
//!
//! `book` holds what callers were told, and holds a file against it; `caller` draws what they do.
//! `cuts` cuts the power at every sync point of one life, `lives` cuts it at random over and over,
//! `faults` makes every write fail in its turn. `LLMQ_DISK_SEED=n` plays one seed again;
//! `LLMQ_TEST_SCALE` multiplies the seeds.
#![expect(clippy::unwrap_used, reason = "tests and their helpers")]

mod book;
mod caller;

mod cuts;
mod faults;
mod lives;

/// A runtime of one thread: callers take turns as the seed has it.
fn runtime() -> tokio::runtime::Runtime {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder.build().unwrap()
}

/// The seeds of a run, or the one of `LLMQ_DISK_SEED`.
fn seeds(count: u64) -> std::ops::Range<u64> {
    match llmq_testkit::env_number("LLMQ_DISK_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..count * llmq_testkit::scale(),
    }
}
