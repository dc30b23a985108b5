use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use llmq_store::JobId;
use rustc_hash::FxHashMap;
use tokio::sync::mpsc;

/// What is heard of a job's stream while it comes.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Live {
    /// It has begun: what follows is of this attempt.
    Began {
        /// The provider's status.
        status: u16,
        /// Those of its headers that are kept.
        headers: Vec<(String, String)>,
        /// Who answers.
        upstream: Arc<str>,
        /// The attempt, from 1 on.
        attempt: u32,
    },
    /// More of it. The end is not among these: it is told by what is stored once it is.
    Piece(Bytes),
    /// The attempt failed: what was heard is a part of nothing.
    Broken,
}

/// Who listens to the streams of jobs, one for each.
#[derive(Debug, Default)]
pub(super) struct Lives {
    // What waits here is at most as much as the attempt gathers itself, which has a bound; a slow
    // caller must not hold up the provider.
    listening: Mutex<FxHashMap<JobId, mpsc::UnboundedSender<Live>>>,
}

/// Listens to a job's stream until it is dropped.
#[derive(Debug)]
pub struct Listening {
    lives: Arc<Lives>,
    job: JobId,
    heard: mpsc::UnboundedReceiver<Live>,
}

/// Tells of one attempt's stream.
#[derive(Debug)]
pub(super) struct Speaker {
    lives: Arc<Lives>,
    job: JobId,
    sender: mpsc::UnboundedSender<Live>,
    began: bool,
    is_whole: bool,
}

impl Lives {
    pub(super) fn listen(self: &Arc<Self>, job: JobId) -> Listening {
        let (sender, heard) = mpsc::unbounded_channel();
        self.lock().insert(job, sender);
        Listening {
            lives: Arc::clone(self),
            job,
            heard,
        }
    }

    /// Whoever listens to a job; nobody as nearly always.
    pub(super) fn speaker(self: &Arc<Self>, job: JobId) -> Option<Speaker> {
        let sender = self.lock().get(&job).cloned()?;
        Some(Speaker {
            lives: Arc::clone(self),
            job,
            sender,
            began: false,
            is_whole: false,
        })
    }

    /// Nothing more is told of a job: its stream broke off, or it ended.
    pub(super) fn forget(&self, job: JobId) {
        self.lock().remove(&job);
    }

    fn lock(&self) -> MutexGuard<'_, FxHashMap<JobId, mpsc::UnboundedSender<Live>>> {
        self.listening
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl Listening {
    /// What comes next; none when nothing more does: the job has ended, or its stream broke off.
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost.
    pub async fn next(&mut self) -> Option<Live> {
        self.heard.recv().await
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        self.lives.forget(self.job);
    }
}

impl Speaker {
    /// The first token is there.
    pub(super) fn begins(&mut self, began: impl FnOnce() -> Live) {
        if !std::mem::replace(&mut self.began, true) {
            self.tell(began());
        }
    }

    pub(super) fn tell(&self, live: Live) {
        // Whoever has gone does not want to know.
        let _ = self.sender.send(live);
    }

    /// The stream came to its proper end.
    pub(super) fn is_whole(&mut self) {
        self.is_whole = true;
    }
}

impl Drop for Speaker {
    /// An attempt that fails, or is broken off, has told a part of nothing; of the next ones nothing
    /// is told, so what waits for a slow caller has a bound.
    fn drop(&mut self) {
        if self.began && !self.is_whole {
            self.tell(Live::Broken);
            self.lives.forget(self.job);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_listener_hears_its_job_and_leaves_nothing_behind() {
        let lives = Arc::new(Lives::default());
        let (mine, other) = (JobId::new(), JobId::new());
        let mut listening = lives.listen(mine);
        assert!(lives.speaker(other).is_none());
        let mut speaker = lives.speaker(mine).unwrap();
        for _ in 0..2 {
            speaker.begins(|| Live::Piece("once".into()));
        }
        drop(speaker);
        assert!(
            lives.speaker(mine).is_none(),
            "it is told of no other attempt"
        );
        assert_eq!(listening.next().await, Some(Live::Piece("once".into())));
        assert_eq!(listening.next().await, Some(Live::Broken));
        assert_eq!(listening.next().await, None);
        let again = lives.listen(mine);
        drop(again);
        assert!(lives.lock().is_empty());
    }
}
