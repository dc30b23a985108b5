//! The laws of one limit.

use llmq_core::{CallSize, Host, Usage};

use super::*;
use crate::Denied;
use crate::charge::charge_rule;

mod told_later;

pub(super) const MARGIN: Duration = Duration::from_millis(10);

pub(super) fn at(ms: u64) -> Timestamp {
    Timestamp::ZERO + Duration::from_secs(1_000) + Duration::from_millis(ms)
}

pub(super) fn limit(text: &str, host: Host) -> Limit {
    let spec: LimitSpec = text.parse().unwrap();
    Limit::new(spec, charge_rule(host, spec.kind), Now::default())
}

pub(super) fn call(input: u32, cap: u32) -> CallSize {
    CallSize {
        input_tokens: input,
        max_output_tokens: Some(cap),
        choices: 1,
    }
}

pub(super) fn used(input_tokens: u64, output_tokens: u64) -> Usage {
    Usage {
        input_tokens,
        output_tokens,
        ..Usage::default()
    }
}

/// Grants and sends one call at `now`.
pub(super) fn send(limit: &mut Limit, size: &CallSize, now: Timestamp) -> Entry {
    let cost = limit.cost(size, 100);
    assert_eq!(limit.check(cost, 0, now, MARGIN), Ok(()));
    let mut entry = limit.take(cost);
    limit.sent(&mut entry, now, now, MARGIN);
    entry
}

#[test]
fn a_grant_takes_budget_before_it_is_sent_and_gives_it_back_if_it_never_is() {
    let mut limit = limit("requests=1/1s", Host::Unknown);
    let cost = limit.cost(&CallSize::default(), 0);
    let entry = limit.take(cost);
    assert_eq!(limit.check(cost, 0, at(0), MARGIN), Err(Denied::OnRelease));
    limit.give_back(entry);
    assert_eq!(limit.check(cost, 0, at(0), MARGIN), Ok(()));
}

#[test]
fn a_call_leaves_its_window_one_period_after_it_can_have_arrived() {
    let mut limit = limit("requests=1/1s", Host::Unknown);
    let cost = limit.cost(&CallSize::default(), 0);
    let mut entry = send(&mut limit, &CallSize::default(), at(100));
    assert_eq!(
        limit.check(cost, 0, at(200), MARGIN),
        Err(Denied::Until(at(1_110)))
    );
    // The answer's first byte proves that it had arrived earlier.
    limit.arrived(&mut entry, at(104), false);
    limit.settle(entry, None, at(105));
    assert_eq!(
        limit.check(cost, 0, at(200), MARGIN),
        Err(Denied::Until(at(1_104)))
    );
}

/// Calls that a busy provider admitted later than the margin allowed for once came back a
/// window later as 429s: the provider's own statement is the better witness.
#[test]
fn a_stated_processing_time_proves_a_late_arrival_too() {
    let mut limit = limit("requests=1/10s", Host::Unknown);
    let cost = limit.cost(&CallSize::default(), 0);
    let mut entry = send(&mut limit, &CallSize::default(), at(0));
    limit.arrived(&mut entry, at(130), false);
    assert_eq!(
        limit.check(cost, 0, at(150), MARGIN),
        Err(Denied::Until(at(10_010)))
    );
    limit.arrived(&mut entry, at(130), true);
    assert_eq!(
        limit.check(cost, 0, at(150), MARGIN),
        Err(Denied::Until(at(10_130)))
    );
    // But never more than a tenth of the window later.
    limit.arrived(&mut entry, at(5_000), true);
    assert_eq!(
        limit.check(cost, 0, at(150), MARGIN),
        Err(Denied::Until(at(11_000)))
    );
}

/// It was given up by when the call was written, and so was dated long before it had arrived.
#[test]
fn a_late_telling_takes_nothing_from_a_proven_arrival() {
    let mut limit = limit("requests=1/1s", Host::Unknown);
    let cost = limit.cost(&CallSize::default(), 0);
    let mut entry = limit.take(cost);
    limit.sent(&mut entry, at(0), at(500), MARGIN);
    limit.arrived(&mut entry, at(507), true);
    assert_eq!(
        limit.check(cost, 0, at(600), MARGIN),
        Err(Denied::Until(at(1_507)))
    );
}

