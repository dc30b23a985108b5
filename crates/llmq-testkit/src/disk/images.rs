//! What a power cut leaves of files.

use std::path::{Path, PathBuf};

/// A disk writes so many bytes at once, or none of them.
pub(super) const SECTOR_BYTES: usize = 512;

/// How many images there are of one cut: of what was not synced everything lost, everything kept,
/// three that keep some writes, three that keep some sectors.
pub const IMAGES_A_CUT: usize = 8;

/// What happened to files, in order.
#[derive(Debug, Clone, Default)]
pub struct Log {
    pub(super) names: Vec<PathBuf>,
    pub(super) ops: Vec<Op>,
}

#[derive(Debug, Clone)]
pub(super) enum Op {
    /// A file was opened that holds this already.
    Found { file: usize, content: Vec<u8> },
    /// A file was opened that was not there.
    Made { file: usize },
    /// It was changed.
    Change { file: usize, change: Change },
    /// All of it so far survives.
    Sync { file: usize },
    /// A sync failed: what was to be synced never will be.
    Dropped { file: usize },
    /// Its name was removed; `synced`: for good.
    Deleted { file: usize, synced: bool },
}

#[derive(Debug, Clone)]
pub(super) enum Change {
    Write { at: u64, bytes: Vec<u8> },
    Cut { length: u64 },
}

static EMPTIED: Change = Change::Cut { length: 0 };

/// What a power cut left of the files, by the last part of their names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    files: Vec<(PathBuf, Vec<u8>)>,
}

impl Image {
    /// Writes the files into a directory, in the place of what it held under their names.
    ///
    /// # Panics
    ///
    /// When they cannot be written.
    pub fn write(&self, directory: &Path) {
        for entry in std::fs::read_dir(directory).expect("the directory is there") {
            let path = entry.expect("it can be read").path();
            std::fs::remove_file(path).expect("it holds files of ours alone");
        }
        for (name, content) in &self.files {
            std::fs::write(directory.join(name), content).expect("there is room");
        }
    }
}

impl Log {
    /// Before which operations there was a sync to come: where a power cut hurts most.
    #[must_use]
    pub fn sync_points(&self) -> Vec<usize> {
        let is_sync = |op: &Op| matches!(op, Op::Sync { .. });
        let points = self.ops.iter().enumerate();
        points
            .filter(|(_, op)| is_sync(op))
            .map(|(at, _)| at)
            .collect()
    }

    /// How many operations there were.
    #[must_use]
    pub fn len(&self) -> usize {
        self.ops.len()
    }

    /// Whether nothing has happened.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ops.is_empty()
    }

    /// Calls `look` with the images of a power cut after so many operations, for each of
    /// `positions`, which ascend: the position, how many changes were not synced, and
    /// [`IMAGES_A_CUT`] images.
    pub fn power_cuts(
        &self,
        positions: &[usize],
        random: &mut fastrand::Rng,
        mut look: impl FnMut(usize, usize, Vec<Image>),
    ) {
        let mut platters = Platters::new(&self.names);
        let mut done = 0;
        for position in positions.iter().copied() {
            for op in &self.ops[done..position] {
                platters.take(op);
            }
            done = position;
            let kept = [Kept::Nothing, Kept::Everything];
            let some = [Kept::SomeWrites; 3]
                .into_iter()
                .chain([Kept::SomeSectors; 3]);
            let images = kept.into_iter().chain(some);
            let images = images.map(|kept| platters.image(kept, random)).collect();
            look(position, platters.unsynced(), images);
        }
    }

    /// One image of a power cut after so many operations, of the eight kinds.
    #[must_use]
    pub fn power_cut(&self, position: usize, random: &mut fastrand::Rng) -> Image {
        let mut images = Vec::new();
        self.power_cuts(&[position], random, |_, _, found| images = found);
        images.swap_remove(random.usize(..images.len()))
    }
}

/// What of that which was not synced a cut leaves.
#[derive(Debug, Clone, Copy)]
enum Kept {
    Nothing,
    Everything,
    SomeWrites,
    SomeSectors,
}

/// The files as they are on the disk, and what is not there yet.
struct Platters<'a> {
    files: Vec<File<'a>>,
}

