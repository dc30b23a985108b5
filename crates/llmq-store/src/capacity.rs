use crate::{EnqueueError, FullOf, NewJob, Settings};

/// A page of the embedded store's file …
const PAGE_BYTES: u64 = 4096;
/// … and how much of it is for rows.
const PAGE_ROOM: u64 = 4088;
/// A longer row has pages of its own, each with room for so much, for all but its rest …
const ROW_MAX: u64 = 4061;
const OWN_PAGE_ROOM: u64 = 4092;
/// … which is so long at least ("Cell Payload Overflow Pages", sqlite.org/fileformat2.html).
const REST_MIN: u64 = 489;

/// The row of a job beside its notes, and of a body beside that.
const JOB_BYTES: u64 = 92;
const BODY_BYTES: u64 = 20;
/// A job's entries in the indexes, the event that it came, and its place in the order, which is in
/// memory. Measured, as is what a key costs: `tests/capacity.rs` of the embedded store.
const BESIDE_BYTES: u64 = 146;
/// An idempotency key beside its letters, which its row and two indexes have.
const KEY_BYTES: u64 = 130;
/// A membership of a batch beside its name: its notes and its entry in an index.
const MEMBER_BYTES: u64 = 92;

/// How much of a store's capacity is used, and whether it refuses.
#[derive(Debug, Clone, Default)]
pub struct Capacity {
    jobs: u64,
    bytes: u64,
    refuses: Option<FullOf>,
}

impl Capacity {
    /// What `job` counts for: what the file and the memory of the embedded store grow by for it,
    /// within a tenth among jobs that are like it.
    #[must_use]
    pub fn bytes_of(job: &NewJob) -> u64 {
        let mut notes = Length(0);
        // A counter refuses nothing.
        let _ = serde_json::to_writer(&mut notes, &job.details);
        let member = job.member.as_ref();
        let member = member.map_or(0, |member| MEMBER_BYTES + member.custom_id.len() as u64);
        let key = job.idempotency.as_ref().map_or(0, |key| {
            // Pages of indexes are not quite full.
            KEY_BYTES + key.key.len() as u64 * 17 / 5
        });
        in_pages(JOB_BYTES + notes.0 as u64 + member)
            + in_pages(BODY_BYTES + job.body.len() as u64)
            + BESIDE_BYTES
            + key
    }

    /// Takes jobs in, or says what there is too much of. None at all are never too many.
    ///
    /// # Errors
    ///
    /// [`EnqueueError::Full`]: above the high watermark, and from then on until it is below the
    /// low one.
    pub fn take(&mut self, jobs: u64, bytes: u64, settings: &Settings) -> Result<(), EnqueueError> {
        if jobs == 0 {
            return Ok(());
        }
        self.look(settings);
        let over = if self.jobs + jobs > settings.max_jobs {
            Some(FullOf::Jobs)
        } else if self.bytes + bytes > settings.max_bytes {
            Some(FullOf::Bytes)
        } else {
            self.refuses
        };
        if let Some(what) = over {
            let waiting = match what {
                FullOf::Jobs => self.jobs,
                FullOf::Bytes => self.bytes,
            };
            return Err(EnqueueError::Full { what, waiting });
        }
        self.jobs += jobs;
        self.bytes += bytes;
        Ok(())
    }

    /// Jobs that were there when the store was opened.
    pub fn holds(&mut self, jobs: u64, bytes: u64) {
        self.jobs += jobs;
        self.bytes += bytes;
    }

    /// Jobs have ended, or were not recorded after all.
    pub fn give_back(&mut self, jobs: u64, bytes: u64) {
        self.jobs = self.jobs.saturating_sub(jobs);
        self.bytes = self.bytes.saturating_sub(bytes);
    }

    /// Bytes of the jobs that have not ended.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Begins to refuse, or stops it.
    fn look(&mut self, settings: &Settings) {
        let above = |share: f64| {
            let reached = |used: u64, max: u64| used as f64 >= share * max as f64;
            if reached(self.jobs, settings.max_jobs) {
                Some(FullOf::Jobs)
            } else if reached(self.bytes, settings.max_bytes) {
                Some(FullOf::Bytes)
            } else {
                None
            }
        };
        self.refuses = match self.refuses {
            None => above(settings.high_watermark),
            Some(_) => above(settings.low_watermark),
        };
    }
}

/// What a row of so many bytes takes of a file: its share of the pages that rows of its size fill,
/// which leave room where another does not fit, and the pages of its own.
fn in_pages(bytes: u64) -> u64 {
    let (pages, rest) = if bytes <= ROW_MAX {
        (0, bytes)
    } else {
        let over = bytes - REST_MIN;
        match REST_MIN + over % OWN_PAGE_ROOM {
            rest if rest <= ROW_MAX => (over / OWN_PAGE_ROOM, rest),
            // All pages but the last are full.
            _ => (over / OWN_PAGE_ROOM + 1, REST_MIN),
        }
    };
    pages * PAGE_BYTES + PAGE_BYTES / (PAGE_ROOM / rest)
}

/// How long what is written is.
struct Length(usize);

impl std::io::Write for Length {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0 += bytes.len();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 64 notes of 1 KiB counted 2,560 bytes, and callbacks nothing.
    #[test]
    fn what_is_kept_of_a_job_counts_whatever_it_is() {
        let plain = NewJob::new("m", "t", "{}");
        let mut noted = plain.clone();
        for note in 0..64 {
            let text = serde_json::Value::from("x".repeat(1024));
            noted.details.metadata.insert(note.to_string(), text);
        }
        noted.details.callback = Some(crate::Callback {
            url: format!("https://example.com/{}", "y".repeat(2_000)),
            signed_by: None,
        });
        noted.details.extra = serde_json::json!({"headers": {"a": "z".repeat(500)}});
        let more = Capacity::bytes_of(&noted) - Capacity::bytes_of(&plain);
        let kept = 64 * 1024 + 2_020 + 500;
        assert!((kept..kept * 11 / 10).contains(&more), "{more} of {kept}");
    }

    #[test]
    fn a_row_takes_its_share_of_pages() {
        for (bytes, share) in [
            (100, 102),
            (1_022, 1_024),
            // Three go into a page, and then one.
            (1_023, 1_365),
            (2_045, 4_096),
            (4_061, 4_096),
            // Of its own it has one page, and its rest is as small as can be.
            (4_062, 4_096 + 512),
            (4_092 + 489, 4_096 + 512),
            (2 * 4_092 + 2_045, 2 * 4_096 + 4_096),
        ] {
            assert_eq!(in_pages(bytes), share, "{bytes}");
        }
    }

    #[test]
    fn it_refuses_from_the_high_watermark_on_until_it_is_below_the_low_one() {
        let settings = Settings {
            max_jobs: 10,
            ..Settings::default()
        };
        let mut capacity = Capacity::default();
        for _ in 0..8 {
            capacity.take(1, 1, &settings).unwrap();
        }
        assert!(capacity.take(1, 1, &settings).is_err());
        capacity.give_back(2, 2);
        assert!(
            capacity.take(1, 1, &settings).is_err(),
            "6 of 10 are not below"
        );
        capacity.give_back(1, 1);
        capacity.take(1, 1, &settings).unwrap();
        assert!(
            capacity.take(5, 5, &settings).is_err(),
            "more than there is"
        );
    }
}
