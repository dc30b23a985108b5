use std::sync::{Arc, Mutex};

use llmq_core::Host;
use proptest::prelude::*;

use super::*;
use crate::parse_rate_limit_headers;
use crate::quota::QuotaConfig;
use crate::quota::day::tests::wall;

fn at(text: &str) -> Now {
    let wall_at_zero = wall("2026-01-01T00:00:00Z");
    Now {
        wall: wall(text),
        mono: llmq_core::Timestamp::ZERO + wall(text).since(wall_at_zero),
    }
}

fn noon() -> Now {
    at("2026-11-22T12:00:00Z")
}

fn config(daily_limit: Option<u64>) -> QuotaConfig {
    QuotaConfig {
        daily_request_limit: daily_limit,
        ..QuotaConfig::default()
    }
}

fn monitor(config: &QuotaConfig, used: u64) -> QuotaMonitor {
    let mut monitor = QuotaMonitor::new(config.check().unwrap(), noon());
    monitor.used = used;
    monitor
}

/// One limit over a day (or another window) as an answer shows it.
fn headers(kind: &str, limit: u64, remaining: u64, window: &str) -> RateLimitHeaders {
    let [limit, remaining] = [limit, remaining].map(|count| count.to_string());
    let pairs = [
        (format!("x-ratelimit-limit-{kind}-{window}"), limit),
        (format!("x-ratelimit-remaining-{kind}-{window}"), remaining),
    ];
    let pairs = pairs
        .iter()
        .map(|(name, value)| (name.as_str(), value.as_str()));
    parse_rate_limit_headers(Host::Unknown, pairs, Now::default())
}

fn levels(events: &[QuotaEvent]) -> Vec<AlertLevel> {
    let level = |event: &QuotaEvent| match event {
        QuotaEvent::Alert { level, .. } => Some(*level),
        _ => None,
    };
    events.iter().filter_map(level).collect()
}

#[test]
fn nothing_known_is_no_pause_and_says_so() {
    let monitor = monitor(&config(None), 0);
    let metrics = monitor.metrics(noon());
    assert_eq!(metrics.usage_percentage, None);
    assert!(!metrics.should_pause);
    assert_eq!(
        monitor.can_resume(noon()),
        (true, "no quota data yet".to_owned())
    );
}

#[test]
fn use_pause_and_resume_follow_the_table() {
    for (limit, used, threshold, percent, pauses) in [
        (1_000, 200, 0.8, 20.0, false),
        (1_000, 799, 0.8, 79.9, false),
        (1_000, 800, 0.8, 80.0, true),
        (1_000, 850, 0.8, 85.0, true),
        (1_000, 850, 0.9, 85.0, false),
        (10, 11, 0.8, 110.0, true),
    ] {
        let config = QuotaConfig {
            pause_threshold: threshold,
            ..config(Some(limit))
        };
        let metrics = monitor(&config, used).metrics(noon());
        assert_eq!(metrics.usage_percentage, Some(percent), "{used} of {limit}");
        assert_eq!(
            metrics.should_pause, pauses,
            "{used} of {limit} at {threshold}"
        );
        assert_eq!(metrics.daily_limit, Some(limit));
    }
}

#[test]
fn a_pause_names_its_shares_and_ends_when_the_day_turns_in_its_zone() {
    for (zone, expected) in [
        ("UTC", "2026-11-23T00:00:00Z"),
        ("Europe/Berlin", "2026-11-22T23:00:00Z"),
        ("America/Los_Angeles", "2026-11-23T08:00:00Z"),
    ] {
        let config = QuotaConfig {
            time_zone: zone.to_owned(),
            ..config(Some(1_000))
        };
        let advice = monitor(&config, 850).should_pause(noon()).unwrap();
        assert_eq!(
            advice.reason.to_string(),
            "85.0 % of the daily limit used, threshold 80.0 %"
        );
        assert_eq!(advice.resume_at, wall(expected), "{zone}");
    }
}

