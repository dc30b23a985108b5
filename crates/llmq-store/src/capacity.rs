use crate::{EnqueueError, FullOf, NewJob, Settings};

/// What a job costs beside its body, its notes and its names: its row, its place in the indexes
/// and in the order.
const ROW_BYTES: u64 = 520;

/// How much of a store's capacity is used, and whether it refuses.
#[derive(Debug, Clone, Default)]
pub struct Capacity {
    jobs: u64,
    bytes: u64,
    refuses: Option<FullOf>,
}

impl Capacity {
    /// What `job` counts for.
    #[must_use]
    pub fn bytes_of(job: &NewJob) -> u64 {
        let key = job
            .idempotency
            .as_ref()
            .map_or(0, |key| key.key.len() + 100);
        let mut notes = Length(0);
        // A counter refuses nothing.
        let _ = serde_json::to_writer(&mut notes, &job.details);
        let name = job
            .member
            .as_ref()
            .map_or(0, |member| member.custom_id.len());
        ROW_BYTES + (job.body.len() + key + name + notes.0) as u64
    }

    /// Takes jobs in, or says what there is too much of.
    ///
    /// # Errors
    ///
    /// [`EnqueueError::Full`]: above the high watermark, and from then on until it is below the
    /// low one.
    pub fn take(&mut self, jobs: u64, bytes: u64, settings: &Settings) -> Result<(), EnqueueError> {
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
