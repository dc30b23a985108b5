//! Grant against drop, in every interleaving: `RUSTFLAGS="--cfg loom" cargo test --release
//! -p llmq-dispatch --test loom`.
#![cfg(loom)]

use std::task::{Context, Poll, Waker};

use llmq_core::{Host, LimitSpec, Now, Timestamp};
use llmq_dispatch::{
    Call, Dispatcher, LimitSetup, Notice, QueueSetup, Rules, Scope, Shared, Surroundings, Ticket,
    UpstreamSetup,
};
use llmq_limit::charge_rule;

struct Still;

impl Surroundings for Still {
    fn now(&self) -> Now {
        Now::default()
    }

    fn alarm(&self, _at: Timestamp) {}

    fn notice(&self, _notice: Notice) {}
}

fn one_place() -> (std::sync::Arc<Shared<Still>>, Call) {
    let mut dispatcher = Dispatcher::new(Rules::default(), 1);
    let spec = LimitSpec::concurrency(1);
    let rule = charge_rule(Host::Unknown, spec.kind);
    let setup = LimitSetup {
        name: "places".into(),
        spec,
        rule,
        scope: Scope::Upstream,
    };
    let limit = dispatcher.add_limit(setup, Now::default());
    let upstream = dispatcher.add_upstream(
        UpstreamSetup {
            limits: vec![limit],
            ..UpstreamSetup::default()
        },
        Now::default(),
    );
    let queue = dispatcher.add_queue(QueueSetup::to("m", upstream));
    let tenant = dispatcher.add_tenant(1.0, Vec::new());
    (Shared::new(dispatcher, Still), Call::new(queue, tenant))
}

fn poll(ticket: &mut Ticket<Still>) -> Option<llmq_dispatch::Grant<Still>> {
    match ticket.poll_granted(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(Ok(grant)) => Some(grant),
        Poll::Ready(Err(error)) => panic!("{error}"),
        Poll::Pending => None,
    }
}

#[test]
fn a_place_is_never_lost_between_a_grant_and_a_drop() {
    loom::model(|| {
        let (shared, call) = one_place();
        let mut first = shared.submit(call).expect("room");
        let grant = poll(&mut first).expect("granted at once");
        let second = shared.submit(call).expect("room to wait");

        // One thread ends the running call, which grants the second; the other drops the second.
        let ending = loom::thread::spawn(move || {
            grant.sent();
            grant.complete(llmq_dispatch::Ended::default());
        });
        let dropping = loom::thread::spawn(move || drop(second));
        ending.join().expect("no panic");
        dropping.join().expect("no panic");
        assert_eq!(shared.places(), 0, "nobody is left to be told anything");

        let mut third = shared.submit(call).expect("room");
        assert!(poll(&mut third).is_some(), "the place is free again");
    });
}

#[test]
fn a_grant_that_comes_while_its_owner_looks_is_seen_once() {
    loom::model(|| {
        let (shared, call) = one_place();
        let mut first = shared.submit(call).expect("room");
        let grant = poll(&mut first).expect("granted at once");
        let mut second = shared.submit(call).expect("room to wait");
        let ending = loom::thread::spawn(move || drop(grant));
        let early = poll(&mut second);
        ending.join().expect("no panic");
        let granted = match early {
            Some(grant) => grant,
            None => poll(&mut second).expect("granted by now"),
        };
        drop(granted);
        drop(second);
        let mut third = shared.submit(call).expect("room");
        assert!(poll(&mut third).is_some());
    });
}