/// Two calls were held up for some milliseconds on a busy machine; the two that waited for them
/// reached the provider a moment before the first had left its window.
#[test]
fn a_quick_answer_is_the_date_of_a_call_that_was_held_up() {
    let mut limit = limit("requests=1/10s", Host::Unknown);
    let cost = limit.cost(&CallSize::default(), 0);
    let mut entry = send(&mut limit, &CallSize::default(), at(0));
    limit.arrived(&mut entry, at(30), false);
    limit.settle(entry, None, at(31));
    assert_eq!(
        limit.check(cost, 0, at(50), MARGIN),
        Err(Denied::Until(at(10_030)))
    );
}

#[test]
fn an_answer_before_the_margin_ends_proves_that_the_call_came_no_later() {
    let mut limit = limit("requests=1/1m", Host::Unknown);
    let cost = limit.cost(&CallSize::default(), 0);
    let margin = Duration::from_millis(300);
    let mut entry = limit.take(cost);
    limit.sent(&mut entry, at(0), at(0), margin);
    limit.arrived(&mut entry, at(100), false);
    assert_eq!(
        limit.check(cost, 0, at(200), margin),
        Err(Denied::Until(at(60_100)))
    );
}

/// The provider sees calls that were not held up leave its window earlier than the books do. Two
/// words that it had more left gave them back, and they left a second time.
#[test]
fn calls_that_were_dated_late_are_not_given_back_twice() {
    let mut limit = limit("tokens=10000/10s", Host::Mock);
    let used = Usage {
        input_tokens: 90,
        output_tokens: 10,
        ..Usage::default()
    };
    for _ in 0..50 {
        let mut entry = send(&mut limit, &call(90, 10), at(0));
        limit.arrived(&mut entry, at(50), false);
        limit.settle(entry, Some(&used), at(50));
    }
    let _under_way = send(&mut limit, &call(90, 10), at(10_015));
    for (left, ms) in [(9_800, 10_020), (9_700, 10_024)] {
        let entry = send(&mut limit, &call(90, 10), at(ms));
        limit.observe(&entry, left, 1, at(ms + 2), MARGIN);
        limit.settle(entry, Some(&used), at(ms + 2));
    }
    let cost = limit.cost(&call(90, 10), 0);
    assert_eq!(limit.check(cost, 0, at(10_070), MARGIN), Ok(()));
    assert_eq!(limit.books(at(10_070), MARGIN), 9_700);
}

#[test]
fn a_cost_above_the_whole_limit_never_fits() {
    let mut limit = limit("tokens=1000/1m:bucket", Host::OpenAi);
    let cost = limit.cost(&call(900, 200), 0);
    assert_eq!(
        limit.check(cost, 0, at(0), MARGIN),
        Err(Denied::Never { limit: 1_000 })
    );
    let cost = limit.cost(&call(900, 100), 0);
    assert!(!matches!(
        limit.check(cost, 0, at(0), MARGIN),
        Err(Denied::Never { .. })
    ));
}

#[test]
fn a_limit_of_output_is_not_charged_for_input() {
    // The floor under a learned factor was the larger of cap and input for every limit, so
    // that calls with more input than output used up a limit of output twice as fast.
    let limit = limit("output_tokens=1000/1m", Host::Mock);
    assert_eq!(limit.cost(&call(900, 100), 0).total(), 100);
}

#[test]
fn openai_gives_nothing_back_and_a_plain_limit_settles_to_usage() {
    let usage = Usage {
        input_tokens: 50,
        output_tokens: 10,
        ..Usage::default()
    };
    let used = |host| {
        let mut limit = limit("tokens=10000/1m", host);
        let entry = send(&mut limit, &call(60, 500), at(0));
        limit.settle(entry, Some(&usage), at(500));
        10_000 - limit.books(at(500), MARGIN)
    };
    assert_eq!(used(Host::OpenAi), 560);
    assert_eq!(used(Host::Unknown), 60);
}

