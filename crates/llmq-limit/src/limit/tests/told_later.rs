//! Usage that is told after its call has ended.

use super::*;

/// Takes a call of `size` and ends it at `now` without a word of what it used.
fn end_untold(limit: &mut Limit, size: &CallSize, now: Timestamp) -> Settled {
    let mut entry = limit.take(limit.cost(size, 256));
    limit.sent(&mut entry, now, now, MARGIN);
    limit.settle(entry, None, now).expect("its usage counts")
}

#[test]
fn usage_that_is_told_later_costs_what_it_does_when_told_in_time() {
    for text in [
        "tokens=9000/1m",
        "tokens=9000/1m:bucket",
        "tokens=9000/1m:fixed",
    ] {
        for usage in [used(10, 20), used(900, 700), used(100, 256), used(0, 0)] {
            let [mut in_time, mut later] = [(); 2].map(|()| limit(text, Host::Unknown));
            let size = call(100, 2_000);
            let entry = send(&mut in_time, &size, at(0));
            in_time.settle(entry, Some(&usage), at(0));
            let mut settled = end_untold(&mut later, &size, at(0));
            // Who tells again corrects that.
            for told in [used(5_000, 1), usage] {
                later.correct(&mut settled, &told, at(0));
            }
            let left = in_time.books(at(0), MARGIN);
            assert_eq!(later.books(at(0), MARGIN), left, "{text} {usage:?}");
            assert_eq!(later.charged(), in_time.charged());
        }
    }
}

/// What a word showed to be left was given back at the call's end, and once more when its usage was
/// told: a limit had more left than it has in all.
#[test]
fn what_a_word_has_given_back_usage_does_not_give_back_again() {
    for text in [
        "tokens=10000/1m",
        "tokens=10000/1m:bucket",
        "tokens=10000/1m:fixed",
    ] {
        for usage in [used(80, 20), used(300, 300), used(1_200, 50)] {
            let end = |told: Option<&Usage>| {
                let mut limit = limit(text, Host::Unknown);
                let entry = send(&mut limit, &call(900, 100), at(0));
                // The provider has counted its input, and none of its answer yet.
                let left = 10_000 - signed(usage.input_tokens);
                limit.observe(&entry, left, 1, at(0), MARGIN);
                let settled = limit.settle(entry, told, at(0));
                (limit, settled.expect("its usage counts"))
            };
            let (in_time, _) = end(Some(&usage));
            let (mut later, mut settled) = end(None);
            // Who tells again corrects that.
            for told in [used(5_000, 1), usage] {
                later.correct(&mut settled, &told, at(0));
            }
            let left = in_time.books(at(0), MARGIN);
            assert_eq!(later.books(at(0), MARGIN), left, "{text} {usage:?}");
            assert_eq!(later.charged(), in_time.charged());
        }
    }
}

/// The word that gave it back was that on a call which ended after it.
#[test]
fn what_the_word_on_another_call_has_given_back_usage_does_not_either() {
    let mut limit = limit("tokens=10000/1m", Host::Unknown);
    let [first, second] = [(); 2].map(|()| send(&mut limit, &call(900, 0), at(0)));
    limit.observe(&first, 9_920, 1, at(0), MARGIN);
    let mut settled = limit.settle(first, None, at(0)).expect("its usage counts");
    limit.observe(&second, 9_840, 1, at(0), MARGIN);
    limit.settle(second, Some(&used(80, 0)), at(0));
    assert_eq!(limit.books(at(0), MARGIN), 9_840);
    limit.correct(&mut settled, &used(80, 0), at(0));
    assert_eq!(limit.books(at(0), MARGIN), 9_840);
    limit.correct(&mut settled, &used(60, 0), at(0));
    assert_eq!(limit.books(at(0), MARGIN), 9_860);
}

/// It was taken from the oldest call that was still in the window, whosever that was.
#[test]
fn what_has_left_the_window_is_not_given_back() {
    let mut limit = limit("tokens=10000/1m", Host::Unknown);
    let size = call(500, 100);
    let mut old = end_untold(&mut limit, &size, at(0));
    end_untold(&mut limit, &size, at(40_000));
    limit.correct(&mut old, &used(0, 0), at(90_000));
    assert_eq!(limit.books(at(90_000), MARGIN), 10_000 - 600);
    // Nor is it charged again.
    limit.correct(&mut old, &used(9_000, 0), at(90_000));
    limit.advance(at(90_000));
    assert_eq!(limit.books(at(90_000), MARGIN), 10_000 - 600);
}

#[test]
fn a_bucket_gives_back_late_only_what_it_could_have_taken_in() {
    // 100 come back each second.
    let bucket = || limit("tokens=6000/1m:bucket", Host::Unknown);
    let size = call(3_900, 100);
    // Full after 40 s, it would have been so with less used.
    let mut idle = bucket();
    let mut old = end_untold(&mut idle, &size, at(0));
    end_untold(&mut idle, &size, at(50_000));
    idle.correct(&mut old, &used(0, 0), at(50_000));
    assert_eq!(idle.books(at(50_000), MARGIN), 2_000);
    // Never near full, it has all of it back.
    let mut busy = bucket();
    end_untold(&mut busy, &size, at(0));
    let mut old = end_untold(&mut busy, &call(900, 100), at(0));
    end_untold(&mut busy, &call(900, 100), at(10_000));
    busy.correct(&mut old, &used(0, 0), at(10_000));
    assert_eq!(busy.books(at(10_000), MARGIN), 2_000);
}

#[test]
fn a_bucket_is_charged_late_only_for_what_would_not_have_come_back() {
    let mut limit = limit("tokens=6000/1m:bucket", Host::Unknown);
    let mut old = end_untold(&mut limit, &call(100, 100), at(0));
    // Full again after two seconds: five more would have made up for 500.
    limit.correct(&mut old, &used(900, 0), at(7_000));
    assert_eq!(limit.books(at(7_000), MARGIN), 6_000 - 200);
    limit.correct(&mut old, &used(1_000, 0), at(7_000));
    assert_eq!(limit.books(at(7_000), MARGIN), 6_000 - 300);
}

/// Programs that always tell late were charged by estimates that never learned.
#[test]
fn usage_that_is_told_later_teaches_the_factor_once() {
    let mut limit = limit("input_tokens=1000000/1m", Host::Unknown);
    let before = limit.factor().value();
    for _ in 0..100 {
        let mut settled = end_untold(&mut limit, &call(100, 10), at(0));
        limit.correct(&mut settled, &used(150, 10), at(0));
    }
    assert!(limit.factor().value() > before * 1.3);
}
