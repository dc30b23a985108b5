use std::convert::Infallible;
use std::task::{Context, Poll, Waker};

use llmq_core::{CallSize, Clock, Host, LimitSpec};
use llmq_dispatch::{Call, LimitSetup, QueueSetup, Rules, Scope, UpstreamSetup};
use llmq_limit::charge_rule;

use super::*;
use crate::hub::{Grant, Ticket};
use crate::{SystemClock, Tasks};

/// A hub with one long limit, of which nothing may be used before its books are written.
fn hub(limit: &str, tasks: &Tasks) -> (Arc<Hub>, Call, LimitId) {
    let clock = SystemClock::new();
    let mut dispatcher = Dispatcher::new(Rules::default(), 1);
    let spec: LimitSpec = limit.parse().unwrap();
    let setup = LimitSetup {
        name: spec.name(),
        spec,
        rule: charge_rule(Host::Unknown, spec.kind),
        scope: Scope::Upstream,
    };
    let limit = dispatcher.add_limit(setup, clock.now());
    dispatcher.limit_mut(limit).allow(Some(0));
    let upstream = UpstreamSetup {
        limits: vec![limit],
        ..UpstreamSetup::default()
    };
    let upstream = dispatcher.add_upstream(upstream, clock.now());
    let queue = dispatcher.add_queue(QueueSetup::to("m", upstream));
    let tenant = dispatcher.add_tenant(1.0, Vec::new());
    let hub = crate::run(dispatcher, clock, tasks);
    (hub, Call::new(queue, tenant), limit)
}

fn granted(ticket: &mut Ticket) -> Option<Grant> {
    match ticket.poll_granted(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(Ok(grant)) => Some(grant),
        Poll::Ready(Err(error)) => panic!("{error}"),
        Poll::Pending => None,
    }
}

/// A shelf on which writing takes so long that calls start meanwhile.
struct Slow {
    hub: Arc<Hub>,
    call: Call,
    /// How many start while each page is written.
    meanwhile: Vec<usize>,
    grants: Vec<Grant>,
    pages: Vec<Page>,
}

impl Shelf for &mut Slow {
    type Error = Infallible;

    fn learners(&self) -> Vec<(UpstreamId, String)> {
        Vec::new()
    }

    fn put(&mut self, page: Page) -> Result<(), Infallible> {
        self.pages.push(page);
        for _ in 0..self.meanwhile.pop().unwrap_or(0) {
            let mut ticket = self.hub.submit(self.call).expect("room");
            let grant = granted(&mut ticket).expect("it is allowed");
            grant.sent();
            self.grants.push(grant);
        }
        Ok(())
    }
}

/// A portion was allowed from where the limit stood when the books were on disk, and once more
/// for each time it had been asked for: what had started while they were written was in none.
#[tokio::test]
async fn what_starts_while_the_books_are_written_is_inside_what_they_say() {
    let tasks = Tasks::new();
    let (hub, call, limit) = hub("requests=1000/1d", &tasks);
    let mut shelf = Slow {
        hub: Arc::clone(&hub),
        call,
        meanwhile: vec![5, 0],
        grants: Vec::new(),
        pages: Vec::new(),
    };
    let mut keeper = Keeper::new(Arc::clone(&hub), &mut shelf);
    for _ in 0..2 {
        let kept = keeper.keep(false, &[Save::Portion(limit)]).unwrap();
        kept.into_iter().for_each(|kept| keeper.tell(kept));
    }
    let used = |page: &Page| -> u64 {
        let parts = page.spent.limits.values().flat_map(|parts| &parts.used);
        parts.map(|(_, used)| used).sum()
    };
    assert_eq!(shelf.pages.iter().map(used).collect::<Vec<_>>(), [10, 10]);
    let allowed = hub.with(|dispatcher| dispatcher.limit_mut(limit).allowed());
    assert_eq!(allowed, Some(5), "ten may be used, and five are");
    tasks.cancel();
}

/// A call that is charged more than a portion at once, such as 2,000 tokens of 100,000 a day,
/// was never let start.
#[tokio::test]
async fn a_call_larger_than_a_portion_starts_when_the_books_hold_it() {
    let tasks = Tasks::new();
    let (hub, call, limit) = hub("tokens=1000/1d", &tasks);
    let wanted = Wanted::default();
    let asked = wanted.open();
    crate::listen(&hub, move |notice: Notice| wanted.hear(&notice));
    let call = Call {
        size: CallSize {
            input_tokens: 25,
            ..CallSize::default()
        },
        ..call
    };
    let mut shelf = Slow {
        hub: Arc::clone(&hub),
        call,
        meanwhile: Vec::new(),
        grants: Vec::new(),
        pages: Vec::new(),
    };
    let mut ticket = hub.submit(call).expect("room");
    assert!(granted(&mut ticket).is_none());
    let mut keeper = Keeper::new(Arc::clone(&hub), &mut shelf);
    let asked: Vec<Save> = asked.try_iter().collect();
    assert_eq!(asked, [Save::Portion(limit)]);
    let kept = keeper.keep(false, &asked).unwrap();
    kept.into_iter().for_each(|kept| keeper.tell(kept));
    assert!(granted(&mut ticket).is_some());
    tasks.cancel();
}
