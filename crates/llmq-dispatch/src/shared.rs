use std::fmt;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use llmq_core::{Now, Timestamp};
use rustc_hash::FxHashMap;

use crate::dispatcher::Dispatcher;
use crate::events::{Call, Effect, Ended, Event, Notice, Refusal, Start};
use crate::ids::TicketId;
use crate::sync::{Mutex, MutexGuard};

/// What a shared dispatcher needs of the world around it.
pub trait Surroundings: Send + Sync {
    /// The present moment. Called outside the lock.
    fn now(&self) -> Now;

    /// The dispatcher wants a [`Event::Tick`] at this instant; earlier wishes are void.
    /// Called outside the lock.
    fn alarm(&self, at: Timestamp);

    /// Something that people want to know. Called outside the lock.
    fn notice(&self, notice: Notice);
}

/// A dispatcher behind its lock, handing out tickets that are guards.
///
/// A ticket that is dropped before its grant leaves the line; a grant that is dropped before
/// its send gives everything back, and after its send keeps what the provider will have
/// charged. The lock guards a few lines; no waker is woken, cloned or dropped under it.
pub struct Shared<S: Surroundings> {
    core: Mutex<Core>,
    surroundings: S,
}

struct Core {
    dispatcher: Dispatcher,
    /// The latest moment at which it was told anything.
    now: Now,
    places: FxHashMap<TicketId, Place>,
    /// For when the alarm is set.
    alarm: Timestamp,
    scratch: Vec<Effect>,
}

/// What a waiting ticket's owner left, or will find.
enum Place {
    Waiting(Option<Waker>),
    Called(News),
}

/// What a ticket waited for.
#[derive(Debug, Clone, PartialEq)]
enum News {
    Granted(Start),
    Expired {
        could_start: Option<Timestamp>,
    },
    /// Boxed: it is rare, and every waiting ticket has room for its news.
    TooLarge(Box<(String, u64)>),
    NoUpstream,
}

/// Why a ticket got no grant.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NoGrant {
    /// It was not started in time.
    #[error("the call was not started in time")]
    Expired {
        /// When it might have started, if that is known.
        could_start: Option<Timestamp>,
    },
    /// It is above the whole of a limit.
    #[error("the call is above the whole limit of {count} ({limit})")]
    TooLarge {
        /// The limit's name.
        limit: String,
        /// Its count.
        count: u64,
    },
    /// None of the upstreams that are left could take it.
    #[error("no upstream is left that could take the call")]
    NoUpstream,
}

/// What follows from a failed attempt.
#[must_use]
#[derive(Debug)]
pub enum AfterFailure<S: Surroundings> {
    /// It waits for another attempt.
    Again(Ticket<S>),
    /// It has failed for good, after this many attempts.
    GivenUp {
        /// Attempts used up.
        attempts: u32,
    },
}

/// What is left to do after the lock is released.
#[derive(Default)]
struct Aftermath {
    wake: Vec<Waker>,
    notices: Vec<Notice>,
    alarm: Option<Timestamp>,
    mine: Option<News>,
    /// Attempts of the caller's own call, if it ended.
    ended: Option<u32>,
}

impl<S: Surroundings> fmt::Debug for Shared<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").finish_non_exhaustive()
    }
}

impl<S: Surroundings> Shared<S> {
    /// Takes a dispatcher that nobody has submitted to yet.
    #[must_use]
    pub fn new(dispatcher: Dispatcher, surroundings: S) -> Arc<Self> {
        let core = Core {
            dispatcher,
            now: Now::default(),
            places: FxHashMap::default(),
            alarm: Timestamp::FAR_FUTURE,
            scratch: Vec::new(),
        };
        Arc::new(Self {
            core: Mutex::new(core),
            surroundings,
        })
    }

    /// The world around it.
    pub fn surroundings(&self) -> &S {
        &self.surroundings
    }

    /// Takes a call into its line.
    ///
    /// # Errors
    ///
    /// [`Refusal`] when its queue is full or draining.
    pub fn submit(self: &Arc<Self>, call: Call) -> Result<Ticket<S>, Refusal> {
        let now = self.surroundings.now();
        let mut aftermath = Aftermath::default();
        let submitted = {
            let mut core = self.lock();
            let now = core.no_earlier(now);
            let mut effects = std::mem::take(&mut core.scratch);
            let submitted = core.dispatcher.submit(call, now, &mut effects);
            core.carry_out(effects, submitted.as_ref().ok().copied(), &mut aftermath);
            submitted
        };
        let mine = aftermath.mine.take();
        self.finish(aftermath);
        Ok(Ticket {
            shared: Arc::clone(self),
            id: submitted?,
            early: mine,
            open: true,
        })
    }

    /// Tells the dispatcher what happened.
    pub fn handle(&self, event: Event) {
        let _ = self.handle_for(None, event);
    }

    /// Lets time pass, and names the next instant at which that should happen again.
    pub fn tick(&self) -> Option<Timestamp> {
        self.handle(Event::Tick);
        self.lock().dispatcher.next_wake()
    }

