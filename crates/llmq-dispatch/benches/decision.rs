//! What a decision costs while 100,000 calls wait.
//!
//! `cargo bench -p llmq-dispatch` prints one JSON object a line: nanoseconds of each step of a
//! call's life, the median over rounds with the smallest and the largest. Without `--bench` (as
//! `cargo test` runs it) the counts are small and the figures mean nothing.

use std::time::Duration;

use llmq_core::{CallSize, Host, LimitSpec, Now, Timestamp, Usage, WallTime};
use llmq_dispatch::{
    Call, Capacity, Dispatcher, Effect, Ended, Event, LimitId, LimitSetup, QueueId, QueueSetup,
    Rules, Scope, TenantId, TicketId, UpstreamSetup,
};
use llmq_limit::charge_rule;

/// Calls in flight, where a limit on them binds: each step is timed over so many of them, since
/// a clock read for each would cost about as much as the step.
const IN_FLIGHT: usize = 1_000;

/// A world whose waiting line is kept at one length.
struct Scene {
    name: &'static str,
    limits: &'static [&'static str],
    lanes: usize,
    /// Whether time has to pass before the next call may start, or an end suffices.
    opens: Opens,
}

enum Opens {
    AtAnEnd,
    WithTime,
}

const SCENES: &[Scene] = &[
    Scene {
        name: "one lane, calls in flight bind",
        limits: &["concurrency=1000"],
        lanes: 1,
        opens: Opens::AtAnEnd,
    },
    Scene {
        name: "1,000 lanes, calls in flight bind",
        limits: &["concurrency=1000"],
        lanes: 1_000,
        opens: Opens::AtAnEnd,
    },
    Scene {
        name: "one lane, three limits, calls in flight bind",
        limits: &[
            "requests=1000M/1m",
            "tokens=1000000M/1m",
            "concurrency=1000",
        ],
        lanes: 1,
        opens: Opens::AtAnEnd,
    },
    Scene {
        name: "1,000 lanes, three limits, calls in flight bind",
        limits: &[
            "requests=1000M/1m",
            "tokens=1000000M/1m",
            "concurrency=1000",
        ],
        lanes: 1_000,
        opens: Opens::AtAnEnd,
    },
    Scene {
        name: "one lane, three limits, requests bind",
        limits: &["requests=5k/10s", "tokens=1000000M/1m", "concurrency=10k"],
        lanes: 1,
        opens: Opens::WithTime,
    },
    Scene {
        name: "1,000 lanes, three limits, requests bind",
        limits: &["requests=5k/10s", "tokens=1000000M/1m", "concurrency=10k"],
        lanes: 1_000,
        opens: Opens::WithTime,
    },
];

fn main() {
    let measured = std::env::args().any(|arg| arg == "--bench");
    let (waiting, rounds) = if measured { (100_000, 60) } else { (2_000, 3) };
    for scene in SCENES {
        let mut bench = Bench::new(scene, waiting);
        let times: Vec<Times> = (0..rounds)
            .map(|_| match scene.opens {
                Opens::AtAnEnd => bench.ends_open(),
                Opens::WithTime => bench.time_opens(),
            })
            .collect();
        tell(scene, waiting, &times);
    }
}

/// What one round took, in nanoseconds a call.
struct Times {
    submit: f64,
    sent: f64,
    /// From the event that makes room to the effect that starts the next call.
    grant: f64,
    /// An end that starts nothing; part of `grant` where ends make room.
    ended: f64,
}

struct Bench {
    dispatcher: Dispatcher,
    now: Now,
    queue: QueueId,
    tenants: Vec<TenantId>,
    submitted: usize,
    in_flight: Vec<TicketId>,
    effects: Vec<Effect>,
}

impl Bench {
    fn new(scene: &Scene, waiting: usize) -> Self {
        let mut dispatcher = Dispatcher::new(Rules::default(), 7);
        let start = Duration::from_secs(1_000);
        let now = Now {
            mono: Timestamp::ZERO + start,
            wall: WallTime::from_micros(0) + start,
        };
        let limits = scene.limits.iter();
        let limits = limits
            .map(|text| add_limit(&mut dispatcher, text, now))
            .collect();
        let setup = UpstreamSetup {
            name: "up".into(),
            limits,
            ..UpstreamSetup::default()
        };
        let upstream = dispatcher.add_upstream(setup, now);
        let mut queue = QueueSetup::to("m", upstream);
        queue.capacity = Capacity::unbounded();
        let queue = dispatcher.add_queue(queue);
        let tenants = (0..scene.lanes)
            .map(|_| dispatcher.add_tenant(1.0, Vec::new()))
            .collect();
        let mut bench = Self {
            dispatcher,
            now,
            queue,
            tenants,
            submitted: 0,
            in_flight: Vec::new(),
            effects: Vec::new(),
        };
        while bench.submitted < waiting + bench.in_flight.len() {
            bench.submit();
            bench.take_started();
        }
        bench
    }

