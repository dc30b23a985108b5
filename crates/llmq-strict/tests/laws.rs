//! The model against a naive oracle that keeps every charge for ever and sums them up anew for
//! each question.

use std::time::Duration;

use llmq_core::{Algorithm, LimitKind, LimitSpec, Timestamp, Usage};
use llmq_strict::{Arrival, CallId, Charge, StrictProvider};
use proptest::prelude::*;

const WALL_AT_ZERO: Duration = Duration::from_nanos(1_234_567_891);

/// One limit with all that was ever charged to it.
struct Oracle {
    spec: LimitSpec,
    charges: Vec<(u64, u64)>,
}

impl Oracle {
    /// Whether `amount` at `at` keeps the limit, by its definition.
    fn fits(&self, amount: u64, at: u64) -> bool {
        let (count, period) = (u128::from(self.spec.count), self.spec.period.as_nanos());
        let since = |from: u64| -> u128 {
            self.charges
                .iter()
                .filter(|(when, _)| *when >= from)
                .map(|(_, amount)| u128::from(*amount))
                .sum::<u128>()
                + u128::from(amount)
        };
        match self.spec.algorithm {
            Algorithm::Sliding => {
                let used: u128 = self
                    .charges
                    .iter()
                    .filter(|(when, _)| u128::from(*when) + period > u128::from(at))
                    .map(|(_, amount)| u128::from(*amount))
                    .sum();
                used + u128::from(amount) <= count
            }
            // Over any stretch up to now no more than a full bucket and what flowed in.
            Algorithm::Bucket { depth } => {
                let starts = self.charges.iter().map(|(when, _)| *when);
                starts.chain([at]).all(|start| {
                    since(start) * period <= count * (depth.as_nanos() + u128::from(at - start))
                })
            }
            Algorithm::Fixed => {
                let window = |when: u64| (u128::from(when) + WALL_AT_ZERO.as_nanos()) / period;
                let same = self
                    .charges
                    .iter()
                    .filter(|(when, _)| window(*when) == window(at));
                same.map(|(_, amount)| u128::from(*amount)).sum::<u128>() + u128::from(amount)
                    <= count
            }
        }
    }
}

/// What a limit of `kind` is charged when a call arrives, and what room it needs; written out
/// again from the providers' rules.
fn arrival_cost(kind: LimitKind, charge: Charge, call: &Arrival) -> (u64, u64) {
    let cap = call.max_output_tokens.unwrap_or(16) * u64::from(call.choices);
    match (kind, charge) {
        (LimitKind::Requests, _) => (1, 1),
        (LimitKind::InputTokens, _) => (call.input_tokens, call.input_tokens),
        (LimitKind::OutputTokens, Charge::Arrival) => (cap, cap),
        (LimitKind::Tokens, Charge::Arrival) => (call.input_tokens + cap, call.input_tokens + cap),
        (LimitKind::OutputTokens, _) => (0, 1),
        (LimitKind::Tokens, _) => (call.input_tokens, call.input_tokens.max(1)),
        (LimitKind::Concurrency, _) => unreachable!("not generated"),
    }
}

#[derive(Debug, Clone)]
struct Step {
    gap: u64,
    call: Arrival,
    output: u64,
    /// Which of the calls in flight produces or ends, if any.
    end: Option<prop::sample::Index>,
    part: bool,
}

fn spec() -> impl Strategy<Value = LimitSpec> {
    let kind = prop::sample::select(vec![
        LimitKind::Requests,
        LimitKind::Tokens,
        LimitKind::InputTokens,
        LimitKind::OutputTokens,
    ]);
    (kind, 1u64..6, 50u64..5_000, 0..3, 1u32..4).prop_map(|(kind, count, period, form, depth)| {
        let count = if kind == LimitKind::Requests {
            count
        } else {
            count * 40
        };
        let period = Duration::from_nanos(period);
        let algorithm = match form {
            0 => Algorithm::Sliding,
            1 => Algorithm::Bucket {
                depth: period / depth,
            },
            _ => Algorithm::Fixed,
        };
        LimitSpec::per(kind, count, period, algorithm)
    })
}