#[test]
fn at_the_threshold_high_work_goes_on_and_at_the_limit_none_does() {
    let scope = |used| {
        let advice = monitor(&config(Some(1_000)), used).should_pause(noon());
        advice.map(|advice| advice.scope)
    };
    assert_eq!(scope(799), None);
    assert_eq!(scope(999), Some(PauseScope::BelowHigh));
    assert_eq!(scope(1_000), Some(PauseScope::All));
}

#[test]
fn a_minutes_window_neither_alerts_nor_pauses() {
    let mut monitor = monitor(&config(None), 0);
    let events = monitor.observe(&headers("requests", 5_000, 200, "minute"), noon());
    assert_eq!(events, []);
    assert_eq!(monitor.should_pause(noon()), None);
    assert_eq!(
        monitor.status().unwrap().requests_used_percent(),
        Some(96.0)
    );
    assert_eq!(monitor.metrics(noon()).usage_percentage, None);
}

#[test]
fn a_days_window_of_a_header_alerts_once_and_is_used_in_full() {
    let mut monitor = monitor(&config(None), 0);
    let seen = headers("tokens", 4_000_000, 100_000, "day");
    let events = monitor.observe(&seen, noon());
    let expected = QuotaEvent::Alert {
        level: AlertLevel::Emergency,
        used_percent: 97.5,
    };
    assert_eq!(events, [expected]);
    assert_eq!(monitor.observe(&seen, noon()), []);
    assert_eq!(monitor.should_pause(noon()), None);
}

#[test]
fn a_header_already_counts_its_own_call() {
    let mut monitor = monitor(&config(None), 0);
    monitor.update_from_response(&headers("tokens", 4_000_000, 3_500_000, "minute"), noon());
    assert_eq!(monitor.status().unwrap().tokens_remaining, Some(3_500_000));
}

#[test]
fn a_learned_days_limit_counts_when_none_is_configured() {
    let mut learned = monitor(&config(None), 0);
    learned.update_from_response(&headers("requests", 10_000, 2_000, "day"), noon());
    let metrics = learned.metrics(noon());
    assert_eq!(metrics.daily_limit, Some(10_000));
    assert_eq!(metrics.usage_percentage, Some(80.0));
    let mut configured = monitor(&config(Some(100)), 0);
    configured.observe(&headers("requests", 10_000, 10_000, "day"), noon());
    assert_eq!(configured.metrics(noon()).daily_limit, Some(100));
}

#[test]
fn what_a_header_said_yesterday_is_not_todays_use() {
    let mut monitor = monitor(&config(None), 0);
    monitor.observe(&headers("tokens", 100, 1, "day"), noon());
    let tomorrow = at("2026-11-23T00:00:00Z");
    assert_eq!(monitor.metrics(tomorrow).usage_percentage, None);
    assert_eq!(monitor.poll(tomorrow), []);
    assert_eq!(monitor.metrics(tomorrow).usage_percentage, None);
}

#[test]
fn when_the_day_changes_counting_starts_again() {
    let mut monitor = monitor(&config(Some(1_000)), 850);
    let tomorrow = at("2026-11-23T00:00:00Z");
    assert_eq!(monitor.metrics(tomorrow).requests_used_today, 0);
    monitor.update_from_response(&RateLimitHeaders::default(), tomorrow);
    assert_eq!(monitor.metrics(tomorrow).requests_used_today, 1);
    assert_eq!(monitor.should_pause(tomorrow), None);
}

#[test]
fn a_clock_set_back_over_midnight_opens_no_second_quota() {
    let mut monitor = monitor(&config(Some(1_000)), 0);
    let after_midnight = at("2026-11-23T00:10:00Z");
    monitor.record_request(after_midnight);
    let set_back = at("2026-11-22T23:10:00Z");
    monitor.record_request(set_back);
    monitor.record_request(after_midnight);
    assert_eq!(monitor.metrics(after_midnight).requests_used_today, 3);
    // A clock that was a year ahead does not stop the days from turning.
    monitor.record_request(at("2027-11-23T00:10:00Z"));
    monitor.record_request(at("2026-11-23T12:00:00Z"));
    let next = at("2026-11-24T00:00:00Z");
    monitor.record_request(next);
    assert_eq!(monitor.metrics(next).requests_used_today, 1);
}

