//! Whether going on has sense, and what is said when it has not.

use std::time::Duration;

use llmq_core::{FailureClass, Now, Timestamp, WallTime};

use super::fault::{Fault, Left};
use super::progress::Paused;
use crate::notices::shown;

/// How a run ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ended {
    /// Every row has an answer.
    Done,
    /// Every row has a result, but not all an answer.
    SomeFailed,
    /// The account does not let it go on: quota, money, or a refused key.
    StoppedByAccount {
        /// What the account said.
        reason: String,
    },
    /// The provider cannot be reached.
    ProviderLost {
        /// For how long it has not answered, why, and what can be done.
        reason: String,
    },
    /// It was told to stop.
    Interrupted,
}

impl Ended {
    /// Why it stopped before the end, if the account or the provider was the reason.
    #[must_use]
    pub fn reason(&self) -> Option<&str> {
        match self {
            Self::StoppedByAccount { reason } | Self::ProviderLost { reason } => Some(reason),
            Self::Done | Self::SomeFailed | Self::Interrupted => None,
        }
    }
}

/// A run that went through all of its rows, and has no result for some.
impl From<Left> for Ended {
    fn from(Left { rows, said }: Left) -> Self {
        let rows = match rows {
            1 => "1 row was refused".to_owned(),
            rows => format!("{rows} rows were refused"),
        };
        Self::StoppedByAccount {
            reason: format!("{rows} ({said})"),
        }
    }
}

/// A provider that never answered is given this long.
const PATIENCE_FIRST: Duration = Duration::from_secs(30);
/// One that did answer is given this long …
const PATIENCE: Duration = Duration::from_secs(3_600);
/// … or this long by someone who does not want to wait; the same bounds pauses for quotas.
const NO_WAIT: Duration = Duration::from_secs(600);

/// A pause, and what it is for the run's efficiency.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Pause {
    /// What people are told.
    pub(super) told: Paused,
    /// Whether it is a wait for a window, or for a slower rise: such are what a run does all the
    /// time, and a good one has few of them that it did not foresee.
    pub(super) is_pacing: bool,
}

/// What stands in a run's way at one moment.
#[derive(Debug, Clone, Default)]
pub(super) struct Standing {
    /// Every way that there is.
    pub(super) routes: Vec<RouteState>,
    /// When the first row may start, and the limit that it waits for, where nothing is in flight
    /// and all wait for instants that are known.
    pub(super) stands_until: Option<(Timestamp, String)>,
    /// Whether any call has been answered.
    pub(super) answered: bool,
    /// Whether to stop instead of a long pause.
    pub(super) no_wait: bool,
}

/// What stands in one route's way.
#[derive(Debug, Clone, Default)]
pub(super) struct RouteState {
    pub(super) name: String,
    /// Closed by the account until then; none: until a person acts.
    pub(super) closed: Option<(FailureClass, Option<Timestamp>)>,
    /// Paused by the daily quota: why, and until when.
    pub(super) quota: Option<(String, WallTime)>,
    /// Since when its breaker is open.
    pub(super) down_since: Option<Timestamp>,
    /// What last went wrong there.
    pub(super) fault: Option<Fault>,
}

impl Standing {
    /// Why nothing can be sent on any route, if that is so: the one that opens first.
    pub(super) fn pause(&self, now: Now) -> Option<Pause> {
        let mut first: Option<Pause> = None;
        for route in &self.routes {
            let pause = route.pause(now)?;
            let earlier = |other: &Pause| match (pause.told.until, other.told.until) {
                (Some(new), Some(old)) => new < old,
                (Some(_), None) => true,
                (None, _) => false,
            };
            if first.as_ref().is_none_or(earlier) {
                first = Some(pause);
            }
        }
        first
    }

