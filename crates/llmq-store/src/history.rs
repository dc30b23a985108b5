//! The history checker: from what was said of jobs, whether the promises were kept.
//!
//! A test, a client or a store's own file writes down what it saw as [`Entry`]s, one JSON object
//! a line; [`check_history`] reads them when all is over, and knows nothing of how a store works.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use llmq_core::{Status, WallTime};
use serde::{Deserialize, Serialize};

use crate::{JobId, LeaseToken};

/// Something that was seen, in the order in which it was.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "saw", rename_all = "snake_case")]
pub enum Entry {
    /// Somebody is about to hand the job in; whether it was accepted is not known yet.
    HandedIn {
        /// The job.
        job: JobId,
    },
    /// The store said that it has it.
    Accepted {
        /// The job.
        job: JobId,
        /// When its time to start ends, if it ends; of a queue that never stood.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        expires_at: Option<WallTime>,
        /// Who is to be told of its end.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        targets: Vec<String>,
    },
    /// The store said that an attempt may be sent.
    Started {
        /// The job.
        job: JobId,
        /// The lease.
        token: LeaseToken,
        /// When.
        at: WallTime,
    },
    /// A provider got a call of the job.
    Sent {
        /// The job.
        job: JobId,
    },
    /// The store said that it recorded an end. `token` is of the lease it was reported with; ends
    /// that nobody reported (expiry, cancellation, a lost lease) have none.
    Finished {
        /// The job.
        job: JobId,
        /// How it ended.
        status: Status,
        /// With which lease.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        token: Option<LeaseToken>,
    },
    /// Somebody looked at the job and saw this status.
    Seen {
        /// The job.
        job: JobId,
        /// Where it stood.
        status: Status,
    },
    /// Somebody was told of the end of the job.
    Told {
        /// The job.
        job: JobId,
        /// Who.
        target: String,
        /// The `webhook-id` of what was told.
        message: String,
    },
    /// A fault was made: a kill, a power cut, an error of the disk. `in_flight` is how many calls
    /// of the store had not been answered.
    Fault {
        /// Which.
        what: String,
        /// How many calls had not been answered.
        in_flight: u64,
    },
    /// All is over, and this is all that the store holds.
    End {
        /// Each job and where it stands.
        jobs: Vec<(JobId, Status)>,
    },
}

/// A promise that was not kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// Which one.
    pub rule: Rule,
    /// Of which job.
    pub job: Option<JobId>,
    /// What was seen.
    pub what: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.job {
            Some(job) => write!(f, "{}: job {job}: {}", self.rule, self.what),
            None => write!(f, "{}: {}", self.rule, self.what),
        }
    }
}

/// What a history is held against.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Rule {
    /// No accepted job is lost.
    NoneLost,
    /// No job is there that nobody handed in.
    NoneUnexpected,
    /// Each job comes to exactly one final status.
    OneEnd,
    /// A final status never changes.
    EndsStand,
    /// A result is recorded once, by the attempt that holds the lease.
    OneResult,
    /// Nothing is started after its time to start.
    NotTooLate,
    /// Nothing is sent or completed that was not started, and no two attempts have one lease.
    Leased,
    /// Whoever is to be told of an end is told at least once, by one id.
    Told,
    /// What the history is to prove was put to the test: faults were made, while something was
    /// under way.
    WasTried,
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoneLost => "no accepted job is lost",
            Self::NoneUnexpected => "no job is there that nobody handed in",
            Self::OneEnd => "each job comes to one end",
            Self::EndsStand => "an end never changes",
            Self::OneResult => "a result is recorded once",
            Self::NotTooLate => "nothing starts after its time",
            Self::Leased => "nothing is sent or ends well without a lease of its own",
            Self::Told => "whoever asked is told of the end, by one id",
            Self::WasTried => "faults were made while something was under way",
        })
    }
}

/// How a history is held against the rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct HistoryOptions {
    /// How many faults there must have been with something in flight: a run without is no proof.
    pub faults_min: u64,
    /// Whether jobs may be unfinished at the end.
    pub unfinished: bool,
}