#[test]
fn each_level_is_told_once_a_day() {
    let mut monitor = monitor(&config(Some(100)), 0);
    let mut told = Vec::new();
    for _ in 0..100 {
        told.extend(
            levels(&monitor.record_request(noon()))
                .into_iter()
                .map(|level| (level, monitor.used)),
        );
    }
    assert_eq!(
        told,
        [
            (AlertLevel::Warning, 60),
            (AlertLevel::Critical, 80),
            (AlertLevel::Emergency, 95)
        ]
    );
    monitor.record_request(at("2026-11-23T00:00:00Z"));
    monitor.used = 59;
    let events = monitor.record_request(at("2026-11-23T00:00:01Z"));
    assert_eq!(levels(&events), [AlertLevel::Warning]);
}

#[test]
fn the_levels_follow_the_table() {
    for (used, expected) in [
        (50, None),
        (65, Some(AlertLevel::Warning)),
        (85, Some(AlertLevel::Critical)),
        (97, Some(AlertLevel::Emergency)),
    ] {
        let mut monitor = monitor(&config(Some(100)), used);
        let told = levels(&monitor.poll(noon()));
        assert_eq!(told, Vec::from_iter(expected), "{used}");
        assert_eq!(levels(&monitor.poll(noon())), []);
    }
}

#[test]
fn the_begin_and_the_end_of_a_pause_are_told_once() {
    let mut monitor = monitor(&config(Some(10)), 7);
    let is_pause = |event: &&QuotaEvent| matches!(event, QuotaEvent::Paused(_));
    assert_eq!(
        monitor
            .record_request(noon())
            .iter()
            .filter(is_pause)
            .count(),
        1
    );
    assert_eq!(
        monitor
            .record_request(noon())
            .iter()
            .filter(is_pause)
            .count(),
        0
    );
    assert!(!monitor.can_resume(noon()).0);
    let turned = at("2026-11-23T00:00:00Z");
    let paused_for = Duration::from_secs(12 * 3_600);
    assert_eq!(monitor.poll(turned), [QuotaEvent::Resumed { paused_for }]);
    assert_eq!(monitor.poll(turned), []);
    assert!(monitor.can_resume(turned).0);
}

#[test]
fn of_two_pauses_the_later_end_counts() {
    let mut monitor = monitor(&config(None), 0);
    let [one, two] = ["2026-11-22T13:00:00Z", "2026-11-22T14:00:00Z"].map(wall);
    assert_eq!(monitor.pause("one", Some(one), noon()).len(), 1);
    assert_eq!(monitor.pause("two", Some(two), noon()).len(), 1);
    assert_eq!(monitor.pause("one", Some(one), noon()).len(), 0);
    assert_eq!(monitor.should_pause(noon()).unwrap().resume_at, two);
    assert_eq!(
        monitor.can_resume(at("2026-11-22T13:59:59Z")),
        (false, "two".to_owned())
    );
    assert!(monitor.can_resume(at("2026-11-22T14:00:00Z")).0);
}

