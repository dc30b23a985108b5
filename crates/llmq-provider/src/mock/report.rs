use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// What a stand-in provider saw since its start: `GET /mock/report`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Report {
    /// Calls whose body arrived, whatever became of them.
    pub calls: u64,
    /// Calls that every limit let in.
    pub accepted: u64,
    /// Calls that a limit refused.
    pub refused: u64,
    /// The limits, in the order given.
    pub limits: Vec<LimitReport>,
    /// Answers by HTTP status.
    pub status: BTreeMap<u16, u64>,
    /// Admitted calls whose connection was closed without an answer.
    pub dropped: u64,
    /// Admitted calls whose client left before the end of its answer.
    pub abandoned: u64,
    /// Calls refused because the money is gone.
    pub out_of_money: u64,
    /// Calls that fell into an outage.
    pub in_outage: u64,
    /// Input tokens of admitted calls.
    pub input_tokens: u64,
    /// Output tokens of whole answers.
    pub output_tokens: u64,
    /// Admitted calls not yet answered.
    pub in_flight: u64,
    /// The most of them at one time.
    pub in_flight_max: u64,
    /// When the first call arrived, in microseconds since the start.
    pub first_arrival_us: Option<u64>,
    /// When the last call arrived, in microseconds since the start.
    pub last_arrival_us: Option<u64>,
    /// Microseconds since the start.
    pub uptime_us: u64,
    /// How often the same body was paid for.
    pub answers: AnswerCounts,
}

/// The books of one limit.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct LimitReport {
    /// The limit as it is written, such as `requests=2k/10s`.
    pub limit: String,
    /// Calls it refused.
    pub refused: u64,
    /// What is used of it now; above the count when overdrawn.
    pub used: u64,
    /// What is left of it now.
    pub remaining: u64,
    /// What other users of the account took of it.
    pub foreign: u64,
}

/// How often equal bodies, sent to one path, were answered with status 200. Headers play no
/// part in it, so a call that was sent again counts as the same one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct AnswerCounts {
    /// Different bodies answered.
    pub distinct: u64,
    /// Answers beyond the first of their body: what was paid more than once.
    pub repeated: u64,
    /// The most answers that one body got.
    pub most: u64,
    /// Answers to further bodies after the books were full; 0 unless a million were met.
    pub untracked: u64,
}