#[derive(Default)]
struct Seen<'a> {
    accepted: bool,
    handed_in: bool,
    expires_at: Option<WallTime>,
    targets: BTreeSet<&'a str>,
    tokens: BTreeSet<LeaseToken>,
    sent: usize,
    end: Option<Status>,
    /// The end that was recorded.
    finished: Option<Status>,
    told: BTreeMap<&'a str, BTreeSet<&'a str>>,
}

/// All promises that the history shows broken; none when it shows them kept.
#[must_use]
pub fn check_history(entries: &[Entry], options: HistoryOptions) -> Vec<Violation> {
    let mut checker = Checker::default();
    for entry in entries {
        checker.take(entry);
    }
    checker.conclude(options);
    checker.violations
}

#[derive(Default)]
struct Checker<'a> {
    jobs: BTreeMap<JobId, Seen<'a>>,
    faults: u64,
    held: Option<BTreeMap<JobId, Status>>,
    violations: Vec<Violation>,
}

impl<'a> Checker<'a> {
    fn blame(&mut self, rule: Rule, job: JobId, what: impl Into<String>) {
        self.violations.push(Violation {
            rule,
            job: Some(job),
            what: what.into(),
        });
    }

    fn take(&mut self, entry: &'a Entry) {
        match entry {
            Entry::HandedIn { job } => self.jobs.entry(*job).or_default().handed_in = true,
            Entry::Accepted {
                job,
                expires_at,
                targets,
            } => {
                let seen = self.jobs.entry(*job).or_default();
                seen.accepted = true;
                seen.expires_at = *expires_at;
                seen.targets.extend(targets.iter().map(String::as_str));
            }
            Entry::Started { job, token, at } => self.started(*job, *token, *at),
            Entry::Sent { job } => self.sent(*job),
            Entry::Finished { job, status, token } => self.finished(*job, *status, *token),
            Entry::Seen { job, status } => self.status(*job, *status),
            Entry::Told {
                job,
                target,
                message,
            } => {
                let seen = self.jobs.entry(*job).or_default();
                seen.told.entry(target).or_default().insert(message);
            }
            Entry::Fault { in_flight, .. } => self.faults += u64::from(*in_flight > 0),
            Entry::End { jobs } => {
                for (job, status) in jobs {
                    self.status(*job, *status);
                }
                self.held = Some(jobs.iter().copied().collect());
            }
        }
    }

    fn started(&mut self, job: JobId, token: LeaseToken, at: WallTime) {
        let seen = self.jobs.entry(job).or_default();
        let late = seen.expires_at.filter(|expires| at >= *expires);
        let is_new = seen.tokens.insert(token);
        let end = seen.end;
        if let Some(expires) = late {
            let late = at.as_micros() - expires.as_micros();
            self.blame(
                Rule::NotTooLate,
                job,
                format!("it started {late} µs after its time"),
            );
        }
        if !is_new {
            self.blame(
                Rule::Leased,
                job,
                format!("two attempts had lease {}", token.0),
            );
        }
        if let Some(end) = end {
            self.blame(
                Rule::EndsStand,
                job,
                format!("it started though it was {end}"),
            );
        }
    }

    fn sent(&mut self, job: JobId) {
        let seen = self.jobs.entry(job).or_default();
        seen.sent += 1;
        let (sent, started) = (seen.sent, seen.tokens.len());
        if sent > started {
            let what = format!("it was sent {sent} times, and started {started} times");
            self.blame(Rule::Leased, job, what);
        }
    }