/// A refusal of eight seconds over the threshold shut `high` work out until midnight, and nobody
/// was told that it stood still as well.
#[test]
fn a_short_pause_over_the_threshold_has_its_own_end_and_is_told() {
    let mut monitor = monitor(&config(Some(1_000)), 850);
    monitor.poll(noon());
    let (midnight, soon) = (wall("2026-11-23T00:00:00Z"), Duration::from_secs(8));
    let ends = |monitor: &QuotaMonitor, now| {
        let pauses =
            [PauseScope::All, PauseScope::BelowHigh].map(|work| monitor.pause_of(work, now));
        pauses.map(|pause| pause.map(|pause| pause.resume_at))
    };
    let told = monitor.pause("no more", Some(noon().wall + soon), noon());
    let advice = monitor.should_pause(noon()).unwrap();
    assert_eq!(
        (advice.scope, advice.resume_at),
        (PauseScope::All, noon().wall + soon)
    );
    assert_eq!(told, [QuotaEvent::Paused(advice)]);
    let expected = [Some(noon().wall + soon), Some(midnight)];
    assert_eq!(ends(&monitor, noon()), expected);
    let rules = config(Some(1_000)).check().unwrap();
    let after = QuotaMonitor::from_state(rules, monitor.to_state(), noon()).unwrap();
    assert_eq!(ends(&after, noon()), expected, "what was saved");
    let later = noon().after(soon);
    let advice = monitor.should_pause(later).unwrap();
    assert_eq!(advice.scope, PauseScope::BelowHigh);
    assert_eq!(monitor.poll(later), [QuotaEvent::Paused(advice)]);
    assert_eq!(ends(&monitor, later), [None, Some(midnight)]);
}

#[test]
fn a_pause_without_an_end_lasts_the_configured_time_and_can_be_lifted() {
    let mut monitor = monitor(&config(None), 0);
    monitor.pause("no more", None, noon());
    let advice = monitor.should_pause(noon()).unwrap();
    assert_eq!(advice.resume_at, wall("2026-11-23T12:00:00Z"));
    assert_eq!(advice.scope, PauseScope::All);
    let paused_for = Duration::ZERO;
    assert_eq!(monitor.lift(noon()), [QuotaEvent::Resumed { paused_for }]);
}

/// A pause of twenty seconds lasted an hour more when the clock was set back meanwhile.
#[test]
fn a_pause_that_was_told_is_over_when_either_clock_says_so() {
    let (hour, second) = (Duration::from_secs(3_600), Duration::from_secs(1));
    let mut monitor = monitor(&config(None), 0);
    monitor.pause("no more", Some(noon().wall + second * 20), noon());
    let back = |now: Now| Now {
        wall: now.wall.before(hour),
        ..now
    };
    let before = back(noon().after(second * 19));
    let advice = monitor.should_pause(before).unwrap();
    assert_eq!(advice.resume_at, before.wall + second);
    assert_eq!(monitor.poll(before), [], "its end is as far as it was");
    // A machine that slept: only the wall has gone on.
    let slept = Now {
        wall: noon().wall + hour,
        ..noon().after(second)
    };
    assert_eq!(monitor.should_pause(slept), None);
    let paused_for = second * 20;
    let over = back(noon().after(paused_for));
    assert_eq!(monitor.poll(over), [QuotaEvent::Resumed { paused_for }]);
}

