//! The lines of a stored file, one after the other.

use bytes::{Bytes, BytesMut};
use llmq_store::{FileId, Store, StoreError, StoredFile};

/// Reads a file chunk by chunk and hands out its lines. A line that is blank is passed over, and
/// counted.
pub(super) struct Lines<'a> {
    store: &'a dyn Store,
    file: FileId,
    chunk: u32,
    /// How many bytes of it are still to come.
    rest: u64,
    at_end: bool,
    read: BytesMut,
    /// No newline stands in front of this.
    looked_at: usize,
    number: u32,
    max: usize,
}

/// What comes next.
pub(super) enum Next {
    /// A line, and its number from 1 on.
    Line(u32, Bytes),
    /// A line longer than any call may be.
    TooLong(u32),
    /// The file was removed while it was read: what was still to come is not known.
    Gone,
    End,
}

impl<'a> Lines<'a> {
    /// No line may be longer than `max` bytes.
    pub(super) fn new(store: &'a dyn Store, file: &StoredFile, max: usize) -> Self {
        Self {
            store,
            file: file.id,
            chunk: 0,
            rest: file.bytes,
            at_end: false,
            read: BytesMut::new(),
            looked_at: 0,
            number: 0,
            max,
        }
    }

    pub(super) async fn next(&mut self) -> Result<Next, StoreError> {
        loop {
            let line = match memchr::memchr(b'\n', &self.read[self.looked_at..]) {
                Some(at) => self.read.split_to(self.looked_at + at + 1),
                None if self.at_end && self.read.is_empty() => return Ok(Next::End),
                None if self.at_end => self.read.split(),
                None if self.read.len() > self.max => {
                    self.number += 1;
                    return Ok(Next::TooLong(self.number));
                }
                None => {
                    self.looked_at = self.read.len();
                    match self.store.read_file(self.file, self.chunk).await? {
                        Some(chunk) => {
                            self.rest = self.rest.saturating_sub(chunk.len() as u64);
                            self.read.extend_from_slice(&chunk);
                        }
                        // A removed file ends where nobody wrote an end.
                        None if self.rest > 0 => return Ok(Next::Gone),
                        None => self.at_end = true,
                    }
                    self.chunk += 1;
                    continue;
                }
            };
            self.looked_at = 0;
            self.number += 1;
            let line = line.freeze();
            // As long as one is that a chunk ends in, wherever chunks are cut.
            if line.strip_suffix(b"\n").unwrap_or(&line).len() > self.max {
                return Ok(Next::TooLong(self.number));
            }
            let trimmed = line.trim_ascii();
            // Some editors begin a file with a byte order mark.
            let trimmed = match self.number {
                1 => trimmed.strip_prefix(b"\xef\xbb\xbf").unwrap_or(trimmed),
                _ => trimmed,
            };
            if !trimmed.is_empty() {
                return Ok(Next::Line(self.number, line.slice_ref(trimmed)));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use llmq_core::WallTime;
    use llmq_store::{Files as _, MemoryStore, Settings, StoredFile};

    use super::*;

    /// A store with one file of these chunks.
    async fn stored(chunks: &[&'static str]) -> (MemoryStore, StoredFile) {
        let store = MemoryStore::new(Settings::default());
        let file = StoredFile {
            id: FileId::new(),
            tenant: "t".to_owned(),
            filename: "in.jsonl".to_owned(),
            purpose: "batch".to_owned(),
            bytes: 0,
            created_at: WallTime::from_micros(0),
            expires_at: None,
        };
        let id = file.id;
        store.create_file(file).await.unwrap();
        for chunk in chunks {
            store.append_file(id, (*chunk).into()).await.unwrap();
        }
        let file = store.publish_file(id).await.unwrap().unwrap();
        (store, file)
    }

    async fn lines(chunks: &[&'static str], max: usize) -> Vec<(u32, String)> {
        let (store, file) = stored(chunks).await;
        let (mut lines, mut all) = (Lines::new(&store, &file, max), Vec::new());
        loop {
            match lines.next().await.unwrap() {
                Next::Line(number, line) => {
                    all.push((number, String::from_utf8(line.to_vec()).unwrap()));
                }
                Next::TooLong(number) => {
                    all.push((number, "too long".to_owned()));
                    return all;
                }
                Next::Gone => panic!("nobody removed it"),
                Next::End => return all,
            }
        }
    }

    /// A batch whose input was removed while it was read was published with the lines until then,
    /// and came to its end as if these were all.
    #[tokio::test]
    async fn a_file_that_is_removed_while_it_is_read_has_no_end() {
        for chunks in [["a\n", "b\n"], ["a\nb", "\n"]] {
            let (store, file) = stored(&chunks).await;
            let mut lines = Lines::new(&store, &file, 100);
            assert!(matches!(lines.next().await.unwrap(), Next::Line(1, _)));
            assert!(store.delete_file(file.id).await.unwrap());
            assert!(matches!(lines.next().await.unwrap(), Next::Gone));
        }
    }

    fn told(all: &[(u32, &str)]) -> Vec<(u32, String)> {
        all.iter()
            .map(|(at, line)| (*at, (*line).to_owned()))
            .collect()
    }

    #[tokio::test]
    async fn lines_are_the_same_wherever_chunks_are_cut() {
        let whole = lines(&["\u{feff}one\r\n\n two \nthree"], 100).await;
        assert_eq!(whole, told(&[(1, "one"), (3, "two"), (4, "three")]));
        let cut = lines(&["\u{feff}o", "ne\r", "\n", "\n two \nth", "ree"], 100).await;
        assert_eq!(cut, whole);
        assert_eq!(lines(&[], 100).await, []);
    }

    #[tokio::test]
    async fn no_line_is_gathered_without_end() {
        let all = lines(&["a\n", "bbbbbbbb", "bbbbbbbb"], 10).await;
        assert_eq!(all, told(&[(1, "a"), (2, "too long")]));
    }

    /// One was taken at the beginning of a file, and refused where a chunk ended in it.
    #[tokio::test]
    async fn a_line_is_too_long_wherever_chunks_are_cut() {
        let whole = "a\nbbbbbbbbbb\ncccccccccc\r\n";
        for cut in 0..whole.len() {
            let (begin, end) = whole.split_at(cut);
            let all = lines(&[begin, end], 10).await;
            let wanted = [(1, "a"), (2, "bbbbbbbbbb"), (3, "too long")];
            assert_eq!(all, told(&wanted), "cut at {cut}");
        }
    }
}
