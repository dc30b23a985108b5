//! The power is cut at every sync point of one life.

use std::collections::BTreeSet;
use std::path::Path;

use llmq_testkit::disk::{Disk, Image};
use llmq_testkit::scratch;

use crate::book::Book;
use crate::caller::{Caller, beginning, open};
use crate::{runtime, seeds};

/// What is done in a life, between and behind a clean stop.
const CALLS: usize = 24;

/// One life of some callers, from the making of the store to its end.
async fn life(disk: &Disk, path: &Path, seed: u64) -> Book {
    let mut caller = Caller::new(disk, seed);
    for _ in 0..2 {
        let store = open(disk, path, caller.now).unwrap();
        caller.begin(&store).await;
        caller.calls(&store, CALLS).await;
        store.close();
    }
    let store = open(disk, path, caller.now).unwrap();
    caller.begin(&store).await;
    caller.bulk(&store).await;
    caller.calls(&store, 6).await;
    store.close();
    caller.book.into_inner()
}

/// What was tried, and what broke.
#[derive(Debug, Default)]
struct Tried {
    points: usize,
    images: usize,
    /// Cuts while a call was not answered and something was not synced.
    hits: usize,
    broken: Vec<String>,
}

/// Cuts the power of a life at every sync point, and at every answer.
fn cut(disk: &Disk, book: &Book, seed: u64) -> Tried {
    let log = disk.log();
    let mut points: BTreeSet<usize> = log.sync_points().into_iter().collect();
    points.extend(book.calls.iter().filter_map(|(_, answered)| *answered));
    points.insert(log.len());
    let points: Vec<usize> = points.into_iter().collect();
    let (runtime, directory) = (runtime(), scratch());
    let mut random = fastrand::Rng::with_seed(seed);
    let mut tried = Tried::default();
    log.power_cuts(&points, &mut random, |at, unsynced, images| {
        tried.points += 1;
        tried.hits += usize::from(unsynced > 0 && book.in_flight(at) > 0);
        let mut seen: Vec<Image> = Vec::new();
        for image in images {
            // Where little was not synced, some are the same.
            if seen.contains(&image) {
                continue;
            }
            image.write(directory.path());
            tried.images += 1;
            let path = directory.path().join("llmq.db");
            let broken = runtime.block_on(book.broken(&path, at, beginning()));
            let broken = broken.into_iter();
            tried
                .broken
                .extend(broken.map(|what| format!("cut {at}: {what}")));
            seen.push(image);
        }
    });
    tried
}

#[test]
fn what_was_acknowledged_outlives_a_power_cut_at_every_sync_point() {
    for seed in seeds(1) {
        let (disk, directory) = (Disk::new(), scratch());
        let path = directory.path().join("llmq.db");
        let book = runtime().block_on(life(&disk, &path, seed));
        assert_eq!(book.errors, [] as [String; 0], "seed {seed}");
        let tried = cut(&disk, &book, seed);
        assert_eq!(tried.broken, [] as [String; 0], "LLMQ_DISK_SEED={seed}");
        // A run whose cuts met nothing proves nothing.
        assert!(tried.hits > 30, "{tried:?}");
        println!(
            "LLMQ_DISK_SEED={seed}: {} points, {} of them with calls in flight, {} images",
            tried.points, tried.hits, tried.images
        );
    }
}

/// The bug that the test above is there for: an answer before what it says is on the disk, as
/// with `synchronous = OFF`.
#[test]
fn answers_before_the_sync_are_caught() {
    for seed in 0..20 {
        let (disk, directory) = (Disk::new(), scratch());
        disk.lies();
        let path = directory.path().join("llmq.db");
        let book = runtime().block_on(async {
            let mut caller = Caller::new(&disk, seed);
            let store = open(&disk, &path, caller.now).unwrap();
            caller.calls(&store, 6).await;
            store.close();
            caller.book.into_inner()
        });
        let tried = cut(&disk, &book, seed);
        let is_lost = |what: &String| what.contains("accepted job is lost");
        assert!(tried.broken.iter().any(is_lost), "seed {seed}: {tried:?}");
    }
}