struct File<'a> {
    name: &'a Path,
    /// What survives in any case; none of a file whose name may be gone.
    synced: Option<Vec<u8>>,
    /// Whether it has a name at all.
    is_there: bool,
    /// Whether it was made and not synced since.
    is_new: bool,
    pending: Vec<&'a Change>,
}

impl<'a> Platters<'a> {
    fn new(names: &'a [PathBuf]) -> Self {
        let file = |name: &'a PathBuf| File {
            name,
            synced: None,
            is_there: false,
            is_new: false,
            pending: Vec::new(),
        };
        Self {
            files: names.iter().map(file).collect(),
        }
    }

    fn take(&mut self, op: &'a Op) {
        match op {
            Op::Found { file, content } => {
                let file = &mut self.files[*file];
                file.synced = Some(content.clone());
                file.is_there = true;
            }
            Op::Made { file } => {
                // A name that was removed and not synced may come back with what it held, so that
                // stays in `synced` until the new one is.
                let file = &mut self.files[*file];
                file.is_there = true;
                file.is_new = true;
                file.pending.clear();
                if file.synced.is_some() {
                    file.pending.push(&EMPTIED);
                }
            }
            Op::Change { file, change } => self.files[*file].pending.push(change),
            Op::Sync { file } => {
                let file = &mut self.files[*file];
                let mut content = file.synced.take().unwrap_or_default();
                for change in file.pending.drain(..) {
                    change.apply(&mut content);
                }
                file.synced = Some(content);
                if std::mem::take(&mut file.is_new) {
                    self.sync_names();
                }
            }
            Op::Dropped { file } => self.files[*file].pending.clear(),
            Op::Deleted { file, synced } => {
                let file = &mut self.files[*file];
                file.is_there = false;
                file.pending.clear();
                if *synced {
                    file.synced = None;
                }
            }
        }
    }

    /// With the first sync of a file that it made SQLite syncs the directory: names that were
    /// removed do not come back.
    fn sync_names(&mut self) {
        for file in &mut self.files {
            if file.is_there {
                file.synced.get_or_insert_default();
            } else {
                file.synced = None;
            }
        }
    }

    fn unsynced(&self) -> usize {
        self.files.iter().map(|file| file.pending.len()).sum()
    }

    fn image(&self, kept: Kept, random: &mut fastrand::Rng) -> Image {
        let left = self.files.iter().filter_map(|file| {
            let content = file.after(kept, random)?;
            Some((PathBuf::from(file.name.file_name()?), content))
        });
        Image {
            files: left.collect(),
        }
    }
}

impl File<'_> {
    /// What is left of it, if anything.
    fn after(&self, kept: Kept, random: &mut fastrand::Rng) -> Option<Vec<u8>> {
        let is_lucky = match kept {
            Kept::Nothing => false,
            Kept::Everything => true,
            Kept::SomeWrites | Kept::SomeSectors => random.bool(),
        };
        if !self.is_there {
            // Its removal may be undone.
            return self.synced.clone().filter(|_| !is_lucky);
        }
        if self.synced.is_none() && !is_lucky {
            return None;
        }
        let mut content = self.synced.clone().unwrap_or_default();
        for change in &self.pending {
            match kept {
                Kept::Nothing => {}
                Kept::Everything => change.apply(&mut content),
                Kept::SomeWrites if random.bool() => change.apply(&mut content),
                Kept::SomeWrites => {}
                Kept::SomeSectors => change.apply_some(&mut content, random),
            }
        }
        Some(content)
    }
}

impl Change {
    fn apply(&self, content: &mut Vec<u8>) {
        match self {
            Self::Write { at, bytes } => put(content, index(*at), bytes),
            Self::Cut { length } => content.resize(index(*length), 0),
        }
    }

    /// Each sector for itself.
    fn apply_some(&self, content: &mut Vec<u8>, random: &mut fastrand::Rng) {
        let Self::Write { at, bytes } = self else {
            if random.bool() {
                self.apply(content);
            }
            return;
        };
        let (mut at, mut bytes) = (index(*at), bytes.as_slice());
        while !bytes.is_empty() {
            let to_border = SECTOR_BYTES - at % SECTOR_BYTES;
            let (sector, rest) = bytes.split_at(to_border.min(bytes.len()));
            if random.bool() {
                put(content, at, sector);
            }
            at += sector.len();
            bytes = rest;
        }
    }
}