    fn finished(&mut self, job: JobId, status: Status, token: Option<LeaseToken>) {
        let seen = self.jobs.entry(job).or_default();
        let newest = seen.tokens.last().copied();
        let is_leased = token.is_some_and(|token| seen.tokens.contains(&token));
        let is_newest = token == newest;
        let is_again = seen.finished.replace(status) == Some(status);
        if status == Status::Completed && !is_leased {
            self.blame(Rule::Leased, job, "it was completed by nobody who held it");
        } else if token.is_some() && !is_newest {
            self.blame(
                Rule::OneResult,
                job,
                "an attempt reported that was replaced before",
            );
        }
        if is_again {
            let what = format!("that it is {status} was recorded again");
            self.blame(Rule::OneResult, job, what);
        }
        self.status(job, status);
    }

    fn status(&mut self, job: JobId, status: Status) {
        let seen = self.jobs.entry(job).or_default();
        match seen.end {
            Some(end) if end != status => {
                let rule = if status.is_final() {
                    Rule::OneEnd
                } else {
                    Rule::EndsStand
                };
                self.blame(rule, job, format!("it was {end}, and then {status}"));
            }
            None if status.is_final() => seen.end = Some(status),
            Some(_) | None => {}
        }
    }

    fn conclude(&mut self, options: HistoryOptions) {
        if let Some(held) = self.held.take() {
            self.compare(&held, options);
        }
        for (job, seen) in std::mem::take(&mut self.jobs) {
            for (target, messages) in &seen.told {
                if messages.len() > 1 {
                    let count = messages.len();
                    self.blame(Rule::Told, job, format!("{target} was told by {count} ids"));
                }
            }
            let untold = seen
                .targets
                .iter()
                .filter(|target| !seen.told.contains_key(**target));
            for target in untold.filter(|_| seen.end.is_some()) {
                self.blame(Rule::Told, job, format!("{target} was not told"));
            }
        }
        if self.faults < options.faults_min {
            let (faults, wanted) = (self.faults, options.faults_min);
            self.violations.push(Violation {
                rule: Rule::WasTried,
                job: None,
                what: format!("{faults} of {wanted} faults met calls in flight"),
            });
        }
    }