#[test]
fn the_metrics_are_told_at_every_interval() {
    let config = QuotaConfig {
        log_interval: 4,
        ..config(None)
    };
    let mut monitor = monitor(&config, 0);
    let told: Vec<u64> = (0..12)
        .flat_map(|_| monitor.record_request(noon()))
        .map(|event| match event {
            QuotaEvent::Metrics(metrics) => metrics.requests_used_today,
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(told, [4, 8, 12]);
}

#[test]
fn without_monitoring_it_only_counts() {
    let config = QuotaConfig {
        monitoring: false,
        log_interval: 1,
        ..config(Some(10))
    };
    let mut monitor = monitor(&config, 0);
    for _ in 0..20 {
        assert_eq!(monitor.record_request(noon()), []);
    }
    assert_eq!(monitor.should_pause(noon()), None);
    assert_eq!(monitor.metrics(noon()).requests_used_today, 20);
}

#[test]
fn what_is_saved_and_loaded_is_equal() {
    let rules = config(Some(1_000)).check().unwrap();
    let mut before = monitor(&config(Some(1_000)), 850);
    before.observe(&headers("requests", 10_000, 9_000, "day"), noon());
    before.pause(
        "the provider says so",
        Some(wall("2026-11-25T00:00:00Z")),
        noon(),
    );
    let text = before.to_state().to_json();
    let (after, events) = QuotaMonitor::restore(rules, Some(&text), noon());
    assert_eq!(events, []);
    assert_eq!(after.to_state(), before.to_state());
    assert_eq!(after.metrics(noon()), before.metrics(noon()));
    assert_eq!(after.should_pause(noon()), before.should_pause(noon()));
}

#[test]
fn a_missing_or_broken_file_starts_empty_and_says_so() {
    let rules = config(Some(10)).check().unwrap();
    for text in [
        None,
        Some(""),
        Some("{"),
        Some("[]"),
        Some(r#"{"day":"yesterday","used":5}"#),
        Some(r#"{"day":"2026-11-22","used":-5}"#),
    ] {
        let (monitor, events) = QuotaMonitor::restore(rules.clone(), text, noon());
        assert!(
            matches!(events[..], [QuotaEvent::StateLost { .. }]),
            "{text:?}"
        );
        assert_eq!(monitor.metrics(noon()).requests_used_today, 0);
    }
}

#[test]
fn the_configuration_wins_over_the_file() {
    let mut before = monitor(&config(Some(1_000)), 849);
    before.record_request(noon());
    let state = before.to_state();
    assert!(state.pause.is_some());
    let wider = config(Some(2_000)).check().unwrap();
    let (after, events) = QuotaMonitor::restore(wider, Some(&state.to_json()), noon());
    assert_eq!(after.should_pause(noon()), None);
    assert_eq!(
        events,
        [QuotaEvent::Resumed {
            paused_for: Duration::ZERO
        }]
    );
    assert_eq!(after.metrics(noon()).usage_percentage, Some(42.5));
}

#[test]
fn a_crash_forgets_no_request_and_a_clean_stop_costs_none() {
    let rules = config(Some(1_000)).check().unwrap();
    let mut monitor = monitor(&config(Some(1_000)), 0);
    let mut disk = monitor.to_state();
    for sent in 1..=42 {
        if let Some(state) = monitor.draw(noon()) {
            disk = state;
        }
        monitor.record_request(noon());
        let after = QuotaMonitor::from_state(rules.clone(), disk.clone(), noon()).unwrap();
        assert!(
            (sent..=sent + 10).contains(&after.used),
            "{} after {sent}",
            after.used
        );
    }
    let clean = monitor.to_final_state();
    assert_eq!(
        QuotaMonitor::from_state(rules, clean, noon()).unwrap().used,
        42
    );
}

#[test]
fn updates_from_several_threads_all_count() {
    let shared = Arc::new(Mutex::new(monitor(&config(Some(1_000)), 0)));
    let workers: Vec<_> = (0..3)
        .map(|_| {
            let shared = Arc::clone(&shared);
            std::thread::spawn(move || {
                for _ in 0..10 {
                    let mut monitor = shared.lock().unwrap();
                    monitor.update_from_response(&RateLimitHeaders::default(), noon());
                }
            })
        })
        .collect();
    for worker in workers {
        worker.join().unwrap();
    }
    assert_eq!(
        shared.lock().unwrap().metrics(noon()).requests_used_today,
        30
    );
}

proptest! {
    #[test]
    fn no_saved_text_panics(text in any::<String>(), used in any::<u64>(), reserved in any::<u64>()) {
        let rules = config(Some(10)).check().unwrap();
        let state = format!(r#"{{"day":"2026-11-22","used":{used},"reserved":{reserved}}}"#);
        for text in [text, state] {
            let (mut monitor, _) = QuotaMonitor::restore(rules.clone(), Some(&text), noon());
            monitor.draw(noon());
            monitor.record_request(noon());
        }
    }
}
