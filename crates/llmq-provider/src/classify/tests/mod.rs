//! Failures as providers tell them, each with the class it must be given.

mod anthropic;
mod compatible;
mod openai;
mod verdicts;

use llmq_core::WallTime;

use super::*;

/// 2026-01-10 07:00 UTC: 23:00 the day before in California.
const NOW: i64 = 1_768_028_400_000_000;

fn now() -> Now {
    Now {
        wall: WallTime::from_micros(NOW),
        ..Now::default()
    }
}

/// Status, headers, body.
type Failed<'a> = (u16, &'a [(&'static str, &'static str)], &'a str);

fn verdict(host: Host, failed: Failed<'_>) -> Verdict {
    let dialect = match host {
        Host::Anthropic => Dialect::Anthropic,
        _ => Dialect::OpenAi,
    };
    let (status, headers, body) = failed;
    let headers = headers
        .iter()
        .map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()))
        .collect();
    let source = Source { host, dialect };
    let status = StatusCode::from_u16(status).unwrap();
    classify(source, status, &headers, body.as_bytes(), now())
}

/// Checks the class, and the told wait in seconds.
fn check(host: Host, table: &[(Failed<'_>, FailureClass, Option<f64>)]) {
    for (failed, class, wait) in table {
        let found = verdict(host, *failed);
        let told = found.wait.map(|wait| wait.as_secs_f64());
        assert_eq!((found.class, told), (*class, *wait), "{failed:?}");
        assert_eq!(found.status, Some(failed.0));
    }
}

const LIMITED: &str = r#"{"error":{"message":"Rate limit reached","type":"requests","param":null,"code":"rate_limit_exceeded"}}"#;