    /// Whether every route is closed for too long, and how the run ends then.
    pub(super) fn verdict(&self, now: Now) -> Option<Ended> {
        // What closes all routes is told before the limit that is used up by it.
        let verdicts = self.routes.iter().map(|route| self.route(route, now));
        let closed = verdicts.collect::<Option<Vec<_>>>();
        closed
            .and_then(|mut verdicts| verdicts.pop())
            .or_else(|| self.used_up(now))
    }

    fn used_up(&self, now: Now) -> Option<Ended> {
        let (until, limit) = self.stands_until.as_ref().filter(|_| self.no_wait)?;
        (*until > now.mono + NO_WAIT).then(|| Ended::StoppedByAccount {
            reason: format!(
                "{limit} is used up; it goes on at {}",
                shown(now.wall_at(*until))
            ),
        })
    }

    fn route(&self, route: &RouteState, now: Now) -> Option<Ended> {
        let name = &route.name;
        let account = |reason: String| Some(Ended::StoppedByAccount { reason });
        match route.closed {
            Some((FailureClass::NoAccess, _)) => {
                let said = route
                    .fault
                    .as_ref()
                    .map(|fault| format!(" ({})", fault.told()));
                let said = said.unwrap_or_default();
                return account(format!("{name} refuses the key or the model{said}"));
            }
            // Nobody knows when money comes, so for it every wait is too long.
            Some((class, until))
                if self.no_wait
                    && (class == FailureClass::Money
                        || until.is_none_or(|until| until > now.mono + NO_WAIT)) =>
            {
                let until = until.map_or_else(
                    || "for now".to_owned(),
                    |until| format!("until {}", shown(now.wall_at(until))),
                );
                return account(format!("{name} is closed {until} ({class})"));
            }
            _ => {}
        }
        if let Some((reason, until)) = &route.quota
            && self.no_wait
            && until.since(now.wall) > NO_WAIT
        {
            return account(format!("{name}: {reason}; it goes on at {}", shown(*until)));
        }
        let patience = match (self.answered, self.no_wait) {
            (false, _) if route.fault.as_ref().is_some_and(|fault| fault.lasting) => Duration::ZERO,
            (false, _) => PATIENCE_FIRST,
            (true, true) => NO_WAIT,
            (true, false) => PATIENCE,
        };
        let down = now.mono - route.down_since?;
        let seconds = down.as_secs();
        let reason = match &route.fault {
            Some(fault) if patience.is_zero() => format!("{name}: {}", fault.told()),
            Some(fault) => format!("{name} has not answered for {seconds} s: {}", fault.told()),
            None => format!("{name} has not answered for {seconds} s"),
        };
        (down >= patience).then_some(Ended::ProviderLost { reason })
    }
}

