use std::collections::BTreeMap;
use std::time::Duration;

use llmq_core::{Algorithm, LimitKind, LimitSpec, Now, WallTime};
use llmq_dispatch::{Dispatcher, LimitId, UpstreamId};
use llmq_limit::{Factor, Limit};
use serde::{Deserialize, Serialize};

/// Limits of this length and more are saved ahead of their use.
const LONG: Duration = Duration::from_secs(86_400);
/// Calls may have been sent for this long after the last sign of life that is on disk.
const AFTER_LAST_SIGN: Duration = Duration::from_secs(2);

/// What is on disk of the limits' books.
///
/// At a clean stop every window is saved. While a process goes on only limits of a day and more
/// are: with what they may use before the next save already counted as used, so that no crash
/// is a way past them. After a crash the shorter ones are taken as fully spent at the last
/// sign of life. Learned limits follow the same rules as configured ones.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spent {
    /// Whether the process had stopped: then this is all that was used.
    pub clean: bool,
    /// By the limit's name.
    pub limits: BTreeMap<String, Parts>,
    /// The limits that headers told of and nobody configured, by [`learner`].
    #[serde(default)]
    pub learned: BTreeMap<String, Vec<String>>,
    /// By the limit's name, how many tokens the provider charges for a million that our rules
    /// say, where answers have shown it.
    #[serde(default)]
    pub charged_per_million: BTreeMap<String, u64>,
}

/// What was spent of one limit.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Parts {
    /// How long ago in milliseconds and how much, oldest first.
    pub used: Vec<(u64, u64)>,
}

/// What the books call an upstream whose headers are learned from. Another server under the
/// same name has limits of its own.
#[must_use]
pub fn learner(upstream: &str, server: &str) -> String {
    format!("{upstream} at {server}")
}

/// What the books call the limits that are stated for one upstream, account or key. Where several
/// count the same in the same period, all but the first are told apart by their algorithms.
#[must_use]
pub fn limit_names(limits: &[LimitSpec], whose: &str) -> Vec<String> {
    let name = |limit: &LimitSpec| {
        let name = format!("{} {whose}", limit.name());
        let same = |other: &&LimitSpec| (other.kind, other.period) == (limit.kind, limit.period);
        let first = limits.iter().find(same).map(|first| first.algorithm);
        match limit.algorithm {
            algorithm if first == Some(algorithm) => name,
            Algorithm::Sliding => format!("{name} (sliding)"),
            Algorithm::Bucket { .. } => format!("{name} (bucket)"),
            Algorithm::Fixed => format!("{name} (fixed)"),
        }
    };
    limits.iter().map(name).collect()
}

/// What a limit may use before its books are written again: a hundredth.
fn portion(count: u64) -> u64 {
    count.div_ceil(100)
}

/// The next portion of a limit; none for one that is not written ahead.
pub(crate) fn next_portion(dispatcher: &mut Dispatcher, id: LimitId) -> Option<u64> {
    let limit = dispatcher.limit_mut(id);
    is_long(limit.spec()).then(|| limit.portion(portion(limit.spec().count)))
}

fn is_long(spec: &LimitSpec) -> bool {
    spec.kind != LimitKind::Concurrency && spec.period >= LONG
}

impl Spent {
    /// Adds the books of a limit as they must be on disk now, those of a long one with the next
    /// portion. Of two with one name the later one is in force: the other was forgotten or
    /// replaced.
    pub(crate) fn add(&mut self, dispatcher: &mut Dispatcher, limit: LimitId, now: Now) {
        if let Some(parts) = parts(dispatcher.limit_mut(limit), self.clean, now) {
            let name = dispatcher.limit_name(limit).to_owned();
            self.limits.insert(name, parts);
        }
        if let Some(factor) = dispatcher.limit_mut(limit).learned_factor() {
            let name = dispatcher.limit_name(limit).to_owned();
            self.charged_per_million.insert(name, factor.millionths());
        }
    }

