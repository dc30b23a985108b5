//! Every sector of a store's file and of its log in its turn: a bit of it is flipped, or the file
//! ends there.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use llmq_store::{JobId, Reads as _};
use llmq_store_sqlite::check;

use crate::filled::{Said, fill_with, killed, log_of, open, said, whole};

/// What a disk writes or loses at once.
const SECTOR: usize = 512;
/// The page size of SQLite.
const PAGE: usize = 4096;

/// A store's file, its log if it has one, and all that it says.
struct Whole {
    file: Vec<u8>,
    log: Option<Vec<u8>>,
    ids: Vec<JobId>,
    all: Said,
}

/// What became of a damaged copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    /// It cannot be opened, and `check` says that something is wrong.
    Refused,
    /// `check` says so.
    Found,
    /// Nothing of what it says was hit.
    Sound,
}

impl Whole {
    /// Of a store that was closed.
    async fn closed(directory: &Path) -> Self {
        let (path, ids, all) = whole(directory).await;
        Self {
            file: std::fs::read(&path).unwrap(),
            log: None,
            ids,
            all,
        }
    }

    /// Of a small store whose process was killed.
    async fn killed(directory: &Path) -> Self {
        let path = directory.join("whole.db");
        let store = open(&path).unwrap();
        let ids = fill_with(&store, 3, 1).await;
        let all = said(&store, &ids).await.unwrap();
        let copy = directory.join("killed.db");
        killed(&path, &copy);
        let whole = Self {
            file: std::fs::read(&copy).unwrap(),
            log: Some(std::fs::read(log_of(&copy)).unwrap()),
            ids,
            all,
        };
        store.close();
        whole
    }

    /// Writes a copy, for `judge`.
    fn write(&self, to: &Path, file: &[u8], log: Option<&[u8]>) {
        std::fs::write(to, file).unwrap();
        for end in ["-wal", "-shm"] {
            let _ = std::fs::remove_file(PathBuf::from(format!("{}{end}", to.display())));
        }
        if let Some(log) = log {
            std::fs::write(log_of(to), log).unwrap();
        }
    }

    /// Holds a damaged copy against what was written: it may refuse, and must not say something
    /// else unseen.
    async fn judge(&self, damaged: &Path, where_: &str) -> Verdict {
        let sound = check(damaged, true).is_ok_and(|checked| checked.is_sound());
        let Ok(store) = open(damaged) else {
            assert!(
                !sound,
                "{where_}: it cannot be opened and check finds nothing"
            );
            return Verdict::Refused;
        };
        let sound = sound && store.opened().findings.is_empty();
        match said(&store, &self.ids).await {
            Ok(now) => assert!(now == self.all || !sound, "{where_} changed what is said"),
            Err(error) => assert!(!sound, "{where_}: {error}, and check finds nothing"),
        }
        for (id, (_, body, answer)) in self.ids.iter().zip(&self.all.0) {
            if let Ok(read @ Some(_)) = store.body(*id).await {
                assert_eq!(read, *body, "{where_} changed a request");
            }
            if let Ok(read @ Some(_)) = store.answer(*id).await {
                assert_eq!(read, *answer, "{where_} changed an answer");
            }
        }
        store.close();
        if sound {
            Verdict::Sound
        } else {
            Verdict::Found
        }
    }
}

/// `bytes` with one bit flipped: of another place in each sector, so that heads, cells and free
/// room all have their turn.
fn flipped(bytes: &[u8], sector: usize) -> (usize, Vec<u8>) {
    let at = (sector + sector / SECTOR * 37 % SECTOR).min(bytes.len() - 1);
    let mut copy = bytes.to_vec();
    copy[at] ^= 1 << (sector / SECTOR % 8);
    (at, copy)
}

