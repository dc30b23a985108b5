use std::collections::BTreeMap;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use llmq_core::{Now, WallTime};
use llmq_dispatch::{Dispatcher, Event, LimitId, Notice, Surroundings, UpstreamId};
use llmq_limit::QuotaState;

use super::spent::{Spent, next_portion};
use crate::Hub;

/// How often a running process says that it is alive.
const SIGN_OF_LIFE: Duration = Duration::from_secs(1);
/// So many limits' books are read at once, so that no grant waits long for the dispatcher.
const LIMITS_AT_ONCE: usize = 256;

/// What must be on disk before the dispatcher goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Save {
    /// The count of the day.
    Quota(UpstreamId),
    /// What a long limit may use next; or any limit that was learned just now, so that the next
    /// process knows of it whatever happens to this one.
    Portion(LimitId),
    /// Everything, for the last time.
    End,
}

impl Save {
    fn quota(&self) -> Option<Kept> {
        match self {
            Self::Quota(upstream) => Some(Kept::Quota(*upstream)),
            Self::Portion(_) | Self::End => None,
        }
    }
}

/// The books as they must be on disk.
#[derive(Debug, Clone)]
pub struct Page {
    /// What was spent of limits.
    pub spent: Spent,
    /// By upstream, the state of its daily quota (JSON).
    pub quota: BTreeMap<String, String>,
    /// The sign of life.
    pub alive_at: WallTime,
}

/// Where books are kept.
pub trait Shelf: Send {
    /// Why a page cannot be written.
    type Error;

    /// The upstreams whose headers are learned from, by their [`learner`](super::learner).
    fn learners(&self) -> Vec<(UpstreamId, String)>;

    /// Puts a page in the place of the one before. When this returns, it survives a power cut.
    /// May block.
    ///
    /// # Errors
    ///
    /// The page before stands then.
    fn put(&mut self, page: Page) -> Result<(), Self::Error>;
}

/// Who asks a [`Keeper`] to write. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Wanted(Arc<Mutex<Option<Sender<Save>>>>);

impl Wanted {
    /// The receiver is for the keeper: it hears what is asked from here on.
    #[must_use]
    pub fn open(&self) -> Receiver<Save> {
        let (sender, receiver) = channel();
        *self.sender() = Some(sender);
        receiver
    }

    /// Asks for something to be written.
    pub fn ask(&self, save: Save) {
        if let Some(sender) = &*self.sender() {
            // Without a keeper nothing is kept, or the end has come.
            let _ = sender.send(save);
        }
    }

    /// Asks for what a notice of the dispatcher says must be written.
    pub fn hear(&self, notice: &Notice) {
        match notice {
            Notice::SaveQuota(upstream, _) => self.ask(Save::Quota(*upstream)),
            Notice::PortionLow(limit) | Notice::LimitLearned(_, limit) => {
                self.ask(Save::Portion(*limit));
            }
            _ => {}
        }
    }

    /// The keeper's work is over: it writes the books of a stop and ends.
    pub fn end(&self) {
        self.ask(Save::End);
        *self.sender() = None;
    }

    fn sender(&self) -> std::sync::MutexGuard<'_, Option<Sender<Save>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Writes the books of a running dispatcher: a sign of life each second, and at once what the
/// dispatcher waits for.
#[derive(Debug)]
pub struct Keeper<S> {
    hub: Arc<Hub>,
    shelf: S,
}

impl<S: Shelf> Keeper<S> {
    /// A keeper of the hub's books. Until it has written them once ([`Keeper::write`]), no call
    /// may start.
    pub fn new(hub: Arc<Hub>, shelf: S) -> Self {
        Self { hub, shelf }
    }

