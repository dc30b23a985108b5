use std::sync::Mutex;
use std::task::Waker;
use std::time::Duration;

use super::*;
use crate::{LimitSetup, QueueSetup, Rules, UpstreamSetup};

/// A world whose clock the test moves.
#[derive(Default)]
struct Moved(Mutex<Now>);

impl Moved {
    fn advance(&self, span: Duration) {
        let mut now = self.0.lock().expect("nobody panics under it");
        *now = now.after(span);
    }
}

impl Surroundings for Moved {
    fn now(&self) -> Now {
        *self.0.lock().expect("nobody panics under it")
    }

    fn alarm(&self, _at: Timestamp) {}

    fn notice(&self, _notice: Notice) {}
}

/// A caller whose patience ends with the call's own `start_by`, as it usually does, dropped its
/// ticket in the moment in which it expired: the word of that was left for nobody, for ever.
#[test]
fn a_ticket_that_is_dropped_as_it_expires_leaves_nothing_behind() {
    const WAIT: Duration = Duration::from_secs(60);
    let mut dispatcher = Dispatcher::new(Rules::default(), 1);
    let places = LimitSetup::places("places".to_owned(), 1);
    let limit = dispatcher.add_limit(places, Now::default());
    let setup = UpstreamSetup {
        limits: vec![limit],
        ..UpstreamSetup::default()
    };
    let upstream = dispatcher.add_upstream(setup, Now::default());
    let queue = dispatcher.add_queue(QueueSetup::to("m", upstream));
    let tenant = dispatcher.add_tenant(1.0, Vec::new());
    let shared = Shared::new(dispatcher, Moved::default());

    let context = &mut Context::from_waker(Waker::noop());
    let mut first = shared.submit(Call::new(queue, tenant)).expect("room");
    let Poll::Ready(Ok(grant)) = first.poll_granted(context) else {
        panic!("the first call has room");
    };
    let mut second = shared
        .submit(Call {
            start_by: Some(shared.surroundings().now().mono + WAIT),
            ..Call::new(queue, tenant)
        })
        .expect("room to wait");
    assert!(second.poll_granted(context).is_pending());
    assert_eq!(shared.places(), 1);
    shared.surroundings().advance(WAIT);
    drop(second);
    assert_eq!(shared.places(), 0);
    drop(grant);
    assert_eq!(shared.places(), 0);
}

/// A thread that had waited for the lock asked a fixed window that was over, and sent what belongs
/// into the next one, which was full.
#[test]
fn time_never_goes_back_for_those_who_waited_for_the_lock() {
    let mut dispatcher = Dispatcher::new(Rules::default(), 1);
    let spec: llmq_core::LimitSpec = "requests=2/1m:fixed".parse().expect("a limit");
    let setup = LimitSetup {
        spec,
        rule: llmq_limit::charge_rule(llmq_core::Host::Unknown, spec.kind),
        ..LimitSetup::places("rpm".to_owned(), 2)
    };
    let limit = dispatcher.add_limit(setup, Now::default());
    let setup = UpstreamSetup {
        limits: vec![limit],
        ..UpstreamSetup::default()
    };
    let upstream = dispatcher.add_upstream(setup, Now::default());
    let queue = dispatcher.add_queue(QueueSetup::to("m", upstream));
    let tenant = dispatcher.add_tenant(1.0, Vec::new());
    let shared = Shared::new(dispatcher, Moved::default());
    let early = Now::default().after(Duration::from_millis(59_990));
    shared.surroundings().advance(Duration::from_millis(60_100));

    let context = &mut Context::from_waker(Waker::noop());
    let call = Call::new(queue, tenant);
    let mut grants = Vec::new();
    for _ in 0..2 {
        let mut ticket = shared.submit(call).expect("room");
        let Poll::Ready(Ok(grant)) = ticket.poll_granted(context) else {
            panic!("there is room in this window");
        };
        grant.sent();
        grants.push(grant);
    }
    *shared
        .surroundings()
        .0
        .lock()
        .expect("nobody panics under it") = early;
    let urgent = Call {
        priority: llmq_core::Priority::HIGH,
        ..call
    };
    let mut ticket = shared.submit(urgent).expect("room to wait");
    assert!(ticket.poll_granted(context).is_pending());
}
