use std::sync::mpsc::Receiver;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use llmq_core::{Now, Timestamp};
use llmq_dispatch::{Notice, QueueId, Surroundings, UpstreamId};
use llmq_limit::{BreakerState, PauseScope, QuotaEvent};
use tokio::sync::Notify;

use super::fault::Faults;
use super::progress::Counters;
use super::verdict::{Ended, RouteState, Standing};
use crate::books::{Save, Wanted};
use crate::{Hub, NoticeLog};

/// How often it is looked at, beside every event.
const LOOK: Duration = Duration::from_secs(1);

/// Listens to the dispatcher for the run: logs, counts, asks for what must be saved, and decides
/// when going on has no sense.
pub(super) struct Watch {
    hub: Arc<Hub>,
    names: Vec<(UpstreamId, String)>,
    counters: Arc<Counters>,
    faults: Arc<Faults>,
    no_wait: bool,
    queue: QueueId,
    /// Since when the breakers that are open are so.
    down_since: Mutex<Vec<(UpstreamId, Timestamp)>>,
    changed: Notify,
    saving: Wanted,
    log: NoticeLog,
}

impl Watch {
    pub(super) fn new(
        hub: Arc<Hub>,
        names: &[(UpstreamId, String)],
        counters: Arc<Counters>,
        faults: Arc<Faults>,
        no_wait: bool,
        queue: QueueId,
    ) -> Self {
        Self {
            hub,
            names: names.to_vec(),
            counters,
            faults,
            no_wait,
            queue,
            down_since: Mutex::default(),
            changed: Notify::new(),
            saving: Wanted::default(),
            log: NoticeLog::default(),
        }
    }

    /// Begins to listen; the receiver gets what must be saved.
    pub(super) fn listen(self: &Arc<Self>, news: Vec<(UpstreamId, QuotaEvent)>) -> Receiver<Save> {
        let receiver = self.saving.open();
        for (upstream, event) in news {
            self.heard(Notice::Quota(upstream, event));
        }
        let watch = Arc::downgrade(self);
        crate::listen(&self.hub, move |notice| {
            if let Some(watch) = watch.upgrade() {
                watch.heard(notice);
            }
        });
        receiver
    }

    /// The saver's work is over.
    pub(super) fn stop_saving(&self) {
        self.saving.end();
    }

    fn down_since(&self) -> MutexGuard<'_, Vec<(UpstreamId, Timestamp)>> {
        self.down_since
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn heard(&self, notice: Notice) {
        let now = self.hub.surroundings().now();
        self.saving.hear(&notice);
        self.log.hear(&notice, &self.hub, now, |upstream| {
            self.faults.last(upstream).map(|fault| fault.told())
        });
        match notice {
            Notice::RateLimited { ours, .. } => {
                Counters::add(&self.counters.rate_limited, 1);
                Counters::add(&self.counters.rate_limited_ours, u64::from(ours));
            }
            // That one is open is seen below: of two notices, the earlier may be told last.
            Notice::BreakerClosed(upstream) => {
                self.down_since().retain(|(other, _)| *other != upstream);
            }
            _ => {}
        }
        self.look(now);
    }

    /// Since when a breaker has been open, as far as anybody has looked; none while it is closed.
    fn down(&self, upstream: UpstreamId, breaker: BreakerState, now: Now) -> Option<Timestamp> {
        let mut down = self.down_since();
        if breaker == BreakerState::Closed {
            down.retain(|(other, _)| *other != upstream);
            return None;
        }
        if let Some((_, since)) = down.iter().find(|(other, _)| *other == upstream) {
            return Some(*since);
        }
        down.push((upstream, now.mono));
        Some(now.mono)
    }

    /// What stands in the way, as the dispatcher has it at one moment: so what is said does not
    /// depend on which of several reasons is heard of first.
    fn standing(&self) -> Standing {
        let now = self.hub.surroundings().now();
        let (routes, stands_until) = self.hub.with(|dispatcher| {
            let routes = self.names.iter().map(|(id, name)| {
                let view = dispatcher.upstream_view(*id);
                RouteState {
                    name: name.clone(),
                    closed: view.closed,
                    quota: dispatcher
                        .quota(*id)
                        // Rows are `low`.
                        .and_then(|quota| quota.pause_of(PauseScope::BelowHigh, now))
                        .map(|advice| (advice.reason.to_string(), advice.resume_at)),
                    down_since: self.down(*id, view.breaker, now),
                    fault: self.faults.last(*id),
                }
            });
            (routes.collect(), dispatcher.stands_until(self.queue))
        });
        Standing {
            routes,
            stands_until,
            answered: Counters::get(&self.counters.answers) > 0,
            no_wait: self.no_wait,
        }
    }

    fn update_pause(&self, standing: &Standing, now: Now) {
        let paused = standing.pause(now);
        self.counters.with_pause(|clock| match paused {
            Some(pause) => clock.begin(pause, now),
            None => clock.end(now),
        });
    }

    /// Something changed: it is looked at again by whoever waits for the end.
    fn look(&self, now: Now) {
        self.update_pause(&self.standing(), now);
        self.changed.notify_one();
    }

    /// Completes when going on has no sense.
    pub(super) async fn must_stop(&self) -> Ended {
        loop {
            let now = self.hub.surroundings().now();
            let standing = self.standing();
            self.update_pause(&standing, now);
            if let Some(ended) = standing.verdict(now) {
                return ended;
            }
            // Either is reason enough to look again.
            let _ = tokio::time::timeout(LOOK, self.changed.notified()).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use llmq_core::{Clock, FailureClass};
    use llmq_dispatch::{Call, Dispatcher, QueueSetup, Rules, UpstreamSetup};

    use super::*;
    use crate::{SystemClock, Tasks};

    /// Notices of two threads came in the opposite order: a breaker that had long been closed was
    /// told to be open, and after an hour a run that went well ended for its provider's silence.
    #[tokio::test(start_paused = true)]
    async fn only_a_breaker_that_is_open_is_down() {
        let tasks = Tasks::new();
        let clock = SystemClock::new();
        let mut dispatcher = Dispatcher::new(Rules::default(), 1);
        let up = dispatcher.add_upstream(UpstreamSetup::default(), clock.now());
        let queue = dispatcher.add_queue(QueueSetup::to("m", up));
        let tenant = dispatcher.add_tenant(1.0, Vec::new());
        let hub = crate::run(dispatcher, clock, &tasks);
        let names = [(up, "up".to_owned())];
        let (counters, faults) = (Arc::default(), Arc::default());
        let watch = Watch::new(Arc::clone(&hub), &names, counters, faults, false, queue);
        watch.heard(Notice::BreakerClosed(up));
        watch.heard(Notice::BreakerOpened(up));
        assert_eq!(watch.standing().routes[0].down_since, None);

        while hub.with(|dispatcher| dispatcher.upstream_view(up).breaker) == BreakerState::Closed {
            let ticket = hub.submit(Call::new(queue, tenant)).expect("room");
            let grant = ticket.granted().await.expect("nothing in its way");
            grant.sent();
            let class = FailureClass::Overload;
            let (told, text) = (None, None);
            let _ = grant.fail(llmq_dispatch::Ended {
                outcome: llmq_dispatch::Outcome::Failed { class, told, text },
                ..llmq_dispatch::Ended::default()
            });
        }
        let since = watch.standing().routes[0].down_since;
        assert!(since.is_some());
        tokio::time::advance(LOOK * 2).await;
        assert_eq!(
            watch.standing().routes[0].down_since,
            since,
            "the first look"
        );
        tasks.cancel();
    }
}