fn step() -> impl Strategy<Value = Step> {
    let call =
        (0u64..40, prop::option::of(0u64..30), 1u32..3).prop_map(|(input, cap, choices)| Arrival {
            input_tokens: input,
            max_output_tokens: cap,
            choices,
        });
    let gap = prop_oneof![Just(0u64), 1u64..20, 20u64..3_000];
    let end = prop::option::of(any::<prop::sample::Index>());
    (gap, call, 0u64..60, end, any::<bool>()).prop_map(|(gap, call, output, end, part)| Step {
        gap,
        call,
        output,
        end,
        part,
    })
}

fn charge() -> impl Strategy<Value = Charge> {
    prop::sample::select(vec![Charge::Arrival, Charge::Usage, Charge::Stream])
}

/// Puts half of the cases on a coarse grid of time, so that calls often fall exactly on an edge.
fn case(limits: usize) -> impl Strategy<Value = (Vec<LimitSpec>, Vec<Step>)> {
    let specs = prop::collection::vec(spec(), limits..4);
    let steps = prop::collection::vec(step(), 1..60);
    (any::<bool>(), specs, steps).prop_map(|(coarse, mut specs, mut steps)| {
        if coarse {
            for spec in &mut specs {
                let periods = u64::from(spec.period.subsec_nanos() % 8 + 1);
                spec.period = Duration::from_nanos(periods * 50);
                if let Algorithm::Bucket { depth } = &mut spec.algorithm {
                    *depth = spec.period;
                }
            }
            for step in &mut steps {
                step.gap = step.gap % 4 * 50;
            }
        }
        (specs, steps)
    })
}

/// A bucket shallower than its period lets a call above its capacity in when it is full. The
/// definition above does not know that, so such calls are left to the bucket's own tests.
fn above_capacity(spec: &LimitSpec, amount: u64) -> bool {
    match spec.algorithm {
        Algorithm::Bucket { depth } => {
            u128::from(amount) * spec.period.as_nanos() > u128::from(spec.count) * depth.as_nanos()
        }
        Algorithm::Sliding | Algorithm::Fixed => false,
    }
}

