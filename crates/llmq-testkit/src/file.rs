use std::io::{self, Write};

/// A file in memory with room for so many bytes, which knows how much of it was synced.
///
/// A write takes what still fits; when nothing does it fails with
/// [`io::ErrorKind::StorageFull`], as a full disk does.
///
/// ```
/// use llmq_testkit::SmallFile;
/// use std::io::Write;
/// let mut file = SmallFile::with_room(4);
/// assert_eq!(file.write(b"abcdef")?, 4);
/// assert!(file.write(b"ef").is_err());
/// assert_eq!(file.after_power_cut(), b"");
/// file.sync();
/// assert_eq!(file.after_power_cut(), b"abcd");
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SmallFile {
    /// What was written.
    pub content: Vec<u8>,
    /// The most bytes it takes; it may change at any time.
    pub room_bytes: usize,
    /// How many bytes, from the first, survive a power cut.
    pub synced_bytes: usize,
}

impl SmallFile {
    /// An empty file.
    #[must_use]
    pub fn with_room(room_bytes: usize) -> Self {
        Self {
            room_bytes,
            ..Self::default()
        }
    }

    /// A file that holds `content`, synced, and has room for whatever comes.
    #[must_use]
    pub fn holding(content: Vec<u8>) -> Self {
        Self {
            synced_bytes: content.len(),
            room_bytes: usize::MAX,
            content,
        }
    }

    /// Everything written so far survives a power cut.
    pub fn sync(&mut self) {
        self.synced_bytes = self.content.len();
    }

    /// Cuts it to `length` bytes, or leaves it if it is shorter.
    pub fn cut(&mut self, length: u64) {
        self.content
            .truncate(usize::try_from(length).unwrap_or(usize::MAX));
        self.synced_bytes = self.synced_bytes.min(self.content.len());
    }

    /// What is certain to be there after a power cut.
    #[must_use]
    pub fn after_power_cut(&self) -> &[u8] {
        &self.content[..self.synced_bytes]
    }
}

impl Write for SmallFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let fits = self.room_bytes.saturating_sub(self.content.len());
        let count = bytes.len().min(fits);
        if count == 0 && !bytes.is_empty() {
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.content.extend_from_slice(&bytes[..count]);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_takes_what_fits_and_then_nothing_until_there_is_room() {
        let mut file = SmallFile::with_room(3);
        let error = file.write_all(b"abcd").unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
        assert_eq!(file.content, b"abc");
        file.room_bytes = 2;
        assert!(file.write(b"d").is_err(), "it may become smaller");
        assert_eq!(file.write(b"").unwrap(), 0);
        file.cut(1);
        file.write_all(b"x").unwrap();
        assert_eq!(file.content, b"ax");
    }

    #[test]
    fn what_was_cut_off_is_no_longer_synced() {
        let mut file = SmallFile::holding(b"abc".to_vec());
        file.cut(1);
        file.write_all(b"yz").unwrap();
        assert_eq!(file.after_power_cut(), b"a");
        file.cut(9);
        assert_eq!(file.content, b"ayz");
    }
}