fn put(content: &mut Vec<u8>, at: usize, bytes: &[u8]) {
    let end = at + bytes.len();
    if content.len() < end {
        content.resize(end, 0);
    }
    content[at..end].copy_from_slice(bytes);
}

fn index(at: u64) -> usize {
    usize::try_from(at).expect("a test's files fit into memory")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log(ops: Vec<Op>) -> Log {
        Log {
            names: vec![PathBuf::from("/d/x")],
            ops,
        }
    }

    fn write(at: u64, bytes: &[u8]) -> Op {
        let bytes = bytes.to_vec();
        Op::Change {
            file: 0,
            change: Change::Write { at, bytes },
        }
    }

    /// What the cuts at the end can leave of the one file.
    fn left(log: &Log) -> Vec<Option<Vec<u8>>> {
        let mut left = Vec::new();
        let mut random = fastrand::Rng::with_seed(1);
        log.power_cuts(&[log.len()], &mut random, |_, _, images| {
            assert_eq!(images.len(), IMAGES_A_CUT);
            for mut image in images {
                left.push(image.files.pop().map(|(_, content)| content));
            }
        });
        left
    }

    #[test]
    fn what_was_synced_stays_and_the_rest_may() {
        let made = Op::Made { file: 0 };
        let sync = Op::Sync { file: 0 };
        let left = left(&log(vec![made, write(0, b"ab"), sync, write(1, b"XYZ")]));
        assert_eq!(left[0].as_deref(), Some(b"ab".as_slice()));
        assert_eq!(left[1].as_deref(), Some(b"aXYZ".as_slice()));
        for some in &left[2..] {
            let some = some.as_deref();
            assert!(some == Some(b"ab") || some == Some(b"aXYZ"), "{some:?}");
        }
    }

    #[test]
    fn sectors_of_one_write_part_at_their_borders() {
        let made = Op::Made { file: 0 };
        let sync = Op::Sync { file: 0 };
        let old = vec![b'o'; 2048];
        let new = vec![b'n'; 1024];
        let log = log(vec![made, write(0, &old), sync, write(500, &new)]);
        let mut kinds = std::collections::BTreeSet::new();
        let mut random = fastrand::Rng::with_seed(1);
        for _ in 0..50 {
            log.power_cuts(&[log.len()], &mut random, |_, _, images| {
                for image in &images[5..] {
                    let content = &image.files[0].1;
                    let at = |at: usize| content[at] == b'n';
                    for part in [500..512, 512..1024, 1024..1524] {
                        assert!(part.clone().all(|n| at(n) == at(part.start)));
                    }
                    kinds.insert([at(500), at(512), at(1024)]);
                }
            });
        }
        assert_eq!(kinds.len(), 8);
    }

    #[test]
    fn a_sync_that_failed_keeps_nothing() {
        let ops = vec![
            Op::Made { file: 0 },
            Op::Sync { file: 0 },
            write(0, b"gone"),
            Op::Dropped { file: 0 },
            Op::Sync { file: 0 },
        ];
        assert!(left(&log(ops)).iter().all(|left| left == &Some(Vec::new())));
    }

    #[test]
    fn a_name_that_was_not_synced_may_be_missing_or_come_back() {
        let left_of_new = left(&log(vec![Op::Made { file: 0 }, write(0, b"a")]));
        assert_eq!(
            (&left_of_new[0], &left_of_new[1]),
            (&None, &Some(b"a".to_vec()))
        );
        let deleted = |synced| {
            let ops = vec![
                Op::Made { file: 0 },
                write(0, b"a"),
                Op::Sync { file: 0 },
                Op::Deleted { file: 0, synced },
            ];
            left(&log(ops))
        };
        assert_eq!(deleted(false)[0], Some(b"a".to_vec()));
        assert_eq!(deleted(false)[1], None);
        assert!(deleted(true).iter().all(Option::is_none));
    }
}