#[test]
fn overspend_is_carried_forward_as_debt() {
    let mut limit = limit("output_tokens=100/1m:bucket", Host::Anthropic);
    let entry = send(&mut limit, &call(5, 100), at(0));
    let usage = Usage {
        output_tokens: 160,
        ..Usage::default()
    };
    limit.settle(entry, Some(&usage), at(0));
    assert_eq!(limit.books(at(0), MARGIN), -60);
    let cost = limit.cost(&call(5, 10), 10);
    let Err(Denied::Until(when)) = limit.check(cost, 0, at(0), Duration::ZERO) else {
        panic!("debt forgotten")
    };
    assert_eq!(when, at(42_000));
}

#[test]
fn what_streams_is_counted_as_it_comes_and_only_once() {
    let mut limit = limit("output_tokens=1000/1m", Host::Anthropic);
    let mut entry = send(&mut limit, &call(5, 500), at(0));
    assert_eq!(limit.held(), 100);
    limit.produced(&mut entry, 60, at(10));
    assert_eq!((limit.held(), limit.books(at(10), MARGIN)), (40, 940));
    limit.produced(&mut entry, 60, at(11));
    limit.produced(&mut entry, 150, at(12));
    assert_eq!((limit.held(), limit.books(at(12), MARGIN)), (0, 850));
    let usage = Usage {
        output_tokens: 170,
        ..Usage::default()
    };
    limit.settle(entry, Some(&usage), at(13));
    assert_eq!((limit.held(), limit.books(at(13), MARGIN)), (0, 830));
}

#[test]
fn a_header_inside_the_margin_changes_nothing() {
    let mut limit = limit("requests=100/1s", Host::Unknown);
    let first = send(&mut limit, &CallSize::default(), at(100));
    let second = send(&mut limit, &CallSize::default(), at(103));
    // They may have arrived in either order.
    for (entry, left) in [(&first, 99), (&first, 98), (&second, 99), (&second, 98)] {
        let said = limit.observe(entry, left, 1, at(150), MARGIN);
        assert!(matches!(said, Verdict::Inside | Verdict::Stale), "{said:?}");
    }
    assert_eq!(limit.books(at(150), MARGIN), 98);
}

#[test]
fn what_others_used_is_taken_at_once_and_only_once() {
    let mut limit = limit("requests=100/1s", Host::Unknown);
    let old = send(&mut limit, &CallSize::default(), at(0));
    let new = send(&mut limit, &CallSize::default(), at(100));
    assert_eq!(
        limit.observe(&new, 58, 1, at(200), MARGIN),
        Verdict::Below(40)
    );
    assert_eq!(limit.books(at(200), MARGIN), 58);
    // The older call's header tells of the same use.
    assert_eq!(limit.observe(&old, 60, 1, at(210), MARGIN), Verdict::Stale);
    assert_eq!(limit.books(at(210), MARGIN), 58);
    assert_eq!(
        limit.observe(&old, 50, 1, at(210), MARGIN),
        Verdict::Below(9)
    );
}

#[test]
fn more_than_expected_gives_nothing_back_at_once() {
    let mut limit = limit("tokens=10000/1m", Host::OpenAi);
    let entry = send(&mut limit, &call(100, 100), at(0));
    assert_eq!(
        limit.observe(&entry, 9_900, 1, at(100), MARGIN),
        Verdict::Above(100)
    );
    assert_eq!(limit.books(at(100), MARGIN), 9_800);
    limit.settle(entry, Some(&Usage::default()), at(101));
    assert!(limit.factor().value() < 1.0);
}

#[test]
fn a_shallow_bucket_is_not_taken_for_a_cheap_one() {
    // A minute's limit that is checked in slices of ten seconds shows the whole minute less
    // what is used. Compared with the ten seconds it can hold, every answer seemed to prove
    // that we charged too much, and the factor sank until only refusals came.
    let mut limit = limit("input_tokens=60k/1m:bucket", Host::Mock);
    limit.meter = Meter::Bucket(Bucket::new(
        60_000,
        Duration::from_secs(60),
        Duration::from_secs(10),
        at(0),
    ));
    let entry = send(&mut limit, &call(900, 1), at(0));
    assert_eq!(
        limit.observe(&entry, 59_100, 1, at(10), MARGIN),
        Verdict::Inside
    );
    assert_eq!(
        limit.observe(&entry, 58_100, 1, at(10), MARGIN),
        Verdict::Below(989)
    );
    assert!(limit.factor().value() >= 1.0);
}

