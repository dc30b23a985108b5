use std::fs::File;
use std::path::Path;

use llmq_engine::bulk::Summary;

use crate::cli::Format;
use crate::exit::{FAILED, Failure};
use crate::output::{self, columns};
use crate::text::{about, dollars, grouped, seconds};

/// The summary for people: what was done, what it took, how well the limits were used.
pub(super) fn table(summary: &Summary) -> String {
    let row = |name: &str, value: String| (name.to_owned(), value);
    let mut rows = vec![row("rows", rows_text(summary))];
    if summary.resumed > 0 {
        rows.push(row("done before", grouped(summary.resumed)));
    }
    rows.push(row("calls sent", grouped(summary.attempts)));
    rows.push(row("refused (429)", refusals(summary)));
    if summary.ambiguous_attempts > 0 {
        let text = format!(
            "{}, which may have been billed",
            grouped(summary.ambiguous_attempts)
        );
        rows.push(row("never answered", text));
    }
    rows.push(row(
        "tokens",
        format!(
            "{} in, {} out",
            grouped(summary.input_tokens),
            grouped(summary.output_tokens)
        ),
    ));
    if let Some(cost) = summary.cost_usd {
        rows.push(row("cost", dollars(cost)));
    }
    rows.push(row("time", time_text(summary)));
    if summary.paused_s > 0.0 {
        rows.push(row("of it paused", seconds(summary.paused_s)));
    }
    if let (Some(bound), Some(efficiency)) = (summary.bound_s, summary.efficiency) {
        rows.push(row("least possible", bound_text(summary, bound)));
        rows.push(row("efficiency", format!("{:.1} %", efficiency * 100.0)));
    }
    columns(&rows)
}

fn rows_text(summary: &Summary) -> String {
    let mut text = format!(
        "{}: {} completed, {} failed",
        grouped(summary.rows),
        grouped(summary.completed),
        grouped(summary.failed)
    );
    if let Some(left) = summary.to_do.filter(|left| *left > 0) {
        text.push_str(&format!(", {} to do", grouped(left)));
    }
    text
}

fn refusals(summary: &Summary) -> String {
    match summary.rate_limited {
        0 => "0".to_owned(),
        all => format!(
            "{}, of which {} could have been foreseen",
            grouped(all),
            grouped(summary.rate_limited_ours)
        ),
    }
}

fn time_text(summary: &Summary) -> String {
    let time = seconds(summary.elapsed_s);
    if summary.attempts == 0 || summary.elapsed_s <= 0.0 {
        return time;
    }
    #[expect(clippy::cast_precision_loss, reason = "a rate for people")]
    let rate = summary.attempts as f64 / summary.elapsed_s;
    format!("{time} ({} calls/s)", about(rate))
}

fn bound_text(summary: &Summary, bound: f64) -> String {
    match &summary.binding {
        Some(limit) => format!("{} (the limit that binds: {limit})", seconds(bound)),
        None => seconds(bound),
    }
}

/// Finds out before a run whether its summary can be written.
pub(super) fn can_be_written(path: &Path) -> Result<(), Failure> {
    let file = File::options().create(true).append(true).open(path);
    file.map(drop).map_err(|error| {
        Failure::usage(format!(
            "--summary: cannot write {}: {error}",
            path.display()
        ))
    })
}

/// Writes the summary to `--summary`.
pub(super) fn write(path: &Path, summary: &Summary) -> Result<(), Failure> {
    let text = output::json(summary, Format::Json)?;
    std::fs::write(path, text).map_err(|error| Failure {
        code: FAILED,
        message: format!("--summary: cannot write {}: {error}", path.display()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_summary_is_understood_at_a_glance() {
        let summary = Summary {
            rows: 42_888,
            to_do: Some(800),
            completed: 42_000,
            failed: 88,
            attempts: 42_188,
            ambiguous_attempts: 2,
            rate_limited: 3,
            rate_limited_ours: 0,
            input_tokens: 900_000,
            output_tokens: 1_700_000,
            cost_usd: Some(1.155),
            elapsed_s: 81.4,
            bound_s: Some(80.2),
            efficiency: Some(0.985),
            paused_s: 0.0,
            resumed: 100,
            binding: Some("rpm mock".to_owned()),
            stopped: None,
        };
        assert_eq!(
            table(&summary),
            "rows            42,888: 42,000 completed, 88 failed, 800 to do\n\
             done before     100\n\
             calls sent      42,188\n\
             refused (429)   3, of which 0 could have been foreseen\n\
             never answered  2, which may have been billed\n\
             tokens          900,000 in, 1,700,000 out\n\
             cost            $1.16\n\
             time            1 min 21 s (518 calls/s)\n\
             least possible  1 min 20 s (the limit that binds: rpm mock)\n\
             efficiency      98.5 %\n"
        );
    }
}