    fn submit(&mut self) {
        let tenant = self.tenants[self.submitted % self.tenants.len()];
        self.submitted += 1;
        let call = Call {
            size: CallSize::of_input(20),
            bytes: 100,
            ..Call::new(self.queue, tenant)
        };
        self.dispatcher
            .submit(call, self.now, &mut self.effects)
            .expect("the queue has no bound");
    }

    fn tell(&mut self, event: Event) {
        self.dispatcher.handle(event, self.now, &mut self.effects);
    }

    fn take_started(&mut self) {
        for effect in self.effects.drain(..) {
            if let Effect::Start(start) = effect {
                self.in_flight.push(start.ticket);
            }
        }
    }

    fn end(&mut self, ticket: TicketId) {
        let ended = Ended {
            usage: Some(Usage {
                input_tokens: 20,
                output_tokens: 40,
                ..Usage::default()
            }),
            ..Ended::default()
        };
        self.tell(Event::Ended(ticket, Box::new(ended)));
    }

    /// A thousand calls end, and each end starts the next in line.
    fn ends_open(&mut self) -> Times {
        self.now = self.now.after(Duration::from_millis(20));
        let running = std::mem::take(&mut self.in_flight);
        let sent = nanos_each(running.len(), || {
            for ticket in &running {
                self.tell(Event::Sent(*ticket, self.now.mono));
            }
        });
        let grant = nanos_each(running.len(), || {
            for ticket in &running {
                self.end(*ticket);
            }
        });
        self.take_started();
        assert_eq!(
            self.in_flight.len(),
            running.len(),
            "each end starts a call"
        );
        let submit = nanos_each(running.len(), || {
            for _ in &running {
                self.submit();
            }
        });
        Times {
            submit,
            sent,
            grant,
            ended: grant,
        }
    }

    /// A limit opens bit by bit, as often as the dispatcher wants to be woken.
    fn time_opens(&mut self) -> Times {
        // What the first instant allowed.
        let left = std::mem::take(&mut self.in_flight);
        self.finish(&left);
        let (mut granting, mut sending) = (Duration::ZERO, Duration::ZERO);
        let mut started = Vec::new();
        while started.len() < IN_FLIGHT {
            let wake = self.dispatcher.next_wake().expect("calls wait for time");
            self.now = self.now.after(wake - self.now.mono);
            granting += timed(|| self.tell(Event::Tick));
            self.take_started();
            // Their answers come at once, so that only time holds the others back.
            let just = std::mem::take(&mut self.in_flight);
            sending += timed(|| {
                for ticket in &just {
                    self.tell(Event::Sent(*ticket, self.now.mono));
                }
            });
            started.extend(just);
        }
        let (grant, sent) = (each(granting, started.len()), each(sending, started.len()));
        let ended = nanos_each(started.len(), || {
            for ticket in &started {
                self.end(*ticket);
            }
        });
        let submit = nanos_each(started.len(), || {
            for _ in &started {
                self.submit();
            }
        });
        self.take_started();
        Times {
            submit,
            sent,
            grant,
            ended,
        }
    }

    fn finish(&mut self, tickets: &[TicketId]) {
        for ticket in tickets {
            self.tell(Event::Sent(*ticket, self.now.mono));
            self.end(*ticket);
            self.submit();
        }
        self.take_started();
    }
}

fn add_limit(dispatcher: &mut Dispatcher, text: &str, now: Now) -> LimitId {
    let spec: LimitSpec = text.parse().expect("a limit");
    let setup = LimitSetup {
        name: spec.name(),
        spec,
        rule: charge_rule(Host::Unknown, spec.kind),
        scope: Scope::Upstream,
    };
    dispatcher.add_limit(setup, now)
}

#[expect(
    clippy::disallowed_methods,
    reason = "what is measured is real time, and nothing here waits"
)]
fn timed(work: impl FnOnce()) -> Duration {
    let start = std::time::Instant::now();
    work();
    start.elapsed()
}

#[expect(clippy::cast_precision_loss, reason = "small counts")]
fn each(time: Duration, count: usize) -> f64 {
    time.as_secs_f64() * 1e9 / count.max(1) as f64
}

fn nanos_each(count: usize, work: impl FnOnce()) -> f64 {
    each(timed(work), count)
}

fn tell(scene: &Scene, waiting: usize, times: &[Times]) {
    let of = |step: fn(&Times) -> f64| spread(times.iter().map(step).collect());
    println!(
        r#"{{"scene":"{}","waiting":{waiting},"lanes":{},"limits":{},"submit_ns":{},"sent_ns":{},"grant_ns":{},"ended_ns":{}}}"#,
        scene.name,
        scene.lanes,
        scene.limits.len(),
        of(|times| times.submit),
        of(|times| times.sent),
        of(|times| times.grant),
        of(|times| times.ended),
    );
}

/// The median with the smallest and the largest, as JSON.
fn spread(mut values: Vec<f64>) -> String {
    values.sort_by(f64::total_cmp);
    let at = |index: usize| values.get(index).copied().unwrap_or_default();
    format!(
        r#"{{"median":{:.0},"min":{:.0},"max":{:.0}}}"#,
        at(values.len() / 2),
        at(0),
        at(values.len().saturating_sub(1))
    )
}
