use std::io::IsTerminal;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use llmq_engine::bulk::{Paused, Progress};
use serde_json::{Value, json};

use super::args::ProgressForm;
use crate::log;
use crate::text::{about, dollars, grouped, local_time, span};

/// Looks between two lines of plain progress; there is a look a second.
const LOOKS_A_LINE: u32 = 10;

/// Shows on stderr where a run stands.
pub(super) enum Show {
    Bar(ProgressBar),
    Plain { looks: u32 },
    Json,
    Nothing,
}

impl Show {
    pub(super) fn new(form: ProgressForm, quiet: bool) -> Self {
        let on_terminal = std::io::stderr().is_terminal();
        match form {
            _ if quiet => Self::Nothing,
            ProgressForm::None => Self::Nothing,
            ProgressForm::Json => Self::Json,
            ProgressForm::Auto if on_terminal => Self::bar(),
            ProgressForm::Bar => Self::bar(),
            ProgressForm::Plain | ProgressForm::Auto => Self::Plain { looks: 0 },
        }
    }

    fn bar() -> Self {
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
        log::go_around(bar.clone());
        Self::Bar(bar)
    }

    /// Shows `progress`; called once a second.
    pub(super) fn look(&mut self, progress: &Progress) {
        match self {
            Self::Bar(bar) => draw(bar, progress),
            Self::Plain { looks } => {
                *looks += 1;
                if looks.is_multiple_of(LOOKS_A_LINE) {
                    say!("{}", line(progress));
                }
            }
            Self::Json => say!("{}", as_json(progress)),
            Self::Nothing => {}
        }
    }

    /// Takes the bar away.
    pub(super) fn end(&self) {
        if let Self::Bar(bar) = self {
            bar.finish_and_clear();
        }
    }
}

fn draw(bar: &ProgressBar, progress: &Progress) {
    if let Some(rows) = progress.rows
        && bar.length() != Some(rows)
    {
        bar.set_length(rows);
        if let Ok(style) = ProgressStyle::with_template("[{bar:24}] {percent}% {wide_msg}") {
            bar.set_style(style.progress_chars("=> "));
        }
    } else if bar.length().is_none()
        && let Ok(style) = ProgressStyle::with_template("{wide_msg}")
    {
        bar.set_style(style);
    }
    bar.set_position(progress.done);
    bar.set_message(line(progress));
    bar.tick();
}

/// Where a run stands, on one line.
fn line(progress: &Progress) -> String {
    let mut parts = vec![match progress.rows {
        Some(rows) => format!("{} of {} rows", grouped(progress.done), grouped(rows)),
        None => format!("{} rows", grouped(progress.done)),
    }];
    if let Some(paused) = &progress.paused {
        parts.push(pause(paused));
    }
    // A narrow terminal cuts the end off: what is asked for most often comes first.
    parts.push(format!("{}/s", about(progress.rows_per_second)));
    if progress.paused.is_none() {
        parts.extend(progress.left.map(|left| format!("{} left", span(left))));
    }
    if let Some((name, percent)) = &progress.binding {
        parts.push(format!("{name} {percent:.0}%"));
    }
    parts.push(format!("{} in flight", grouped(progress.in_flight)));
    parts.push(format!("{} tokens/min", about(progress.tokens_per_minute)));
    parts.extend(progress.cost_usd.map(dollars));
    parts.push(format!("{} retries", grouped(progress.retries)));
    parts.push(format!("{} errors", grouped(progress.failed)));
    parts.join(" · ")
}

fn pause(paused: &Paused) -> String {
    match paused.until {
        Some(until) => format!("paused until {}: {}", local_time(until), paused.reason),
        None => format!("paused: {}", paused.reason),
    }
}

fn as_json(progress: &Progress) -> Value {
    let paused = progress.paused.as_ref().map(|paused| {
        let instant = |micros| jiff::Timestamp::from_microsecond(micros).ok();
        let until = paused.until.and_then(|until| instant(until.as_micros()));
        json!({"reason": paused.reason, "until": until.map(|until| until.to_string())})
    });
    let limit = progress.binding.as_ref();
    let limit = limit.map(|(name, percent)| json!({"name": name, "used_percent": percent}));
    json!({
        "rows": progress.rows,
        "done": progress.done,
        "failed": progress.failed,
        "resumed": progress.resumed,
        "rows_per_s": progress.rows_per_second,
        "tokens_per_min": progress.tokens_per_minute,
        "limit": limit,
        "in_flight": progress.in_flight,
        "retries": progress.retries,
        "rate_limited": progress.rate_limited,
        "cost_usd": progress.cost_usd,
        "left_s": progress.left.as_ref().map(Duration::as_secs_f64),
        "paused": paused,
    })
}

#[cfg(test)]
mod tests {
    use llmq_core::WallTime;

    use super::*;

    fn progress() -> Progress {
        Progress {
            rows: Some(42_888),
            done: 12_345,
            failed: 2,
            resumed: 10,
            rows_per_second: 812.4,
            tokens_per_minute: 1_234_567.0,
            binding: Some(("rpm openai/gpt-4o-mini".to_owned(), 97.4)),
            in_flight: 16,
            retries: 3,
            rate_limited: 0,
            cost_usd: Some(1.234),
            left: Some(Duration::from_secs(125)),
            paused: None,
        }
    }

    #[test]
    fn a_line_says_all_that_matters() {
        assert_eq!(
            line(&progress()),
            "12,345 of 42,888 rows · 812/s · 2 min 5 s left · rpm openai/gpt-4o-mini 97% · \
             16 in flight · 1.2M tokens/min · $1.23 · 3 retries · 2 errors"
        );
    }

    #[test]
    fn a_pause_says_why_and_until_when_instead_of_the_time_left() {
        let paused = Progress {
            paused: Some(Paused {
                reason: "the daily limit is used up".to_owned(),
                until: None,
            }),
            ..progress()
        };
        let line = line(&paused);
        assert!(
            line.contains(" · paused: the daily limit is used up · "),
            "{line}"
        );
        assert!(!line.contains("left"), "{line}");
    }

    #[test]
    fn json_holds_instants_and_seconds() {
        let paused = Progress {
            paused: Some(Paused {
                reason: "r".to_owned(),
                until: Some(WallTime::from_micros(1_000_000)),
            }),
            ..progress()
        };
        let json = as_json(&paused);
        assert_eq!(json["paused"]["until"], "1970-01-01T00:00:01Z");
        assert_eq!(json["left_s"], 125.0);
    }
}
