//! What was seen of the requests of a server that was killed, and what it says of the promises.

use std::collections::{BTreeMap, BTreeSet};

use llmq_core::{Status, WallTime};
use llmq_store::{Entry, HistoryOptions, JobId, LeaseToken, Violation, check_history};

use crate::server::{Held, HeldJob};
use crate::witness::Sent;

/// Whoever asks to be told has this name here.
const HOOK: &str = "hook";

/// All of it, by whoever saw it. A request is known by its text.
#[derive(Debug, Default)]
pub(crate) struct Evidence {
    pub(crate) handed_in: BTreeSet<String>,
    pub(crate) acknowledged: BTreeMap<String, Acknowledged>,
    /// The ids of the webhooks that came.
    pub(crate) told: BTreeMap<String, Vec<String>>,
    /// The calls that the provider got.
    pub(crate) sent: Vec<Sent>,
    pub(crate) faults: Vec<Entry>,
    /// What the file holds when all is over.
    pub(crate) held: Held,
}

/// What a caller was told on acceptance.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Acknowledged {
    pub(crate) job: JobId,
    /// Until when it was to start.
    pub(crate) expires_at: WallTime,
    pub(crate) is_to_be_told: bool,
}

impl Evidence {
    /// The promises that were broken, where at least so many faults had to meet calls in flight.
    pub(crate) fn broken(&self, faults_min: u64) -> Vec<Violation> {
        let options = HistoryOptions {
            faults_min,
            unfinished: false,
        };
        check_history(&self.history(), options)
    }

    fn history(&self) -> Vec<Entry> {
        let ids: BTreeMap<&str, JobId> = self
            .held
            .jobs
            .iter()
            .map(|job| (job.text.as_str(), job.id))
            .collect();
        assert_eq!(
            ids.len(),
            self.held.jobs.len(),
            "something was handed in once and is there twice"
        );
        let of = |text: &str| ids.get(text).copied();
        let handed_in = self.handed_in.iter().filter_map(|text| of(text));
        let mut history: Vec<Entry> = handed_in.map(|job| Entry::HandedIn { job }).collect();
        history.extend(self.acknowledged.values().map(|told| {
            Entry::Accepted {
                job: told.job,
                expires_at: Some(told.expires_at),
                targets: told
                    .is_to_be_told
                    .then(|| HOOK.to_owned())
                    .into_iter()
                    .collect(),
            }
        }));
        history.extend(self.faults.iter().cloned());
        history.extend(self.attempts(of));
        for (text, messages) in &self.told {
            history.extend(of(text).into_iter().flat_map(|job| {
                messages.iter().map(move |message| Entry::Told {
                    job,
                    target: HOOK.to_owned(),
                    message: message.clone(),
                })
            }));
        }
        let jobs = self.held.jobs.iter().map(|job| (job.id, job.status));
        history.push(Entry::End {
            jobs: jobs.collect(),
        });
        history
    }

    /// What the store said of attempts and ends, and what the provider got, by the clock that
    /// both read.
    fn attempts(&self, of: impl Fn(&str) -> Option<JobId>) -> Vec<Entry> {
        let leases = self.leases();
        let jobs: BTreeMap<JobId, &HeldJob> =
            self.held.jobs.iter().map(|job| (job.id, job)).collect();
        let events = self.held.events.iter().enumerate();
        let mut entries: Vec<(WallTime, Entry)> = events
            .map(|(number, event)| {
                let (job, status, at) = (event.job, event.status, event.at);
                let entry = match status {
                    Status::Processing => Entry::Started {
                        job,
                        token: token_of(number),
                        at,
                    },
                    Status::Completed => Entry::Finished {
                        job,
                        status,
                        token: jobs.get(&job).and_then(|job| self.lease_of(job, &leases)),
                    },
                    status if status.is_final() => Entry::Finished {
                        job,
                        status,
                        token: None,
                    },
                    status => Entry::Seen { job, status },
                };
                (at, entry)
            })
            .collect();
        let sent = self.sent.iter();
        entries.extend(sent.filter_map(|call| {
            Some((
                call.at,
                Entry::Sent {
                    job: of(&call.text)?,
                },
            ))
        }));
        // What the store said comes first where both are of one instant.
        entries.sort_by_key(|(at, _)| *at);
        entries.into_iter().map(|(_, entry)| entry).collect()
    }

    /// The leases of each job, by when they were given.
    fn leases(&self) -> BTreeMap<JobId, BTreeMap<WallTime, LeaseToken>> {
        let mut leases = BTreeMap::<_, BTreeMap<_, _>>::new();
        for (number, event) in self.held.events.iter().enumerate() {
            if event.status == Status::Processing {
                let of_job = leases.entry(event.job).or_default();
                of_job.insert(event.at, token_of(number));
            }
        }
        leases
    }