impl RouteState {
    fn pause(&self, now: Now) -> Option<Pause> {
        use FailureClass as C;
        let closed = self
            .closed
            .filter(|(_, until)| until.is_none_or(|until| until > now.mono));
        let is_pacing = match (&self.quota, closed) {
            (None, Some((class, _))) => matches!(class, C::QuotaWindow | C::Ramp),
            _ => false,
        };
        let told = match (&self.quota, closed) {
            (Some((reason, until)), _) if *until > now.wall => Some(Paused {
                reason: format!("{}: {reason}", self.name),
                until: Some(*until),
            }),
            (_, Some((class, until))) => Some(Paused {
                reason: format!("{}: {class}", self.name),
                until: until.map(|until| now.wall_at(until)),
            }),
            (_, None) => self.down_since.map(|_| Paused {
                reason: match &self.fault {
                    Some(fault) => format!("{}: not answering ({})", self.name, fault.said),
                    None => format!("{}: not answering", self.name),
                },
                until: None,
            }),
        };
        told.map(|told| Pause { told, is_pacing })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: Duration = Duration::from_secs(86_400);

    fn now() -> Now {
        Now::default().after(Duration::from_secs(1_000_000))
    }

    fn reason(standing: &Standing) -> String {
        match standing.verdict(now()) {
            Some(Ended::StoppedByAccount { reason }) => reason,
            other => format!("{other:?}"),
        }
    }

    /// A refused call closes the upstream; its line stands still a moment later, when the last
    /// call in flight is back. Which of both was seen first decided what was said.
    #[test]
    fn a_spent_day_is_told_in_the_same_words_whoever_looks_first() {
        let until = now().mono + DAY;
        let closed = |running: bool, known_to_the_monitor: bool| Standing {
            routes: vec![RouteState {
                name: "up".into(),
                closed: Some((FailureClass::QuotaDay, Some(until))),
                quota: known_to_the_monitor.then(|| ("all used".into(), now().wall + DAY)),
                ..RouteState::default()
            }],
            stands_until: (!running).then(|| (until, "up".into())),
            no_wait: true,
            ..Standing::default()
        };
        for running in [true, false] {
            for monitor in [true, false] {
                assert_eq!(
                    reason(&closed(running, monitor)),
                    "up is closed until 1970-01-13T13:46:40Z (quota-day)"
                );
            }
        }
        // The day's last call was admitted, and its headers told that it was the last.
        for running in [true, false] {
            let mut told = closed(running, true);
            told.routes[0].closed = None;
            assert_eq!(
                reason(&told),
                "up: all used; it goes on at 1970-01-13T13:46:40Z"
            );
        }
    }

    #[test]
    fn a_limit_of_ones_own_that_is_spent_for_long_is_named() {
        let spent = |span: Duration, no_wait| Standing {
            routes: vec![RouteState::default()],
            stands_until: Some((now().mono + span, "rpd up".into())),
            no_wait,
            ..Standing::default()
        };
        assert_eq!(
            reason(&spent(DAY, true)),
            "rpd up is used up; it goes on at 1970-01-13T13:46:40Z"
        );
        assert_eq!(spent(NO_WAIT, true).verdict(now()), None);
        assert_eq!(spent(DAY, false).verdict(now()), None);
    }

    #[test]
    fn waiting_for_a_window_is_no_pause_of_the_account() {
        let until = now().mono + Duration::from_secs(5);
        let pacing = |class, quota: Option<(String, WallTime)>| {
            let route = RouteState {
                closed: Some((class, Some(until))),
                quota,
                ..RouteState::default()
            };
            route.pause(now()).unwrap().is_pacing
        };
        assert!(pacing(FailureClass::QuotaWindow, None));
        assert!(pacing(FailureClass::Ramp, None));
        assert!(!pacing(FailureClass::QuotaDay, None));
        assert!(!pacing(FailureClass::Money, None));
        let day = Some(("80 % used".to_owned(), now().wall + DAY));
        assert!(!pacing(FailureClass::QuotaWindow, day));
    }

    #[test]
    fn one_open_route_is_enough_to_go_on() {
        let closed = RouteState {
            closed: Some((FailureClass::NoAccess, None)),
            ..RouteState::default()
        };
        let mut standing = Standing {
            routes: vec![closed, RouteState::default()],
            no_wait: true,
            ..Standing::default()
        };
        assert_eq!(standing.verdict(now()), None);
        assert_eq!(standing.pause(now()), None);
        standing.routes.pop();
        assert!(standing.verdict(now()).is_some() && standing.pause(now()).is_some());
    }

    #[test]
    fn one_that_has_answered_is_given_longer() {
        let down = |answered, no_wait, span: Duration| {
            let route = RouteState {
                down_since: Some(now().mono.before(span)),
                ..RouteState::default()
            };
            let standing = Standing {
                routes: vec![route],
                answered,
                no_wait,
                ..Standing::default()
            };
            matches!(standing.verdict(now()), Some(Ended::ProviderLost { .. }))
        };
        for (answered, no_wait, patience) in [
            (false, false, PATIENCE_FIRST),
            (true, true, NO_WAIT),
            (true, false, PATIENCE),
        ] {
            assert!(down(answered, no_wait, patience));
            assert!(!down(answered, no_wait, patience - Duration::from_secs(1)));
        }
    }
}