fn charge_output(oracles: &mut [Oracle], tokens: u64, at: u64) {
    for oracle in oracles {
        if let LimitKind::Tokens | LimitKind::OutputTokens = oracle.spec.kind {
            oracle.charges.push((at, tokens));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn a_call_is_admitted_exactly_when_every_limit_keeps_its_definition(
        (specs, steps) in case(0),
        charge in charge(),
    ) {
        let mut model = StrictProvider::new(&specs, charge, Timestamp::ZERO).with_wall_clock(WALL_AT_ZERO);
        let mut oracles: Vec<Oracle> =
            specs.iter().map(|spec| Oracle { spec: *spec, charges: Vec::new() }).collect();
        let mut open: Vec<(CallId, u64)> = Vec::new();
        let mut at = 0;
        for step in steps {
            at += step.gap;
            let now = Timestamp::from_nanos(at);
            if let (Some(which), false) = (&step.end, open.is_empty()) {
                let chosen = which.index(open.len());
                if step.part {
                    open[chosen].1 += step.output;
                    prop_assert!(model.produced(open[chosen].0, step.output, now));
                    if charge == Charge::Stream {
                        charge_output(&mut oracles, step.output, at);
                    }
                } else {
                    let (id, produced) = open.swap_remove(chosen);
                    let usage = Usage { output_tokens: step.output, ..Usage::default() };
                    prop_assert!(model.finish(id, usage, now));
                    prop_assert!(!model.finish(id, usage, now), "a call ends once");
                    match charge {
                        Charge::Arrival => {}
                        Charge::Usage => charge_output(&mut oracles, step.output, at),
                        Charge::Stream => {
                            charge_output(&mut oracles, step.output.saturating_sub(produced), at);
                        }
                    }
                }
            }
            let costs: Vec<(u64, u64)> =
                specs.iter().map(|spec| arrival_cost(spec.kind, charge, &step.call)).collect();
            if specs.iter().zip(&costs).any(|(spec, (_, room))| above_capacity(spec, *room)) {
                continue;
            }
            let fits = oracles.iter().zip(&costs).all(|(oracle, (_, room))| oracle.fits(*room, at));
            prop_assert_eq!(model.would_admit(&step.call, now), fits);
            let before = model.books(now);
            match model.arrive(&step.call, now) {
                Ok(id) => {
                    prop_assert!(fits);
                    open.push((id, 0));
                    for (oracle, (cost, _)) in oracles.iter_mut().zip(&costs) {
                        oracle.charges.push((at, *cost));
                    }
                }
                Err(refusal) => {
                    prop_assert!(!fits);
                    let (_, room) = costs[refusal.limit];
                    prop_assert_eq!(refusal.requested, room);
                    prop_assert!(!oracles[refusal.limit].fits(room, at), "this limit was broken");
                    for (before, after) in before.iter().zip(model.books(now)) {
                        prop_assert_eq!(before.used, after.used, "a refusal charges nothing");
                    }
                }
            }
            prop_assert_eq!(model.in_flight(), open.len());
        }
    }

    #[test]
    fn a_refused_call_is_admitted_at_its_retry_instant_and_not_a_nanosecond_before(
        (specs, steps) in case(1),
        charge in charge(),
    ) {
        let mut model = StrictProvider::new(&specs, charge, Timestamp::ZERO).with_wall_clock(WALL_AT_ZERO);
        let mut now = Timestamp::ZERO;
        for step in steps {
            now = now + Duration::from_nanos(step.gap);
            match model.arrive(&step.call, now) {
                Ok(id) => {
                    let usage = Usage { output_tokens: step.output, ..Usage::default() };
                    now = now + Duration::from_nanos(step.output);
                    model.finish(id, usage, now);
                }
                Err(refusal) => match refusal.retry_after {
                    Some(wait) => {
                        prop_assert!(wait > Duration::ZERO);
                        let early = now + (wait - Duration::from_nanos(1));
                        prop_assert!(!model.would_admit(&step.call, early));
                        prop_assert!(model.clone().arrive(&step.call, now + wait).is_ok());
                    }
                    None => {
                        prop_assert!(refusal.is_too_large());
                        let much_later = now + Duration::from_secs(86_400);
                        prop_assert!(!model.would_admit(&step.call, much_later));
                    }
                },
            }
        }
    }

    #[test]
    fn the_time_until_full_is_exact(
        specs in prop::collection::vec(spec(), 1..4),
        calls in prop::collection::vec((0u64..40, 0u64..300), 1..30),
    ) {
        let mut model = StrictProvider::new(&specs, Charge::Arrival, Timestamp::ZERO);
        let mut now = Timestamp::ZERO;
        for (input, gap) in calls {
            now = now + Duration::from_nanos(gap);
            let _ = model.arrive(&Arrival::of_input(input), now);
        }
        for (index, book) in model.books(now).into_iter().enumerate() {
            prop_assert_eq!(model.books(now + book.full_in)[index].used, 0);
            if !book.full_in.is_zero() {
                let early = now + (book.full_in - Duration::from_nanos(1));
                prop_assert!(model.books(early)[index].used > 0);
            }
        }
    }
}

#[test]
fn concurrency_is_freed_by_ends_alone_and_has_no_retry_time() {
    let limits = [LimitSpec::concurrency(2)];
    let mut model = StrictProvider::new(&limits, Charge::Arrival, Timestamp::ZERO);
    let call = Arrival::of_input(1);
    let first = model.arrive(&call, Timestamp::ZERO).unwrap();
    model.arrive(&call, Timestamp::ZERO).unwrap();
    let later = Timestamp::ZERO + Duration::from_secs(3_600);
    let refusal = model.arrive(&call, later).unwrap_err();
    assert_eq!(
        (refusal.used, refusal.count, refusal.retry_after),
        (2, 2, None)
    );
    assert!(!refusal.is_too_large());
    model.finish(first, Usage::default(), later);
    assert!(model.arrive(&call, later).is_ok());
    assert_eq!((model.accepted(), model.refused()), (3, 1));
}

#[test]
fn real_output_overdraws_and_the_next_calls_wait_it_off() {
    let limits = ["output_tokens=600/1m:bucket".parse().unwrap()];
    for charge in [Charge::Usage, Charge::Stream] {
        let mut model = StrictProvider::new(&limits, charge, Timestamp::ZERO);
        let call = Arrival::of_input(5);
        let id = model.arrive(&call, Timestamp::ZERO).unwrap();
        model.produced(id, 400, Timestamp::ZERO);
        let usage = Usage {
            output_tokens: 1_000,
            ..Usage::default()
        };
        model.finish(id, usage, Timestamp::ZERO);
        let refusal = model.arrive(&call, Timestamp::ZERO).unwrap_err();
        // 400 in debt at 10 a second, and one token of room.
        assert_eq!(
            (refusal.used, refusal.retry_after),
            (1_000, Some(Duration::from_millis(40_100)))
        );
    }
}

#[test]
fn outside_use_takes_what_there_is_and_never_more() {
    let limits = [
        "requests=10/1m".parse().unwrap(),
        "requests=15/1h:fixed".parse().unwrap(),
    ];
    let mut model = StrictProvider::new(&limits, Charge::Arrival, Timestamp::ZERO);
    let minute = Duration::from_secs(60);
    assert_eq!(
        model.charge_outside(LimitKind::Requests, 7, Timestamp::ZERO),
        7
    );
    assert_eq!(
        model.charge_outside(LimitKind::Requests, 7, Timestamp::ZERO),
        3
    );
    assert_eq!(
        model.charge_outside(LimitKind::Requests, 7, Timestamp::ZERO + minute),
        5
    );
    assert_eq!(
        model.charge_outside(LimitKind::Tokens, 7, Timestamp::ZERO + minute),
        0
    );
    let refusal = model
        .arrive(&Arrival::of_input(1), Timestamp::ZERO + minute)
        .unwrap_err();
    assert_eq!((refusal.limit, refusal.retry_after), (1, Some(59 * minute)));
}

#[test]
fn a_refused_call_uses_a_request_only_where_that_was_chosen() {
    let limits = [
        "requests=3/1m".parse().unwrap(),
        "tokens=20/1m".parse().unwrap(),
    ];
    let used_after = |mut model: StrictProvider| {
        for _ in 0..5 {
            assert!(
                model
                    .arrive(&Arrival::of_input(50), Timestamp::ZERO)
                    .is_err()
            );
        }
        model.books(Timestamp::ZERO)[0].used
    };
    let model = StrictProvider::new(&limits, Charge::Arrival, Timestamp::ZERO);
    assert_eq!(used_after(model.clone()), 0);
    assert_eq!(used_after(model.counting_refused_requests()), 3);
}

#[test]
fn time_that_runs_backwards_is_read_as_the_latest_instant_seen() {
    let limits = ["requests=1/1m:bucket".parse().unwrap()];
    let late = Timestamp::ZERO + Duration::from_secs(100);
    let mut model = StrictProvider::new(&limits, Charge::Arrival, Timestamp::ZERO);
    model.arrive(&Arrival::of_input(1), late).unwrap();
    let refusal = model
        .arrive(&Arrival::of_input(1), Timestamp::ZERO)
        .unwrap_err();
    assert_eq!(refusal.retry_after, Some(Duration::from_secs(60)));
}