    /// Looks at, or changes, the dispatcher. What follows from a change is carried out when the
    /// next event is told; tell [`Event::Tick`] for that to be now.
    pub fn with<T>(&self, look: impl FnOnce(&mut Dispatcher) -> T) -> T {
        look(&mut self.lock().dispatcher)
    }

    /// The same for a change that has effects.
    pub fn change<T>(&self, change: impl FnOnce(&mut Dispatcher, Now, &mut Vec<Effect>) -> T) -> T {
        let now = self.surroundings.now();
        let mut aftermath = Aftermath::default();
        let changed = {
            let mut core = self.lock();
            let now = core.no_earlier(now);
            let mut effects = std::mem::take(&mut core.scratch);
            let changed = change(&mut core.dispatcher, now, &mut effects);
            core.carry_out(effects, None, &mut aftermath);
            changed
        };
        self.finish(aftermath);
        changed
    }

    /// How many tickets wait, or have not been told yet what came of it. All of them have an
    /// owner: a ticket that is dropped takes its place along.
    pub fn places(&self) -> usize {
        self.lock().places.len()
    }

    fn handle_for(&self, mine: Option<TicketId>, event: Event) -> Aftermath {
        let now = self.surroundings.now();
        let mut aftermath = Aftermath::default();
        {
            let mut core = self.lock();
            let now = core.no_earlier(now);
            let mut effects = std::mem::take(&mut core.scratch);
            core.dispatcher.handle(event, now, &mut effects);
            core.carry_out(effects, mine, &mut aftermath);
        }
        let (news, ended) = (aftermath.mine.take(), aftermath.ended);
        self.finish(aftermath);
        Aftermath {
            mine: news,
            ended,
            ..Aftermath::default()
        }
    }

    /// Does what must not be done under the lock.
    fn finish(&self, aftermath: Aftermath) {
        for waker in aftermath.wake {
            waker.wake();
        }
        for notice in aftermath.notices {
            self.surroundings.notice(notice);
        }
        if let Some(at) = aftermath.alarm {
            self.surroundings.alarm(at);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Core> {
        // A panic under the lock is a mistake of ours in a pure function; its state is whole.
        self.core
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Drops a ticket or grant: the dispatcher forgets it, and so does its place.
    fn give_up(&self, id: TicketId) {
        let now = self.surroundings.now();
        let mut aftermath = Aftermath::default();
        let place = {
            let mut core = self.lock();
            let now = core.no_earlier(now);
            let mut effects = std::mem::take(&mut core.scratch);
            // It may expire in this very event: the word of that is for nobody, and a place that
            // went before it would come back for ever.
            core.dispatcher
                .handle(Event::Dropped(id), now, &mut effects);
            core.carry_out(effects, Some(id), &mut aftermath);
            core.places.remove(&id)
        };
        drop(place);
        self.finish(aftermath);
    }
}

impl Core {
    /// The present moment as a thread read it, which may have waited for the lock since: to the
    /// dispatcher time never goes back.
    fn no_earlier(&mut self, now: Now) -> Now {
        if now.mono >= self.now.mono {
            self.now = now;
        }
        self.now
    }

    fn carry_out(
        &mut self,
        mut effects: Vec<Effect>,
        mine: Option<TicketId>,
        aftermath: &mut Aftermath,
    ) {
        for effect in effects.drain(..) {
            match effect {
                Effect::Start(start) => {
                    self.call(start.ticket, News::Granted(start), mine, aftermath);
                }
                Effect::Expired {
                    ticket,
                    could_start,
                } => {
                    self.call(ticket, News::Expired { could_start }, mine, aftermath);
                }
                Effect::TooLarge {
                    ticket,
                    limit,
                    count,
                } => {
                    let news = News::TooLarge(Box::new((limit, count)));
                    self.call(ticket, news, mine, aftermath);
                }
                Effect::NoUpstream { ticket } => {
                    self.call(ticket, News::NoUpstream, mine, aftermath);
                }
                Effect::Completed { ticket, attempts }
                | Effect::Failed {
                    ticket, attempts, ..
                } => {
                    if mine == Some(ticket) {
                        aftermath.ended = Some(attempts);
                    }
                }
                Effect::Requeued { .. } => {}
                Effect::Notice(notice) => aftermath.notices.push(notice),
            }
        }
        self.scratch = effects;
        let next = self.dispatcher.next_wake().unwrap_or(Timestamp::FAR_FUTURE);
        if next != self.alarm {
            self.alarm = next;
            aftermath.alarm = Some(next);
        }
    }

    /// Leaves news for a ticket's owner and takes its waker along.
    fn call(
        &mut self,
        id: TicketId,
        news: News,
        mine: Option<TicketId>,
        aftermath: &mut Aftermath,
    ) {
        if mine == Some(id) {
            aftermath.mine = Some(news);
            return;
        }
        if let Some(Place::Waiting(Some(waker))) = self.places.insert(id, Place::Called(news)) {
            aftermath.wake.push(waker);
        }
    }
}

/// A place in line. Dropped, it leaves the line and gives back what it was granted.
///
/// It is waited for with [`Ticket::granted`].
#[must_use = "a ticket that is dropped leaves the line"]
pub struct Ticket<S: Surroundings> {
    shared: Arc<Shared<S>>,
    id: TicketId,
    early: Option<News>,
    open: bool,
}

impl<S: Surroundings> fmt::Debug for Ticket<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ticket")
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

impl<S: Surroundings> Ticket<S> {
    /// Its number in the dispatcher.
    #[must_use]
    pub fn id(&self) -> TicketId {
        self.id
    }

    /// Waits for leave to send.
    ///
    /// # Errors
    ///
    /// [`NoGrant`] when it is too late or the call can never be sent.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future drops the ticket: it leaves the line, whether its grant had come
    /// or not, and nothing stays taken.
    pub async fn granted(mut self) -> Result<Grant<S>, NoGrant> {
        std::future::poll_fn(|context| self.poll_granted(context)).await
    }

    /// The same as a poll.
    pub fn poll_granted(&mut self, context: &mut Context<'_>) -> Poll<Result<Grant<S>, NoGrant>> {
        let Some(news) = self.early.take().or_else(|| self.take_news(context)) else {
            return Poll::Pending;
        };
        // From here on the grant, or nobody, is responsible.
        self.open = false;
        Poll::Ready(match news {
            News::Granted(start) => Ok(Grant {
                shared: Arc::clone(&self.shared),
                start,
                open: true,
            }),
            News::Expired { could_start } => Err(NoGrant::Expired { could_start }),
            News::TooLarge(refused) => {
                let (limit, count) = *refused;
                Err(NoGrant::TooLarge { limit, count })
            }
            News::NoUpstream => Err(NoGrant::NoUpstream),
        })
    }

    fn take_news(&self, context: &Context<'_>) -> Option<News> {
        let waker = context.waker().clone();
        let mut core = self.shared.lock();
        let place = core.places.entry(self.id).or_insert(Place::Waiting(None));
        let (news, old) = match place {
            Place::Called(_) => match core.places.remove(&self.id) {
                Some(Place::Called(news)) => (Some(news), Some(waker)),
                Some(Place::Waiting(_)) | None => (None, Some(waker)),
            },
            Place::Waiting(slot) => (None, slot.replace(waker)),
        };
        drop(core);
        drop(old);
        news
    }
}

impl<S: Surroundings> Drop for Ticket<S> {
    fn drop(&mut self) {
        if self.open {
            self.shared.give_up(self.id);
        }
    }
}

/// Leave to send one call. Dropped unsent, everything it took is free again; dropped after
/// [`Grant::sent`], what the provider will have charged stays taken.
#[must_use = "a grant that is dropped gives its place away"]
pub struct Grant<S: Surroundings> {
    shared: Arc<Shared<S>>,
    start: Start,
    open: bool,
}

impl<S: Surroundings> fmt::Debug for Grant<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Grant")
            .field("start", &self.start)
            .finish_non_exhaustive()
    }
}

impl<S: Surroundings> Grant<S> {
    /// Where to, and the how-manieth attempt it is.
    #[must_use]
    pub fn start(&self) -> Start {
        self.start
    }