#[test]
fn refill_that_a_full_bucket_could_not_take_is_nobody_elses_use() {
    // Ours refills from the send on, the provider's from the arrival on: the first calls of
    // a burst left it short by a margin's refill, which was taken for another client's.
    let mut limit = limit("tokens=510k/1s:bucket", Host::Mock);
    let _ = send(&mut limit, &call(3_000, 500), at(0));
    let entry = send(&mut limit, &call(3_000, 500), at(4));
    // The first arrived 2 ms after it was sent, the second at once.
    let shown = 510_000 - 2 * 3_500 + 2 * 510;
    assert_eq!(limit.books(at(4), MARGIN), 510_000 - 2 * 3_500 + 4 * 510);
    assert_eq!(
        limit.observe(&entry, shown, 1, at(20), MARGIN),
        Verdict::Inside
    );
}

#[test]
fn a_call_that_the_provider_did_not_count_proves_nothing_about_its_charges() {
    // After an overload that no limit counted the headers showed more than we thought, the
    // factor sank with each such call, and the limit was overrun by what followed.
    for heard_first in [false, true] {
        let mut limit = limit("tokens=10000/1m", Host::Mock);
        let failed = send(&mut limit, &call(100, 100), at(0));
        let next = send(&mut limit, &call(100, 100), at(100));
        if heard_first {
            limit.observe(&next, 9_800, 1, at(200), MARGIN);
            limit.failed(failed, at(200));
        } else {
            limit.failed(failed, at(200));
            limit.observe(&next, 9_800, 1, at(200), MARGIN);
        }
        assert_eq!(limit.factor().value(), 1.0, "heard first: {heard_first}");
    }
}

#[test]
fn an_answer_that_takes_two_windows_still_tells_how_its_call_was_charged() {
    // What had been sent one window before a call was forgotten an eighth of a window after it:
    // answers that took longer taught nothing, and a fifth of the limit lay idle for ever.
    let mut limit = limit("tokens=10000/1s", Host::Mock);
    let mut under_way = std::collections::VecDeque::new();
    for number in 0..60 {
        let ms = number * 100;
        under_way.push_back((send(&mut limit, &call(500, 100), at(ms)), number));
        if under_way.len() > 20 {
            let (entry, number) = under_way.pop_front().unwrap();
            let in_window = i64::try_from(number + 1).unwrap().min(10);
            limit.observe(&entry, 10_000 - 480 * in_window, 1, at(ms), MARGIN);
            limit.settle(entry, Some(&Usage::default()), at(ms));
        }
    }
    let factor = limit.factor().value();
    assert!((0.79..0.82).contains(&factor), "{factor}");
}

#[test]
fn what_was_not_counted_comes_back_with_the_date_of_its_own_call() {
    // It was taken from the calls that came after the overload instead. When the overloaded ones
    // left the window, their charge came back a second time, and the limit was overrun.
    let mut limit = limit("tokens=10000/1s", Host::Mock);
    let overloaded = [(); 5].map(|()| send(&mut limit, &call(900, 100), at(0)));
    let counted = [500, 600].map(|ms| {
        let entry = send(&mut limit, &call(900, 100), at(ms));
        (entry, at(ms))
    });
    for entry in overloaded {
        limit.failed(entry, at(600));
    }
    for ((entry, sent), left) in counted.iter().zip([9_000, 8_000]) {
        limit.observe(entry, left, 1, *sent, MARGIN);
    }
    assert_eq!(limit.books(at(700), MARGIN), 8_000);
    limit.advance(at(1_100));
    assert_eq!(limit.books(at(1_100), MARGIN), 8_000);
}

