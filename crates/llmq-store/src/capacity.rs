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
        let notes = job.details.endpoint.len() + job.details.metadata.len() * 40;
        ROW_BYTES + (job.body.len() + key + notes) as u64
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

#[cfg(test)]
mod tests {
    use super::*;

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