/// Judges a copy for every sector of `length` bytes, on all processors: `damage` writes it and
/// says where it was hit. What became of them.
fn each_sector(
    whole: &Whole,
    length: usize,
    damage: impl Fn(usize, &Path) -> String + Sync,
) -> Vec<Verdict> {
    let next = AtomicUsize::new(0);
    let (next, damage) = (&next, &damage);
    let worker = || {
        let directory = llmq_testkit::scratch();
        let path = directory.path().join("damaged.db");
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        let mut verdicts = Vec::new();
        loop {
            let sector = next.fetch_add(SECTOR, Ordering::Relaxed);
            if sector >= length {
                return verdicts;
            }
            let where_ = damage(sector, &path);
            verdicts.push(runtime.block_on(whole.judge(&path, &where_)));
        }
    };
    let workers = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..workers).map(|_| scope.spawn(worker)).collect();
        let ended = workers.into_iter().map(|worker| worker.join());
        ended.flat_map(|verdicts| verdicts.unwrap()).collect()
    })
}

fn count(verdicts: &[Verdict], which: Verdict) -> usize {
    verdicts.iter().filter(|verdict| **verdict == which).count()
}

/// The kinds of pages that a file has: by their first bytes ("B-tree Pages",
/// sqlite.org/fileformat2.html), and rests of long rows.
fn kinds(path: &Path, file: &[u8]) -> BTreeSet<&'static str> {
    let connection = rusqlite::Connection::open(path).unwrap();
    let mut query = connection
        .prepare("SELECT pageno, pagetype = 'overflow' FROM dbstat")
        .unwrap();
    let pages = query.query_map([], |row| Ok((row.get::<_, u32>(0)?, row.get(1)?)));
    let pages = pages.unwrap().map(Result::unwrap);
    let mut kinds: BTreeSet<_> = pages
        .map(|(number, is_rest)| {
            let at = (number as usize - 1) * PAGE;
            // The first page begins with the file's own head.
            match file[if at == 0 { 100 } else { at }] {
                _ if is_rest => "rest of a row",
                2 => "index, inner",
                5 => "table, inner",
                10 => "index, leaf",
                13 => "table, leaf",
                kind => panic!("page {number} is of kind {kind}"),
            }
        })
        .collect();
    let free: u32 = connection
        .pragma_query_value(None, "freelist_count", |row| row.get(0))
        .unwrap();
    kinds.extend((free > 0).then_some("list of free pages"));
    kinds.extend((free > 1).then_some("free page"));
    kinds
}

#[tokio::test]
async fn no_bit_changes_what_a_store_says_unseen() {
    let directory = llmq_testkit::scratch();
    let whole = Whole::closed(directory.path()).await;
    let kinds = kinds(&directory.path().join("whole.db"), &whole.file);
    assert_eq!(kinds.len(), 7, "a kind of page is missing: {kinds:?}");
    let verdicts = each_sector(&whole, whole.file.len(), |sector, path| {
        let (at, copy) = flipped(&whole.file, sector);
        whole.write(path, &copy, None);
        format!("byte {at}")
    });
    let (found, refused) = (
        count(&verdicts, Verdict::Found),
        count(&verdicts, Verdict::Refused),
    );
    assert!(
        found > 50 && refused > 0,
        "{found} found, {refused} refused: too little was hit"
    );
}

#[tokio::test]
async fn a_file_that_is_cut_off_is_refused_or_found() {
    let directory = llmq_testkit::scratch();
    let whole = Whole::closed(directory.path()).await;
    let verdicts = each_sector(&whole, whole.file.len(), |sector, path| {
        let length = sector.max(1);
        whole.write(path, &whole.file[..length], None);
        format!("{length} bytes")
    });
    // Nobody misses a part of the last page, which is free.
    let sound = count(&verdicts, Verdict::Sound);
    assert!(sound < PAGE / SECTOR, "{sound} parts pass for the whole");
}

#[tokio::test]
async fn no_bit_of_the_log_changes_what_a_store_says_unseen() {
    let directory = llmq_testkit::scratch();
    let whole = Whole::killed(directory.path()).await;
    let log = whole.log.as_deref().unwrap();
    let verdicts = each_sector(&whole, log.len(), |sector, path| {
        let (at, copy) = flipped(log, sector);
        whole.write(path, &whole.file, Some(&copy));
        format!("byte {at} of the log")
    });
    // The bits of every frame are summed.
    assert_eq!(count(&verdicts, Verdict::Sound), 0);
    let refused = count(&verdicts, Verdict::Refused);
    assert!(refused > 0, "its head was not hit");
}