    /// Works until [`Save::End`], then writes the books of a stop. `failed` says whether to go on
    /// after a write that failed; what waits for it then waits for the next one.
    ///
    /// # Errors
    ///
    /// The failed write after which it was not to go on.
    pub fn run(
        mut self,
        wanted: &Receiver<Save>,
        mut failed: impl FnMut(S::Error) -> Result<(), S::Error>,
    ) -> Result<(), S::Error> {
        let mut asked: Vec<Save> = Vec::new();
        loop {
            match wanted.recv_timeout(SIGN_OF_LIFE) {
                Ok(save) => asked.push(save),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
            asked.extend(wanted.try_iter());
            if asked.contains(&Save::End) {
                break;
            }
            asked.sort_unstable();
            asked.dedup();
            match self.keep(false, &asked) {
                Ok(kept) => {
                    asked.clear();
                    kept.into_iter().for_each(|kept| self.tell(kept));
                }
                Err(error) => failed(error)?,
            }
        }
        // What is still under way may be charged by the provider and is in no book.
        let clean = self.hub.with(|dispatcher| {
            let mut queues = dispatcher.queue_ids();
            queues.all(|queue| dispatcher.queue_view(queue).running == 0)
        });
        self.write(clean)
    }

    /// Writes the books as they are now, for a process that goes on or has stopped (`clean`).
    ///
    /// # Errors
    ///
    /// The last ones are then still on disk.
    pub fn write(&mut self, clean: bool) -> Result<(), S::Error> {
        self.keep(clean, &[]).map(|_| ())
    }

    /// The same, and what the dispatcher may do then of what was `asked`.
    fn keep(&mut self, clean: bool, asked: &[Save]) -> Result<Vec<Kept>, S::Error> {
        let now = self.hub.surroundings().now();
        let mut kept: Vec<Kept> = asked.iter().filter_map(Save::quota).collect();
        let quota = self.quota(clean);
        let spent = self.spent(clean, asked, &mut kept, now);
        self.shelf.put(Page {
            spent,
            quota,
            alive_at: now.wall.max(WallTime::from_micros(0)),
        })?;
        Ok(kept)
    }

    /// By upstream, the state of its daily quota.
    fn quota(&self, clean: bool) -> BTreeMap<String, String> {
        let states: Vec<(String, QuotaState)> = self.hub.with(|dispatcher| {
            let states = dispatcher.all_upstream_ids().filter_map(|id| {
                let quota = dispatcher.quota(id)?;
                let state = if clean {
                    quota.to_final_state()
                } else {
                    quota.to_state()
                };
                Some((dispatcher.upstream_view(id).name, state))
            });
            states.collect()
        });
        // Written as text here, where nobody waits for the dispatcher.
        let text = |state: &QuotaState| serde_json::to_string(state).unwrap_or_default();
        let states = states.into_iter();
        states.map(|(name, state)| (name, text(&state))).collect()
    }

    fn spent(&self, clean: bool, asked: &[Save], kept: &mut Vec<Kept>, now: Now) -> Spent {
        let learners = self.shelf.learners();
        let mut spent = Spent {
            clean,
            ..Spent::default()
        };
        let limits: Vec<LimitId> = self.hub.with(|dispatcher| dispatcher.limit_ids().collect());
        for some in limits.chunks(LIMITS_AT_ONCE) {
            self.hub.with(|dispatcher| {
                for limit in some {
                    spent.add(dispatcher, *limit, now);
                    if asked.contains(&Save::Portion(*limit)) {
                        kept.extend(Kept::portion(dispatcher, *limit));
                    }
                }
            });
        }
        self.hub
            .with(|dispatcher| spent.add_learned(dispatcher, &learners));
        spent
    }

    fn tell(&self, kept: Kept) {
        match kept {
            Kept::Quota(upstream) => self.hub.handle(Event::QuotaSaved(upstream)),
            Kept::Portion {
                limit,
                reach,
                portion,
            } => self.hub.change(|dispatcher, now, effects| {
                dispatcher.allow_to(limit, reach, portion, now, effects);
            }),
        }
    }
}

/// What is on disk now, as the dispatcher waits for it.
#[derive(Debug, Clone, Copy)]
enum Kept {
    /// The count of the day.
    Quota(UpstreamId),
    /// That a limit is used up to `reach`, with a `portion` that was ahead when it was written.
    Portion {
        limit: LimitId,
        reach: u64,
        portion: u64,
    },
}

impl Kept {
    /// How far a limit may be used once its books of this instant are on disk.
    fn portion(dispatcher: &mut Dispatcher, limit: LimitId) -> Option<Self> {
        let portion = next_portion(dispatcher, limit)?;
        Some(Self::Portion {
            limit,
            reach: dispatcher.limit_mut(limit).reach(portion),
            portion,
        })
    }
}

#[cfg(test)]
mod tests;
