//! What is looked at before SQLite is: it takes a log whose beginning is damaged for an empty one,
//! and would go on without what was acknowledged.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::Path;

use crate::OpenError;

const DATABASE_MAGIC: &[u8; 16] = b"SQLite format 3\0";

/// Of a log whose checksums are of big-endian words is one more.
const LOG_MAGIC: u32 = 0x377f_0682;

/// The version of the log's format.
const LOG_VERSION: u32 = 3_007_000;

const LOG_HEADER_BYTES: usize = 32;
const FRAME_HEADER_BYTES: usize = 24;

/// Checks the beginning of the database and all of its log. Answers what was found, in words.
///
/// # Errors
///
/// [`OpenError::Damaged`]: nothing can be said of what is in it.
pub(crate) fn check(path: &Path) -> Result<Vec<String>, OpenError> {
    let failed = |source| OpenError::File {
        path: path.to_owned(),
        source,
    };
    let damaged = |what: &str| OpenError::Damaged {
        path: path.to_owned(),
        what: what.to_owned(),
    };
    if let Some(wrong) = database(path).map_err(failed)? {
        return Err(damaged(wrong));
    }
    let mut log = path.as_os_str().to_owned();
    log.push("-wal");
    let log = match File::open(&log) {
        Ok(log) => log,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed(error)),
    };
    match read_log(BufReader::with_capacity(1 << 20, log)).map_err(failed)? {
        Log::Empty | Log::Whole => Ok(Vec::new()),
        Log::NotOne => Err(damaged(
            "the beginning of its log (-wal) is not what was written, so what was recorded last \
             cannot be read; restore a backup, or move the log away to go on without it",
        )),
        Log::EndsEarly { frames, left } => Ok(vec![format!(
            "the log (-wal) can be followed for {frames} pages and not for the {left} behind them: \
             after a power cut these were never acknowledged; if there was none, the file was \
             damaged and what they held is lost"
        )]),
    }
}

/// What is wrong with the beginning of the database.
fn database(path: &Path) -> io::Result<Option<&'static str>> {
    let mut header = Vec::new();
    File::open(path)?.take(100).read_to_end(&mut header)?;
    if header.is_empty() {
        return Ok(None);
    }
    let page_bytes = header
        .get(16..18)
        .map(|bytes| u16::from_be_bytes([bytes[0], bytes[1]]));
    Ok(if header.get(..16) != Some(DATABASE_MAGIC.as_slice()) {
        // What never was one is not damaged: SQLite says so.
        None
    } else if header.len() < 100 {
        Some("it ends within its first hundred bytes")
    } else if page_bytes.is_none_or(|bytes| bytes != 1 && (bytes < 512 || !bytes.is_power_of_two()))
    {
        Some("its page size is impossible")
    } else {
        None
    })
}

/// What a log turned out to be.
enum Log {
    Empty,
    Whole,
    /// Its beginning is damaged.
    NotOne,
    /// It can be followed for so many frames, and as many behind them carry its mark.
    EndsEarly {
        frames: u64,
        left: u64,
    },
}

/// Follows the checksums of a log, as SQLite does when it opens one.
fn read_log(mut log: impl Read) -> io::Result<Log> {
    let mut header = [0; LOG_HEADER_BYTES];
    let Some(()) = read_whole(&mut log, &mut header)? else {
        return Ok(Log::Empty);
    };
    let word = |at: usize| be(&header[at..]);
    // SQLite writes zeros over the beginning of a log that it is done with.
    if header.iter().all(|byte| *byte == 0) {
        return Ok(Log::Empty);
    }
    let order = match word(0).wrapping_sub(LOG_MAGIC) {
        0 => Order::Little,
        1 => Order::Big,
        _ => return Ok(Log::NotOne),
    };
    let mut sum = checksum(order, (0, 0), &header[..24]);
    let page_bytes = word(8) as usize;
    let is_size = (512..=65_536).contains(&page_bytes) && page_bytes.is_power_of_two();
    if sum != (word(24), word(28)) || word(4) != LOG_VERSION || !is_size {
        return Ok(Log::NotOne);
    }
    let salts = &header[16..24];
    let mut frame = vec![0; FRAME_HEADER_BYTES + page_bytes];
    let (mut frames, mut left, mut is_followed) = (0, 0, true);
    while read_whole(&mut log, &mut frame)?.is_some() {
        // Frames of an earlier round of the log have other salts.
        let is_of_this_round = &frame[8..16] == salts;
        if is_followed && is_of_this_round {
            let first = checksum(order, sum, &frame[..8]);
            let all = checksum(order, first, &frame[FRAME_HEADER_BYTES..]);
            if all == (be(&frame[16..]), be(&frame[20..])) {
                sum = all;
                frames += 1;
                continue;
            }
        }
        is_followed = false;
        left += u64::from(is_of_this_round);
    }
    Ok(if left == 0 {
        Log::Whole
    } else {
        Log::EndsEarly { frames, left }
    })
}

#[derive(Clone, Copy)]
enum Order {
    Little,
    Big,
}

/// SQLite's checksum of a log ("Checksum Algorithm", sqlite.org/fileformat2.html section 4.2).
fn checksum(order: Order, from: (u32, u32), bytes: &[u8]) -> (u32, u32) {
    let word = |bytes: &[u8]| match order {
        Order::Little => u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]),
        Order::Big => be(bytes),
    };
    bytes.chunks_exact(8).fold(from, |(first, second), pair| {
        let first = first.wrapping_add(word(pair)).wrapping_add(second);
        (
            first,
            second.wrapping_add(word(&pair[4..])).wrapping_add(first),
        )
    })
}

fn be(bytes: &[u8]) -> u32 {
    u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
}

/// Fills `buffer`; `None` at the end of the file, or within a part that is cut off.
fn read_whole(from: &mut impl Read, buffer: &mut [u8]) -> io::Result<Option<()>> {
    match from.read_exact(buffer) {
        Ok(()) => Ok(Some(())),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
        Err(error) => Err(error),
    }
}