    /// The call's bytes are being written: to be told just before the last of them is.
    pub fn sent(&self) {
        let at = self.shared.surroundings().now().mono;
        self.shared.handle(Event::Sent(self.start.ticket, at));
    }

    /// The first byte of the answer came, after this much processing by the provider's word.
    pub fn first_byte(&self, processing: Option<std::time::Duration>) {
        self.shared
            .handle(Event::FirstByte(self.start.ticket, processing));
    }

    /// The answer has this many output tokens so far.
    pub fn produced(&self, tokens: u64) {
        self.shared
            .handle(Event::Produced(self.start.ticket, tokens));
    }

    /// The call has its answer. Tells how many attempts that took.
    pub fn complete(mut self, ended: Ended) -> u32 {
        self.open = false;
        let after = self.shared.handle_for(
            Some(self.start.ticket),
            Event::Ended(self.start.ticket, Box::new(ended)),
        );
        after.ended.unwrap_or(self.start.attempt)
    }

    /// The attempt failed: `ended` says how. The retry table decides what follows.
    pub fn fail(self, ended: Ended) -> AfterFailure<S> {
        let event = Event::Ended(self.start.ticket, Box::new(ended));
        self.over(event)
    }

    /// Nothing was sent, since this upstream cannot take the call. It goes to others alone, and
    /// is given up where there are none.
    pub fn decline(self) -> AfterFailure<S> {
        let event = Event::Declined(self.start.ticket);
        self.over(event)
    }

    fn over(mut self, event: Event) -> AfterFailure<S> {
        self.open = false;
        let id = self.start.ticket;
        let after = self.shared.handle_for(Some(id), event);
        match after.ended {
            Some(attempts) => AfterFailure::GivenUp { attempts },
            None => AfterFailure::Again(Ticket {
                shared: Arc::clone(&self.shared),
                id,
                early: after.mine,
                open: true,
            }),
        }
    }
}

impl<S: Surroundings> Drop for Grant<S> {
    fn drop(&mut self) {
        if self.open {
            self.shared.give_up(self.start.ticket);
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests;
