use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use llmq_core::{Clock, Now, Timestamp};
use llmq_dispatch::{Dispatcher, Notice, Shared, Surroundings};
use tokio::sync::Notify;

use crate::clock::SystemClock;
use crate::tasks::Tasks;

/// A dispatcher that runs: behind its lock, with the system's clock and a timer.
pub type Hub = Shared<Running>;

/// A place in a running dispatcher's line.
pub type Ticket = llmq_dispatch::Ticket<Running>;

/// Leave to send one call.
pub type Grant = llmq_dispatch::Grant<Running>;

/// What follows from a failed attempt.
pub type AfterFailure = llmq_dispatch::AfterFailure<Running>;

/// No timer sleeps longer without looking at the wall clock again.
const NAP: Duration = Duration::from_secs(60);

/// Who hears what a running dispatcher has to tell.
pub trait Listener: Send + Sync {
    /// Something that people want to know. Must not block.
    fn notice(&self, notice: Notice);
}

impl<F: Fn(Notice) + Send + Sync> Listener for F {
    fn notice(&self, notice: Notice) {
        self(notice);
    }
}

/// The world around a running dispatcher: clock, alarm, listener.
pub struct Running {
    clock: SystemClock,
    alarm: Arc<Notify>,
    listener: OnceLock<Box<dyn Listener>>,
}

impl Surroundings for Running {
    fn now(&self) -> Now {
        self.clock.now()
    }

    fn alarm(&self, _at: Timestamp) {
        self.alarm.notify_one();
    }

    fn notice(&self, notice: Notice) {
        if let Some(listener) = self.listener.get() {
            listener.notice(notice);
        }
    }
}

/// Sets a dispatcher running: its timer is one task of `tasks` and ends with the hub or when
/// `tasks` are cancelled.
#[must_use]
pub fn run(dispatcher: Dispatcher, clock: SystemClock, tasks: &Tasks) -> Arc<Hub> {
    let alarm = Arc::new(Notify::new());
    let running = Running {
        clock,
        alarm: Arc::clone(&alarm),
        listener: OnceLock::new(),
    };
    let hub = Shared::new(dispatcher, running);
    tasks.spawn(keep_time(Arc::downgrade(&hub), alarm, tasks.clone()));
    hub
}

/// Lets `listener` hear what the hub has to tell; only the first one is heard.
pub fn listen(hub: &Hub, listener: impl Listener + 'static) {
    let _ = hub.surroundings().listener.set(Box::new(listener));
}

async fn keep_time(hub: Weak<Hub>, alarm: Arc<Notify>, tasks: Tasks) {
    loop {
        let due = {
            let Some(hub) = hub.upgrade() else { return };
            let next = hub.tick();
            let clock = &hub.surroundings().clock;
            let nap = tokio::time::Instant::now() + NAP;
            next.map_or(nap, |next| clock.instant(next).min(nap))
        };
        tokio::select! {
            () = tokio::time::sleep_until(due) => {}
            () = alarm.notified() => {}
            () = tasks.cancelled() => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use llmq_core::{Host, LimitSpec};
    use llmq_dispatch::{Call, LimitSetup, QueueSetup, Rules, Scope, UpstreamSetup};
    use llmq_limit::charge_rule;

    use super::*;

    fn hub(limit: &str, tasks: &Tasks) -> (Arc<Hub>, Call) {
        let clock = SystemClock::new();
        let mut dispatcher = Dispatcher::new(Rules::default(), 1);
        let spec: LimitSpec = limit.parse().unwrap();
        let rule = charge_rule(Host::Unknown, spec.kind);
        let setup = LimitSetup {
            name: spec.name(),
            spec,
            rule,
            scope: Scope::Upstream,
        };
        let limit = dispatcher.add_limit(setup, clock.now());
        let upstream = UpstreamSetup {
            limits: vec![limit],
            ..UpstreamSetup::default()
        };
        let upstream = dispatcher.add_upstream(upstream, clock.now());
        let queue = dispatcher.add_queue(QueueSetup::to("m", upstream));
        let tenant = dispatcher.add_tenant(1.0, Vec::new());
        (run(dispatcher, clock, tasks), Call::new(queue, tenant))
    }

    #[tokio::test(start_paused = true)]
    async fn waiting_calls_start_when_their_window_frees_them() {
        let tasks = Tasks::new();
        let (hub, call) = hub("requests=2/10s", &tasks);
        let start = tokio::time::Instant::now();
        for _ in 0..5 {
            let grant = hub.submit(call).unwrap().granted().await.unwrap();
            grant.sent();
            grant.complete(llmq_dispatch::Ended::default());
        }
        let took = start.elapsed();
        assert!(
            took >= Duration::from_secs(20) && took < Duration::from_millis(20_100),
            "{took:?}"
        );
        tasks.cancel();
        assert!(tasks.ended(Duration::from_secs(1)).await);
    }

    #[tokio::test(start_paused = true)]
    async fn the_timer_ends_with_its_hub() {
        let tasks = Tasks::new();
        let (hub, _) = hub("requests=2/10s", &tasks);
        drop(hub);
        assert!(tasks.ended(NAP * 2).await);
    }
}