    /// The lease under which the call was sent whose answer is the job's result.
    fn lease_of(
        &self,
        job: &HeldJob,
        leases: &BTreeMap<JobId, BTreeMap<WallTime, LeaseToken>>,
    ) -> Option<LeaseToken> {
        let call = self.sent.get(job.answered?)?;
        let leases = leases.get(&job.id).filter(|_| call.text == job.text)?;
        leases
            .range(..=call.at)
            .next_back()
            .map(|(_, token)| *token)
    }
}

/// Each start is a lease of its own.
fn token_of(number: usize) -> LeaseToken {
    LeaseToken(number as u64)
}

#[cfg(test)]
mod tests {
    use llmq_store::Rule;

    use super::*;
    use crate::server::HeldEvent;

    const EXPIRES_AT: WallTime = at(9);

    const fn at(micros: i64) -> WallTime {
        WallTime::from_micros(micros)
    }

    /// One request, which was sent twice since its first process was killed.
    fn evidence() -> Evidence {
        let (job, text) = (JobId::new(), "hello".to_owned());
        let told = Acknowledged {
            job,
            expires_at: EXPIRES_AT,
            is_to_be_told: true,
        };
        let event = |(micros, status)| HeldEvent {
            job,
            status,
            at: at(micros),
        };
        let events = [
            (1, Status::Queued),
            (2, Status::Processing),
            (5, Status::Queued),
            (6, Status::Processing),
            (8, Status::Completed),
        ];
        let sent = |micros| Sent {
            text: text.clone(),
            at: at(micros),
        };
        Evidence {
            handed_in: [text.clone()].into(),
            acknowledged: [(text.clone(), told)].into(),
            told: [(text.clone(), vec!["msg_1".to_owned()])].into(),
            sent: vec![sent(3), sent(7)],
            faults: vec![Entry::Fault {
                what: "SIGKILL".to_owned(),
                in_flight: 1,
            }],
            held: Held {
                jobs: vec![HeldJob {
                    id: job,
                    status: Status::Completed,
                    text,
                    answered: Some(1),
                }],
                events: events.map(event).into(),
            },
        }
    }

    /// The rules that are broken once `bug` was put in.
    fn broken_by(bug: impl FnOnce(&mut Evidence)) -> BTreeSet<Rule> {
        let mut evidence = evidence();
        bug(&mut evidence);
        let broken = evidence.broken(1);
        broken.iter().map(|violation| violation.rule).collect()
    }

    #[test]
    fn each_rule_catches_its_bug_in_what_is_seen_of_a_server() {
        use Rule as R;
        let rules = |rules: &[Rule]| rules.iter().copied().collect::<BTreeSet<_>>();
        assert_eq!(broken_by(|_| {}), rules(&[]));
        let lost = broken_by(|all| all.held.jobs.clear());
        assert!(lost.contains(&R::NoneLost), "{lost:?}");
        let unexpected = broken_by(|all| {
            all.handed_in.clear();
            all.acknowledged.clear();
        });
        assert_eq!(unexpected, rules(&[R::NoneUnexpected]));
        let late = broken_by(|all| {
            all.held.events[3].at = EXPIRES_AT;
            all.held.events[4].at = at(11);
            all.sent[1].at = at(10);
        });
        assert_eq!(late, rules(&[R::NotTooLate]));
        // The provider got a call before the store had said that it starts.
        let early = broken_by(|all| all.sent[1].at = at(4));
        assert!(early.contains(&R::Leased), "{early:?}");
        // The store never said so.
        let unleased = broken_by(|all| {
            all.held.events.remove(3);
        });
        assert_eq!(unleased, rules(&[R::Leased]));
        // The result is of the attempt that another had replaced.
        let replaced = broken_by(|all| all.held.jobs[0].answered = Some(0));
        assert_eq!(replaced, rules(&[R::OneResult]));
        let of_nobody = broken_by(|all| all.held.jobs[0].answered = None);
        assert_eq!(of_nobody, rules(&[R::Leased]));
        let twice = broken_by(|all| all.held.events.push(all.held.events[4].clone()));
        assert_eq!(twice, rules(&[R::OneResult]));
        let again = broken_by(|all| {
            let mut start = all.held.events[3].clone();
            start.at = all.held.events[4].at;
            all.held.events.push(start);
        });
        assert_eq!(again, rules(&[R::EndsStand]));
        let untold = broken_by(|all| all.told.clear());
        assert_eq!(untold, rules(&[R::Told]));
        let idle = broken_by(|all| all.faults.clear());
        assert_eq!(idle, rules(&[R::WasTried]));
    }
}