    /// What the store holds in the end against what was said.
    fn compare(&mut self, held: &BTreeMap<JobId, Status>, options: HistoryOptions) {
        let accepted = self.jobs.iter().filter(|(_, seen)| seen.accepted);
        let lost: Vec<_> = accepted
            .map(|(job, _)| *job)
            .filter(|job| !held.contains_key(job))
            .collect();
        for job in lost {
            self.blame(Rule::NoneLost, job, "it was accepted and is not there");
        }
        for (job, status) in held {
            let seen = self.jobs.get(job);
            if seen.is_none_or(|seen| !seen.accepted && !seen.handed_in) {
                self.blame(Rule::NoneUnexpected, *job, "nobody handed it in");
            }
            if !status.is_final() && !options.unfinished {
                self.blame(Rule::OneEnd, *job, format!("it is {status} in the end"));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const AT: WallTime = WallTime::from_micros(1_000);

    /// One job's whole life, told to one target, with a fault in it.
    fn history(job: JobId) -> Vec<Entry> {
        let token = LeaseToken(2);
        vec![
            Entry::HandedIn { job },
            Entry::Accepted {
                job,
                expires_at: Some(WallTime::from_micros(2_000)),
                targets: vec!["hook".to_owned()],
            },
            Entry::Started {
                job,
                token: LeaseToken(1),
                at: AT,
            },
            Entry::Fault {
                what: "killed".to_owned(),
                in_flight: 1,
            },
            Entry::Started { job, token, at: AT },
            Entry::Sent { job },
            Entry::Finished {
                job,
                status: Status::Completed,
                token: Some(token),
            },
            Entry::Told {
                job,
                target: "hook".to_owned(),
                message: "msg_1".to_owned(),
            },
            Entry::End {
                jobs: vec![(job, Status::Completed)],
            },
        ]
    }

    /// The rules that a history breaks once `bug` has been put into it.
    fn broken_by(bug: impl FnOnce(JobId, &mut Vec<Entry>)) -> Vec<Rule> {
        let job = JobId::new();
        let mut entries = history(job);
        bug(job, &mut entries);
        let options = HistoryOptions {
            faults_min: 1,
            unfinished: false,
        };
        let found = check_history(&entries, options);
        found.into_iter().map(|violation| violation.rule).collect()
    }

    fn finished(job: JobId, status: Status, token: u64) -> Entry {
        Entry::Finished {
            job,
            status,
            token: Some(LeaseToken(token)),
        }
    }

    #[test]
    fn a_history_without_a_bug_breaks_no_rule() {
        assert_eq!(broken_by(|_, _| {}), []);
    }

    #[test]
    fn each_rule_catches_its_bug() {
        use Rule as R;
        let lost = broken_by(|_, all| all[8] = Entry::End { jobs: Vec::new() });
        assert_eq!(lost, [R::NoneLost]);
        let unexpected = broken_by(|job, all| {
            let jobs = vec![(job, Status::Completed), (JobId::new(), Status::Completed)];
            all[8] = Entry::End { jobs };
        });
        assert_eq!(unexpected, [R::NoneUnexpected]);
        let two_ends = broken_by(|job, all| all.insert(7, finished(job, Status::Failed, 2)));
        assert_eq!(two_ends, [R::OneEnd]);
        let unfinished = broken_by(|job, all| {
            all.remove(6);
            let jobs = vec![(job, Status::Queued)];
            all[7] = Entry::End { jobs };
        });
        assert_eq!(unfinished, [R::OneEnd]);
        let back = broken_by(|job, all| {
            let status = Status::Queued;
            all.insert(7, Entry::Seen { job, status });
        });
        assert_eq!(back, [R::EndsStand]);
        let again = broken_by(|job, all| {
            let token = LeaseToken(3);
            all.insert(7, Entry::Started { job, token, at: AT });
        });
        assert_eq!(again, [R::EndsStand]);
        let twice = broken_by(|job, all| all.insert(7, finished(job, Status::Completed, 2)));
        assert_eq!(twice, [R::OneResult]);
        let replaced = broken_by(|job, all| all[6] = finished(job, Status::Completed, 1));
        assert_eq!(replaced, [R::OneResult]);
        let late = broken_by(|job, all| {
            let (token, at) = (LeaseToken(2), WallTime::from_micros(2_000));
            all[4] = Entry::Started { job, token, at };
        });
        assert_eq!(late, [R::NotTooLate]);
        let unleased = broken_by(|job, all| all[6] = finished(job, Status::Completed, 9));
        assert_eq!(unleased, [R::Leased]);
        let shared = broken_by(|_, all| all.insert(4, all[4].clone()));
        assert_eq!(shared, [R::Leased]);
        let unsaid = broken_by(|job, all| all.insert(2, Entry::Sent { job }));
        assert_eq!(unsaid, [R::Leased]);
        let told_twice = broken_by(|job, all| {
            let (status, token) = (Status::Expired, None);
            all.drain(2..8);
            let end = Entry::Finished { job, status, token };
            all.splice(2..2, [end.clone(), end]);
        });
        assert!(told_twice.contains(&R::OneResult), "{told_twice:?}");
        let untold = broken_by(|_, all| drop(all.remove(7)));
        assert_eq!(untold, [R::Told]);
        let two_ids = broken_by(|job, all| {
            let (target, message) = ("hook".to_owned(), "msg_2".to_owned());
            all.insert(
                8,
                Entry::Told {
                    job,
                    target,
                    message,
                },
            );
        });
        assert_eq!(two_ids, [R::Told]);
        let untried = broken_by(|_, all| drop(all.remove(3)));
        assert_eq!(untried, [R::WasTried]);
        let idle = broken_by(|_, all| {
            let what = "killed".to_owned();
            all[3] = Entry::Fault { what, in_flight: 0 };
        });
        assert_eq!(idle, [R::WasTried]);
    }

    #[test]
    fn an_entry_reads_back_from_its_line() {
        for entry in history(JobId::new()) {
            let line = serde_json::to_string(&entry).unwrap();
            assert_eq!(serde_json::from_str::<Entry>(&line).unwrap(), entry);
        }
    }
}
