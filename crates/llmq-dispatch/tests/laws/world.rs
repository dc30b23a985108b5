//! A dispatcher with a clock that the test moves, and what several laws set up alike.

use std::time::Duration;

use llmq_core::{FailureClass, Host, LimitSpec, Now, Timestamp, WallTime};
use llmq_dispatch::{
    Call, Dispatcher, Effect, Ended, Event, LimitId, LimitSetup, Outcome, QueueId, QueueSetup,
    Refusal, Rules, Scope, TenantId, TicketId, UpstreamId, UpstreamSetup,
};
use llmq_limit::charge_rule;

pub(crate) const SECOND: Duration = Duration::from_secs(1);
pub(crate) const MINUTE: Duration = Duration::from_secs(60);

/// A dispatcher with a clock that the test moves.
pub(crate) struct World {
    pub(crate) dispatcher: Dispatcher,
    pub(crate) now: Now,
    pub(crate) tenant: TenantId,
    pub(crate) effects: Vec<Effect>,
}

impl World {
    pub(crate) fn new() -> Self {
        Self::with(Rules::default())
    }

    pub(crate) fn with(rules: Rules) -> Self {
        let mut dispatcher = Dispatcher::new(rules, 7);
        let tenant = dispatcher.add_tenant(1.0, Vec::new());
        let start = Duration::from_secs(1_000);
        let now = Now {
            mono: Timestamp::ZERO + start,
            wall: WallTime::from_micros(0) + start,
        };
        Self {
            dispatcher,
            now,
            tenant,
            effects: Vec::new(),
        }
    }

    pub(crate) fn limit(&mut self, text: &str, scope: Scope) -> LimitId {
        let spec: LimitSpec = text.parse().expect("a limit");
        let rule = charge_rule(Host::Unknown, spec.kind);
        self.dispatcher.add_limit(
            LimitSetup {
                name: spec.name(),
                spec,
                rule,
                scope,
            },
            self.now,
        )
    }

    pub(crate) fn upstream(&mut self, limits: &[LimitId]) -> UpstreamId {
        let setup = UpstreamSetup {
            name: "up".into(),
            limits: limits.to_vec(),
            ..UpstreamSetup::default()
        };
        self.dispatcher.add_upstream(setup, self.now)
    }

    pub(crate) fn queue(&mut self, upstream: UpstreamId) -> QueueId {
        self.dispatcher.add_queue(QueueSetup::to("m", upstream))
    }

    /// One queue over one upstream with these limits.
    pub(crate) fn simple(limits: &[&str]) -> (Self, QueueId, UpstreamId) {
        let mut world = Self::new();
        let limits: Vec<LimitId> = limits
            .iter()
            .map(|text| world.limit(text, Scope::Upstream))
            .collect();
        let upstream = world.upstream(&limits);
        let queue = world.queue(upstream);
        (world, queue, upstream)
    }

    /// A queue with a fallback, each over an upstream of its own: the queue's and the fallback's.
    pub(crate) fn with_fallback(max_attempts: u32) -> (Self, QueueId, [UpstreamId; 2]) {
        let mut world = Self::new();
        let upstreams = [(); 2].map(|()| world.upstream(&[]));
        let fallback = world.queue(upstreams[1]);
        let queue = world.dispatcher.add_queue(QueueSetup {
            fallback: vec![fallback],
            max_attempts,
            ..QueueSetup::to("m", upstreams[0])
        });
        (world, queue, upstreams)
    }

    pub(crate) fn call(&self, queue: QueueId) -> Call {
        Call::new(queue, self.tenant)
    }

    pub(crate) fn submit(&mut self, call: Call) -> TicketId {
        self.try_submit(call).expect("accepted")
    }

    pub(crate) fn try_submit(&mut self, call: Call) -> Result<TicketId, Refusal> {
        self.dispatcher.submit(call, self.now, &mut self.effects)
    }

    pub(crate) fn tell(&mut self, event: Event) {
        self.dispatcher.handle(event, self.now, &mut self.effects);
    }

    pub(crate) fn sent(&mut self, ticket: TicketId) {
        self.tell(Event::Sent(ticket, self.now.mono));
    }

    pub(crate) fn complete(&mut self, ticket: TicketId) {
        self.sent(ticket);
        self.tell(Event::Ended(ticket, Box::default()));
    }

    pub(crate) fn fail(&mut self, ticket: TicketId, class: FailureClass, told: Option<Duration>) {
        self.sent(ticket);
        self.tell(Event::Ended(ticket, Box::new(failure(class, told))));
    }

    pub(crate) fn advance(&mut self, span: Duration) {
        let until = self.now.after(span);
        while let Some(wake) = self
            .dispatcher
            .next_wake()
            .filter(|wake| *wake <= until.mono)
        {
            let step = wake - self.now.mono;
            self.now = self.now.after(step);
            self.tell(Event::Tick);
        }
        self.now = until;
        self.tell(Event::Tick);
    }

    /// The calls that were started since this was last asked, in order.
    pub(crate) fn started(&mut self) -> Vec<TicketId> {
        let started = self.effects.iter().filter_map(|effect| match effect {
            Effect::Start(start) => Some(start.ticket),
            _ => None,
        });
        let started = started.collect();
        self.effects
            .retain(|effect| !matches!(effect, Effect::Start(_)));
        started
    }
}

/// How a call ended that failed.
pub(crate) fn failure(class: FailureClass, told: Option<Duration>) -> Ended {
    let outcome = Outcome::Failed {
        class,
        told,
        text: None,
    };
    Ended {
        outcome,
        ..Ended::default()
    }
}
