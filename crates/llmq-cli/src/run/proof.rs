use llmq_engine::bulk::{OutputPaths, VerifyReport, verify as compare};
use serde_json::json;

use crate::cli::{Format, Global};
use crate::exit::{FAILED, Failure};
use crate::output;
use crate::prompt::Input;

/// `--verify`: says whether every row is in the output exactly once.
pub(super) fn verify(input: &Input, paths: &OutputPaths, global: &Global) -> Result<(), Failure> {
    let report = compare(&input.source, input.kind, input.read.limit_rows, paths)
        .map_err(|error| Failure::wrong(&error))?;
    let text = match global.format {
        Format::Table => {
            let proof = if report.is_whole() {
                "every row is there exactly once"
            } else {
                "this is not the whole file, each row once"
            };
            format!("{report}\n{proof}\n")
        }
        Format::Json | Format::Jsonl => output::json(&as_json(&report), global.format)?,
    };
    output::print(&text)?;
    if report.is_whole() {
        Ok(())
    } else {
        Err(Failure::silent(FAILED))
    }
}

fn as_json(report: &VerifyReport) -> serde_json::Value {
    let missing: Vec<_> = report
        .missing_ranges
        .iter()
        .map(|range| [*range.start(), *range.end()])
        .collect();
    json!({
        "whole": report.is_whole(),
        "rows": report.rows,
        "completed": report.completed,
        "failed": report.failed,
        "missing": report.missing,
        "missing_ranges": missing,
        "duplicates": report.duplicates,
        "duplicate_rows": report.duplicate_rows,
        "unknown": report.unknown,
        "unknown_rows": report.unknown_rows,
        "damaged_rows": report.damaged_rows,
        "torn_bytes": report.torn_bytes,
    })
}