    /// Adds what was learned; `learners` are the upstreams that learn, by their [`learner`].
    pub(crate) fn add_learned(
        &mut self,
        dispatcher: &mut Dispatcher,
        learners: &[(UpstreamId, String)],
    ) {
        self.learned = learned(dispatcher, learners);
    }

    /// The limits that earlier processes learned at a [`learner`]. What cannot be read is passed
    /// over: it is learned again.
    #[must_use]
    pub fn learned_at(&self, learner: &str) -> Vec<LimitSpec> {
        let texts = self.learned.get(learner).into_iter().flatten();
        texts.filter_map(|text| text.parse().ok()).collect()
    }

    /// Puts into a limit's books what an earlier process had used by `alive_at`, and how it had
    /// seen the provider count.
    pub fn restore(&self, limit: &mut Limit, name: &str, alive_at: WallTime, now: Now) {
        // A clock that was set back makes this zero: then all counts as just used.
        let gone = now.wall.since(alive_at);
        if let Some(charged) = self.charged_per_million.get(name) {
            limit.set_factor(Factor::from_millionths(*charged));
        }
        match self.limits.get(name) {
            Some(parts) => {
                let used: Vec<(Duration, u64)> = parts
                    .used
                    .iter()
                    .map(|(age, used)| (Duration::from_millis(*age), *used))
                    .collect();
                limit.restore(&used, gone, now.mono);
            }
            // A long limit is always in the books: one that is not is new.
            None if self.clean || is_long(limit.spec()) => {}
            None => {
                let last = now.mono.before(gone.saturating_sub(AFTER_LAST_SIGN));
                limit.exhaust(last, now.mono);
            }
        }
    }
}

fn parts(limit: &mut Limit, clean: bool, now: Now) -> Option<Parts> {
    let spec = *limit.spec();
    if spec.kind == LimitKind::Concurrency || (!clean && !is_long(&spec)) {
        return None;
    }
    let mut used: Vec<(u64, u64)> = limit
        .saved(now.mono)
        .into_iter()
        .map(|(age, used)| (millis(age), used))
        .collect();
    if !clean {
        let least = portion(spec.count).max(limit.allowed().unwrap_or(0));
        let ahead = limit.portion(least).saturating_add(limit.held());
        match used.last_mut() {
            // One part, since a bucket takes each as spent in one instant, and would
            // stand still for what nobody has spent.
            Some((0, amount)) => *amount = amount.saturating_add(ahead),
            _ => used.push((0, ahead)),
        }
    }
    Some(Parts { used })
}

fn learned(
    dispatcher: &mut Dispatcher,
    learners: &[(UpstreamId, String)],
) -> BTreeMap<String, Vec<String>> {
    let mut learned = BTreeMap::new();
    for (upstream, name) in learners {
        let ids = dispatcher.learned_limits(*upstream).into_iter();
        let texts: Vec<String> = ids
            .map(|id| dispatcher.limit_mut(id).spec().to_string())
            .collect();
        if !texts.is_empty() {
            learned.insert(name.clone(), texts);
        }
    }
    learned
}

fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use llmq_core::{CallSize, Host};
    use llmq_dispatch::{LimitSetup, Rules, Scope, UpstreamSetup};
    use llmq_limit::charge_rule;

    use super::*;
    use crate::books::Earlier;

    const NAME: &str = "rpd openai/m";

    fn books(limit: &str, now: Now) -> (Dispatcher, LimitId) {
        let spec: llmq_core::LimitSpec = limit.parse().unwrap();
        let mut dispatcher = Dispatcher::new(Rules::default(), 0);
        let setup = LimitSetup {
            name: NAME.to_owned(),
            spec,
            rule: charge_rule(Host::OpenAi, spec.kind),
            scope: Scope::Upstream,
        };
        let id = dispatcher.add_limit(setup, now);
        (dispatcher, id)
    }

    fn spent_of(
        dispatcher: &mut Dispatcher,
        learners: &[(UpstreamId, String)],
        clean: bool,
        now: Now,
    ) -> Spent {
        let mut spent = Spent {
            clean,
            ..Spent::default()
        };
        for limit in dispatcher.limit_ids() {
            spent.add(dispatcher, limit, now);
        }
        spent.add_learned(dispatcher, learners);
        spent
    }

    fn restore(spent: &Spent, dispatcher: &mut Dispatcher, id: LimitId, now: Now) {
        let name = dispatcher.limit_name(id).to_owned();
        spent.restore(dispatcher.limit_mut(id), &name, now.wall, now);
    }

    // A killed run with a daily bucket stood still for a minute and a half: the hundredth that
    // was written ahead emptied the pace of spending below zero.
    #[test]
    fn what_was_written_ahead_is_counted_and_does_not_hold_up_the_next_process() {
        let now = Now::default().after(Duration::from_secs(1_000_000));
        let (mut before, id) = books("requests=5000/1d:bucket", now);
        let limit = before.limit_mut(id);
        limit.restore(&[(Duration::ZERO, 1_000)], Duration::ZERO, now.mono);
        let spent = spent_of(&mut before, &[], false, now);

        let (mut after, id) = books("requests=5000/1d:bucket", now);
        restore(&spent, &mut after, id, now);
        let limit = after.limit_mut(id);
        let counted: u64 = limit.saved(now.mono).iter().map(|(_, used)| used).sum();
        assert_eq!(counted, 1_050);
        let soon = now.after(Duration::from_secs(3)).mono;
        let cost = limit.cost(&CallSize::default(), 0);
        assert_eq!(limit.check(cost, 0, soon, Duration::ZERO), Ok(()));
    }

    fn learning(limit: &str, now: Now) -> (Dispatcher, [(UpstreamId, String); 1], LimitId) {
        let (mut dispatcher, _) = books("requests=9/2s", now);
        let upstream = dispatcher.add_upstream(UpstreamSetup::default(), now);
        let spec: LimitSpec = limit.parse().unwrap();
        let setup = LimitSetup {
            name: format!("{} up", spec.name()),
            spec,
            rule: charge_rule(Host::Unknown, spec.kind),
            scope: Scope::Upstream,
        };
        let id = dispatcher.add_learned_limit(upstream, setup, now);
        (dispatcher, [(upstream, learner("up", "host:1"))], id)
    }

    #[test]
    fn learned_limits_are_saved_like_configured_ones() {
        let now = Now::default().after(Duration::from_secs(1_000_000));
        for (text, clean, expected) in [
            // As it was.
            ("requests=500/1m", true, 40),
            ("requests=500/1d", true, 40),
            // Taken as used up.
            ("requests=500/1m", false, 500),
            // With what may be used before the next save.
            ("requests=500/1d", false, 45),
        ] {
            let (mut before, learners, id) = learning(text, now);
            let limit = before.limit_mut(id);
            limit.restore(&[(Duration::ZERO, 40)], Duration::ZERO, now.mono);
            let spent = serde_json::to_value(spent_of(&mut before, &learners, clean, now)).unwrap();
            let spent: Spent = serde_json::from_value(spent).unwrap();
            assert_eq!(spent.learned_at("up at host:2"), [], "another server");
            assert_eq!(spent.learned_at("up at host:1"), [text.parse().unwrap()]);

            let (mut after, _, id) = learning(text, now);
            restore(&spent, &mut after, id, now);
            let saved = after.limit_mut(id).saved(now.mono);
            let counted: u64 = saved.iter().map(|(_, used)| used).sum();
            assert_eq!(counted, expected, "{text}, clean: {clean}");
        }
    }

    /// After a crash a daily limit that somebody had just added was taken as used up: a key made
    /// an hour later had its first call refused for the rest of the day.
    #[test]
    fn a_long_limit_that_is_in_no_book_is_new_and_a_short_one_may_be_spent() {
        let now = Now::default().after(Duration::from_secs(1_000_000));
        let crashed = Spent::default();
        for (text, expected) in [("requests=500/1d", 0), ("requests=500/1m", 500)] {
            let (mut dispatcher, id) = books(text, now);
            restore(&crashed, &mut dispatcher, id, now);
            let saved = dispatcher.limit_mut(id).saved(now.mono);
            let counted: u64 = saved.iter().map(|(_, used)| used).sum();
            assert_eq!(counted, expected, "{text}");
        }
    }

    /// The books of a process whose disk took nothing any more were ten minutes old when it died:
    /// its last minute, which it had used in full, counted as free.
    #[test]
    fn a_short_limit_is_spent_when_its_process_was_alive_last_whatever_its_books_say() {
        let now = Now::default().after(Duration::from_secs(1_000_000));
        let ago = |seconds| Some(now.wall.before(Duration::from_secs(seconds)));
        for (touched_at, expected) in [(None, 0), (ago(900), 0), (ago(5), 500)] {
            let (mut dispatcher, id) = books("requests=500/1m", now);
            let earlier = Earlier {
                alive_at: ago(600),
                touched_at,
                ..Earlier::default()
            };
            earlier.restore(&mut dispatcher, id, now);
            let saved = dispatcher.limit_mut(id).saved(now.mono);
            let counted: u64 = saved.iter().map(|(_, used)| used).sum();
            assert_eq!(counted, expected, "{touched_at:?}");
        }
    }

    // Each process began with the documented charge and learned anew that a provider counts a
    // fifth more: the first windows after every start met refusals.
    #[test]
    fn how_the_provider_counts_is_known_to_the_next_process() {
        let now = Now::default().after(Duration::from_secs(1_000_000));
        for clean in [true, false] {
            let (mut before, id) = books("tokens=90k/1m", now);
            let fresh = spent_of(&mut before, &[], clean, now);
            assert_eq!(fresh.charged_per_million, BTreeMap::new(), "nothing known");
            before.limit_mut(id).set_factor(Factor::remembered(1.2));
            let spent = spent_of(&mut before, &[], clean, now);
            let spent = serde_json::to_value(&spent).unwrap();
            let spent: Spent = serde_json::from_value(spent).unwrap();
            let (mut after, id) = books("tokens=90k/1m", now);
            restore(&spent, &mut after, id, now);
            let limit = after.limit_mut(id);
            assert_eq!(limit.factor().value(), 1.2);
            let size = CallSize {
                input_tokens: 1_000,
                max_output_tokens: Some(0),
                ..CallSize::default()
            };
            assert_eq!(limit.cost(&size, 0).arrival, 1_200);
        }
    }

    /// Two limits of one kind and period had one place in the books.
    #[test]
    fn each_limit_has_a_name_of_its_own_and_one_that_is_alone_the_name_it_always_had() {
        let names = |limits: &[&str]| {
            let limits: Vec<LimitSpec> = limits.iter().map(|text| text.parse().unwrap()).collect();
            limit_names(&limits, "openai/m")
        };
        for alone in [
            "requests=5/1d",
            "requests=5/1d:bucket",
            "requests=5/1d:fixed",
        ] {
            assert_eq!(names(&[alone]), [NAME]);
        }
        assert_eq!(
            names(&[
                "requests=5/1d:bucket",
                "requests=5/1m",
                "requests=5/1d:fixed"
            ]),
            [NAME, "rpm openai/m", "rpd openai/m (fixed)"]
        );
    }

    #[test]
    fn books_of_a_build_that_did_not_save_learned_limits_are_read() {
        let spent: Spent = serde_json::from_str(r#"{"clean":true,"limits":{}}"#).unwrap();
        assert_eq!(spent.learned_at("up at host:1"), []);
    }
}