#[test]
fn what_streams_in_just_after_an_edge_frees_room_before_the_old_window_ends() {
    let mut limit = limit("output_tokens=200/1s:fixed", Host::Anthropic);
    let mut entry = send(&mut limit, &call(5, 100), at(100));
    assert!(!limit.produced(&mut entry, 50, at(500)));
    assert!(limit.produced(&mut entry, 100, at(1_005)));
    let cost = limit.cost(&call(5, 150), 150);
    assert_eq!(limit.check(cost, 0, at(1_005), MARGIN), Ok(()));
}

#[test]
fn what_open_calls_may_have_taken_is_nobody_elses_use() {
    // Calls stray from their estimates, and what a running one took beyond its own was taken for
    // another client's: a quarter of the limit was left alone for somebody who was not there.
    let mut limit = limit("input_tokens=1M/1h", Host::Unknown);
    let used = |input_tokens| Usage {
        input_tokens,
        ..Usage::default()
    };
    for number in 0..40 {
        let entry = send(&mut limit, &call(1_000, 1), at(number * 100));
        let input = if number % 2 == 0 { 900 } else { 1_100 };
        limit.settle(entry, Some(&used(input)), at(number * 100 + 50));
    }
    for (ms, more) in [(5_000, 0), (6_000, 150)] {
        let entry = send(&mut limit, &call(1_000, 1), at(ms));
        let left = limit.books(at(ms), MARGIN) - more;
        limit.observe(&entry, left, 1, at(ms + 20), MARGIN);
        limit.settle(entry, Some(&used(1_000)), at(ms + 30));
        if more > 0 {
            assert_eq!(limit.others(at(60_000)), 0);
        }
    }
}

#[test]
fn what_is_left_for_others_never_blocks_a_large_call_for_ever() {
    // A call that needs a whole shallow bucket waited for an event that never came, since a
    // part was left alone for another client; the same held for a reserve.
    for text in [
        "tokens=1000/1s",
        "tokens=1000/1s:bucket",
        "tokens=1000/1s:fixed",
    ] {
        let mut limit = limit(text, Host::Mock);
        for (ms, left) in [(0, 990), (100, 930), (200, 870)] {
            let entry = send(&mut limit, &call(5, 5), at(ms));
            limit.observe(&entry, left, 1, at(ms + 10), MARGIN);
            limit.settle(entry, None, at(ms + 10));
        }
        assert!(limit.others(at(900)) > 0, "{text}");
        let cost = limit.cost(&call(500, 500), 0);
        let mut now = at(900);
        for _ in 0..100 {
            match limit.check(cost, 100, now, MARGIN) {
                Ok(()) => break,
                Err(Denied::Until(at)) => now = at,
                Err(other) => panic!("{text}: {other:?}"),
            }
        }
        assert_eq!(limit.check(cost, 100, now, MARGIN), Ok(()), "{text}");
    }
}

#[test]
fn a_full_bucket_is_not_spent_by_grants_of_one_instant() {
    // What was granted and not yet sent did not count against the pace, so that a file given
    // at once emptied a day's bucket in the instant before its first call was written.
    let mut limit = limit("requests=100/1m:bucket", Host::Unknown);
    let cost = limit.cost(&CallSize::default(), 0);
    let mut granted = Vec::new();
    while limit.check(cost, 0, at(0), MARGIN).is_ok() {
        granted.push(limit.take(cost));
    }
    assert_eq!(granted.len(), 10);
    assert_eq!(limit.check(cost, 0, at(0), MARGIN), Err(Denied::OnRelease));
    for entry in &mut granted {
        limit.sent(entry, at(0), at(0), MARGIN);
    }
    assert!(matches!(
        limit.check(cost, 0, at(0), MARGIN),
        Err(Denied::Until(_))
    ));
}

#[test]
fn a_tenth_of_a_limit_is_the_most_to_be_bet_before_answers_come() {
    let mut limit = limit("tokens=10k/1m", Host::Mock);
    let cost = limit.cost(&call(300, 100), 0);
    assert!(
        !limit.is_bold(limit.cost(&call(9_000, 100), 0)),
        "one must go"
    );
    let first = send(&mut limit, &call(300, 100), at(0));
    let second = send(&mut limit, &call(300, 100), at(0));
    assert!(limit.is_bold(cost));
    limit.settle(first, None, at(10));
    assert!(!limit.is_bold(cost));
    limit.refused(second, at(10));
    assert_eq!(limit.unanswered, 0);
}

