use std::fs::File;
use std::io::{self, Read};

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::Xxh3Default;

use crate::bulk::input::{InputError, InputSource};

/// What tells one input from another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct InputPrint {
    /// The length of the file as it lies on the disk.
    pub bytes: u64,
    /// XXH3 of its content.
    pub xxh3: u64,
    /// For a file that is longer than an earlier one: whether it begins with all of that.
    #[serde(skip)]
    pub begins_with_earlier: bool,
}

impl InputPrint {
    /// Reads the whole of `input` once; `None` for standard input and pipes, which can be read
    /// only once.
    ///
    /// With `earlier`, the print of a shorter file, it also tells whether this one begins
    /// with it.
    ///
    /// # Errors
    ///
    /// [`InputError::Open`] and [`InputError::Read`].
    pub fn of(input: &InputSource, earlier: Option<&Self>) -> Result<Option<Self>, InputError> {
        let InputSource::File(path) = input else {
            return Ok(None);
        };
        // What cannot be opened at all is told by the opening below.
        if path.exists() && !input.can_be_read_again() {
            return Ok(None);
        }
        let file = File::open(path).map_err(|source| InputError::Open {
            input: input.clone(),
            source,
        })?;
        let print = Self::of_reader(file, earlier).map_err(|source| InputError::Read {
            input: input.clone(),
            line: 1,
            source,
        });
        print.map(Some)
    }

    pub(super) fn of_reader(mut reader: impl Read, earlier: Option<&Self>) -> io::Result<Self> {
        let mut hash = Xxh3Default::new();
        let mut bytes = 0;
        let mut begins_with_earlier = false;
        if let Some(earlier) = earlier {
            bytes += hash_all(&mut reader.by_ref().take(earlier.bytes), &mut hash)?;
            begins_with_earlier = bytes == earlier.bytes && hash.digest() == earlier.xxh3;
        }
        bytes += hash_all(&mut reader, &mut hash)?;
        Ok(Self {
            bytes,
            xxh3: hash.digest(),
            begins_with_earlier,
        })
    }

    pub(super) fn is_same(&self, other: &Self) -> bool {
        (self.bytes, self.xxh3) == (other.bytes, other.xxh3)
    }
}

fn hash_all(reader: &mut impl Read, hash: &mut Xxh3Default) -> io::Result<u64> {
    const BUFFER: usize = 256 * 1024;
    let mut buffer = vec![0; BUFFER];
    let mut bytes = 0;
    loop {
        match reader.read(&mut buffer) {
            Ok(0) => return Ok(bytes),
            Ok(count) => {
                hash.update(&buffer[..count]);
                bytes += count as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}