#[test]
fn rounded_headers_are_widened_by_their_rounding() {
    let mut limit = limit("input_tokens=100k/1m", Host::Anthropic);
    let entry = send(&mut limit, &call(1_400, 1), at(0));
    assert_eq!(
        limit.observe(&entry, 99_000, 1_000, at(10), MARGIN),
        Verdict::Inside
    );
    assert_eq!(
        limit.observe(&entry, 95_000, 1_000, at(10), MARGIN),
        Verdict::Below(2_601)
    );
}

#[test]
fn after_a_crash_the_limit_is_used_up_as_of_the_last_sign_of_life() {
    for text in ["requests=10/10s", "requests=10/10s:bucket"] {
        let mut limit = limit(text, Host::Unknown);
        limit.exhaust(at(95_000), at(100_000));
        let cost = limit.cost(&CallSize::default(), 0);
        assert!(
            limit.check(cost, 9, at(100_000), Duration::ZERO).is_err(),
            "{text}"
        );
        assert_eq!(
            limit.check(cost, 0, at(105_000), Duration::ZERO),
            Ok(()),
            "{text}"
        );
    }
}

#[test]
fn what_was_saved_counts_in_the_next_process() {
    let mut before = limit("requests=10/10s", Host::Unknown);
    for ms in [1_000, 2_000, 6_000] {
        let entry = send(&mut before, &CallSize::default(), at(ms));
        before.settle(entry, None, at(ms + 1));
    }
    let saved = before.saved(at(7_000));
    let mut after = limit("requests=10/10s", Host::Unknown);
    after.restore(&saved, Duration::from_millis(4_500), at(50_000));
    // Two of the three are still inside ten seconds.
    assert_eq!(after.books(at(50_000), MARGIN), 8);
}

#[test]
fn what_is_not_on_disk_may_not_be_used() {
    let mut limit = limit("requests=1000/1d", Host::Unknown);
    limit.allow(Some(2));
    for _ in 0..2 {
        let entry = send(&mut limit, &CallSize::default(), at(0));
        limit.settle(entry, None, at(1));
    }
    let cost = limit.cost(&CallSize::default(), 0);
    assert_eq!(limit.check(cost, 0, at(2), MARGIN), Err(Denied::OnRelease));
    limit.allow(Some(1));
    assert_eq!(limit.check(cost, 0, at(2), MARGIN), Ok(()));
}

/// What was taken while the books were being written is in what they say may be used; it was
/// allowed once more when they were on disk.
#[test]
fn what_is_on_disk_reaches_to_where_it_was_when_it_was_written() {
    let mut limit = limit("requests=1000/1d", Host::Unknown);
    limit.allow(Some(10));
    let take = |limit: &mut Limit| {
        let entry = send(limit, &CallSize::default(), at(0));
        limit.settle(entry, None, at(1));
    };
    (0..5).for_each(|_| take(&mut limit));
    let written = limit.reach(10);
    (0..5).for_each(|_| take(&mut limit));
    for _ in 0..2 {
        limit.allow_to(written, 10);
        assert_eq!(limit.allowed(), Some(5));
    }
}

/// A call of more than a portion was never let start: what it was short of, nobody was told.
#[test]
fn a_call_that_a_portion_is_too_small_for_is_told_of() {
    let mut limit = limit("tokens=1000/1d", Host::Unknown);
    limit.allow(Some(10));
    assert!(!limit.is_portion_low());
    let cost = limit.cost(
        &CallSize {
            input_tokens: 25,
            ..CallSize::default()
        },
        0,
    );
    assert_eq!(limit.check(cost, 0, at(0), MARGIN), Err(Denied::OnRelease));
    assert!(limit.is_portion_low());
    let portion = limit.portion(10);
    let reach = limit.reach(portion);
    limit.allow_to(reach, portion);
    assert_eq!(limit.check(cost, 0, at(0), MARGIN), Ok(()));
}
