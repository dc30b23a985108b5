use std::collections::BTreeMap;
use std::time::Duration;

use jiff::civil::Date;
use llmq_core::{LimitKind, Now, WallTime};

use super::config::QuotaRules;
use super::event::{AlertLevel, PauseAdvice, PauseReason, PauseScope, QuotaEvent, QuotaMetrics};
use super::portion::Portion;
use super::state::{QuotaState, SavedPause};
use crate::observation::{HeaderSource, Observation, QuotaStatus, RateLimitHeaders};

const DAY: Duration = Duration::from_secs(86_400);
/// A pause that ends so little later is no longer one.
const SAME_END: Duration = Duration::from_secs(1);

/// Watches how much of a day's limit one upstream has used.
///
/// The configured limit of requests a day pauses work at the threshold, until the day turns in
/// the configured zone. Limits of a day or longer that headers tell of raise alerts, but are
/// used in full; limits of shorter windows do neither, since waiting for them is pacing.
///
/// Methods that change something return what there is to log. A caller that nothing calls for a
/// while asks [`poll`](Self::poll), so that a day's turn or the end of a pause is told.
///
/// ```
/// use llmq_core::Now;
/// use llmq_limit::{QuotaConfig, QuotaMonitor};
/// let config = QuotaConfig { daily_request_limit: Some(10), ..QuotaConfig::default() };
/// let now = Now::default();
/// let mut monitor = QuotaMonitor::new(config.check().unwrap(), now);
/// for _ in 0..8 {
///     monitor.record_request(now);
/// }
/// let advice = monitor.should_pause(now).unwrap();
/// assert_eq!(advice.reason.to_string(), "80.0 % of the daily limit used, threshold 80.0 %");
/// ```
#[derive(Debug, Clone)]
pub struct QuotaMonitor {
    rules: QuotaRules,
    day: Date,
    used: u64,
    /// What the saved state says is used; see [`Portion`].
    reserved: u64,
    alerted: Option<AlertLevel>,
    learned_daily_limit: Option<u64>,
    /// The used share, in per cent, of each limit over a day or longer, as of its last header.
    learned_use: BTreeMap<LimitKind, f64>,
    status: Option<QuotaStatus>,
    /// A pause that was demanded, until it is over.
    told: Option<Told>,
    /// The pause that was last told of, for the events.
    paused: Option<Paused>,
    since_metrics: u64,
}

#[derive(Debug, Clone)]
struct Told {
    words: String,
    /// It is over when either clock says so: the wall may be set back, and a machine that sleeps
    /// stops the other.
    until: Now,
}

impl Told {
    /// When it is over, as the wall shows now; none: it is.
    fn ends(&self, now: Now) -> Option<WallTime> {
        let ends = now.wall_at(self.until.mono).min(self.until.wall);
        (ends > now.wall).then_some(ends)
    }
}

#[derive(Debug, Clone)]
struct Paused {
    since: Now,
    reason: PauseReason,
    resume_at: WallTime,
}

impl QuotaMonitor {
    /// Starts with nothing used.
    #[must_use]
    pub fn new(rules: QuotaRules, now: Now) -> Self {
        Self {
            day: rules.zone.date(now.wall),
            rules,
            used: 0,
            reserved: 0,
            alerted: None,
            learned_daily_limit: None,
            learned_use: BTreeMap::new(),
            status: None,
            told: None,
            paused: None,
            since_metrics: 0,
        }
    }

    /// Goes on from what was saved. The day's count survives; limits and thresholds are those of
    /// `rules`, so a pause ends here if they no longer call for it.
    ///
    /// # Errors
    ///
    /// Says why the state cannot be used.
    pub fn from_state(rules: QuotaRules, state: QuotaState, now: Now) -> Result<Self, String> {
        let day = state.day.parse().map_err(|error| format!("day: {error}"))?;
        let mut monitor = Self::new(rules, now);
        monitor.day = day;
        monitor.used = Portion::after_crash(state.used, state.reserved);
        monitor.reserved = state.reserved;
        monitor.alerted = state.alerted;
        monitor.learned_daily_limit = state.learned_daily_limit.filter(|limit| *limit > 0);
        if let Some(pause) = state.pause {
            if let PauseReason::Told(words) = &pause.reason {
                monitor.told = Some(Told {
                    words: words.clone(),
                    until: Now {
                        mono: now.when(pause.resume_at),
                        wall: pause.resume_at,
                    },
                });
            }
            monitor.paused = Some(Paused {
                since: Now {
                    mono: now.mono.before(now.wall.since(pause.since)),
                    wall: pause.since,
                },
                reason: pause.reason,
                resume_at: pause.resume_at,
            });
        }
        Ok(monitor)
    }

    /// Goes on from a saved file's text, or starts empty when it is missing or broken and says
    /// so ([`QuotaEvent::StateLost`]).
    #[must_use]
    pub fn restore(rules: QuotaRules, text: Option<&str>, now: Now) -> (Self, Vec<QuotaEvent>) {
        let restored = text
            .ok_or_else(|| "there is none".to_owned())
            .and_then(QuotaState::from_json)
            .and_then(|state| Self::from_state(rules.clone(), state, now));
        match restored {
            Ok(mut monitor) => {
                let events = monitor.poll(now);
                (monitor, events)
            }
            Err(reason) => (
                Self::new(rules, now),
                vec![QuotaEvent::StateLost { reason }],
            ),
        }
    }

    /// Goes on with what was counted and heard, under the rules of now.
    #[must_use]
    pub fn under(&self, rules: QuotaRules, now: Now) -> (Self, Vec<QuotaEvent>) {
        let mut monitor = Self {
            rules,
            ..self.clone()
        };
        let events = monitor.poll(now);
        (monitor, events)
    }

    /// What to save while running.
    #[must_use]
    pub fn to_state(&self) -> QuotaState {
        QuotaState {
            day: self.day.to_string(),
            used: self.used,
            reserved: self.reserved,
            alerted: self.alerted,
            learned_daily_limit: self.learned_daily_limit,
            pause: self.paused.as_ref().map(|paused| SavedPause {
                reason: paused.reason.clone(),
                since: paused.since.wall,
                resume_at: paused.resume_at,
            }),
        }
    }

    /// What to save at a clean stop: nothing more will be used, so nothing stays reserved.
    #[must_use]
    pub fn to_final_state(&self) -> QuotaState {
        QuotaState {
            reserved: self.used,
            ..self.to_state()
        }
    }

    /// Reserves the next request of the day's limit. `Some` must be on disk before that request
    /// is recorded; `None` means that what is on disk covers it, or that there is no limit.
    pub fn draw(&mut self, now: Now) -> Option<QuotaState> {
        self.turn_day(now);
        self.reserved = Portion::draw(self.used, self.reserved, self.daily_limit()?)?;
        Some(self.to_state())
    }

    /// Counts one request that is about to be sent.
    pub fn record_request(&mut self, now: Now) -> Vec<QuotaEvent> {
        self.turn_day(now);
        self.used = self.used.saturating_add(1);
        self.since_metrics = self.since_metrics.saturating_add(1);
        let mut events = self.notice(now);
        if self.rules.monitoring && self.since_metrics >= self.rules.log_interval {
            self.since_metrics = 0;
            events.push(QuotaEvent::Metrics(self.metrics(now)));
        }
        events
    }

    /// Takes back a request that was counted at `counted_at` and has never been sent. Of a day
    /// that is over nothing is taken back.
    pub fn forget_request(&mut self, counted_at: WallTime, now: Now) -> Vec<QuotaEvent> {
        self.turn_day(now);
        if self.rules.zone.date(counted_at) == self.day {
            self.used = self.used.saturating_sub(1);
        }
        self.notice(now)
    }

    /// Learns from an answer's headers, without counting it.
    pub fn observe(&mut self, headers: &RateLimitHeaders, now: Now) -> Vec<QuotaEvent> {
        self.turn_day(now);
        self.learn(headers, now);
        self.notice(now)
    }

    /// Learns from an answer's headers and counts its request: for callers that see only
    /// answers, and so do not call [`record_request`](Self::record_request).
    pub fn update_from_response(
        &mut self,
        headers: &RateLimitHeaders,
        now: Now,
    ) -> Vec<QuotaEvent> {
        self.turn_day(now);
        self.learn(headers, now);
        self.record_request(now)
    }

    /// Pauses all work because the provider or a person demands it: until `until`, else for the
    /// configured duration. Of two such pauses the later end counts.
    pub fn pause(
        &mut self,
        words: impl Into<String>,
        until: Option<WallTime>,
        now: Now,
    ) -> Vec<QuotaEvent> {
        let wall = until.unwrap_or(now.wall + self.rules.pause_duration);
        let before = self.told.as_ref().and_then(|told| told.ends(now));
        if before.is_none_or(|before| before < wall) {
            self.told = Some(Told {
                words: words.into(),
                until: Now {
                    mono: now.when(wall),
                    wall,
                },
            });
        }
        self.poll(now)
    }

    /// Ends a pause that was demanded, because a person says so. One at the daily limit stays.
    pub fn lift(&mut self, now: Now) -> Vec<QuotaEvent> {
        self.told = None;
        self.poll(now)
    }

    /// Takes note of the time: the day may have turned, a pause may be over.
    pub fn poll(&mut self, now: Now) -> Vec<QuotaEvent> {
        self.turn_day(now);
        self.notice(now)
    }

    /// Whether work should pause now: of two pauses the one of more work. Work below `high` may
    /// have to wait longer: see [`pause_of`](Self::pause_of).
    #[must_use]
    pub fn should_pause(&self, now: Now) -> Option<PauseAdvice> {
        let all = self.pause_of(PauseScope::All, now);
        all.or_else(|| self.pause_of(PauseScope::BelowHigh, now))
    }

    /// The pause that holds up this work now; of two the one that ends later. For
    /// [`PauseScope::All`] that is a pause which `high` work heeds too.
    #[must_use]
    pub fn pause_of(&self, work: PauseScope, now: Now) -> Option<PauseAdvice> {
        let told = self.told.as_ref().and_then(|told| {
            Some(PauseAdvice {
                reason: PauseReason::Told(told.words.clone()),
                resume_at: told.ends(now)?,
                scope: PauseScope::All,
            })
        });
        let limit = self.pause_at_limit(now);
        let pauses = limit.into_iter().chain(told);
        let pauses = pauses.filter(|pause| pause.scope >= work);
        pauses.max_by_key(|pause| pause.resume_at)
    }

    /// Whether work may go on now, and why or why not.
    #[must_use]
    pub fn can_resume(&self, now: Now) -> (bool, String) {
        if let Some(advice) = self.should_pause(now) {
            return (false, advice.reason.to_string());
        }
        let reason = match self.used_percent(now) {
            Some(used_percent) => format!("{used_percent:.1} % of the daily limit used"),
            None if self.used == 0 && self.status.is_none() => "no quota data yet".to_owned(),
            None => "no daily limit known".to_owned(),
        };
        (true, reason)
    }

    /// The state of the day.
    #[must_use]
    pub fn metrics(&self, now: Now) -> QuotaMetrics {
        let advice = self.should_pause(now);
        QuotaMetrics {
            requests_used_today: self.used_today(now),
            daily_limit: self.daily_limit(),
            usage_percentage: self.used_percent(now),
            should_pause: advice.is_some(),
            pause_reason: advice.map(|advice| advice.reason.to_string()),
        }
    }

    /// How much of the day's limit is used, 0 to 1 and above; none where none is known.
    #[must_use]
    pub fn used_share(&self, now: Now) -> Option<f64> {
        self.used_percent(now).map(|percent| percent / 100.0)
    }

    /// What the last answers said, each number as of the last answer that had it.
    #[must_use]
    pub fn status(&self) -> Option<&QuotaStatus> {
        self.status.as_ref()
    }

    fn daily_limit(&self) -> Option<u64> {
        self.rules.daily_request_limit.or(self.learned_daily_limit)
    }

    /// The date by the clock, but never an earlier one than is counted: a clock set back over
    /// midnight must not open a second quota. One that was days ahead is believed to be right
    /// now.
    fn date(&self, now: Now) -> Date {
        let date = self.rules.zone.date(now.wall);
        if self
            .day
            .yesterday()
            .is_ok_and(|yesterday| date == yesterday)
        {
            self.day
        } else {
            date
        }
    }

    fn turn_day(&mut self, now: Now) {
        let date = self.date(now);
        if date > self.day {
            self.used = 0;
            self.reserved = 0;
            self.alerted = None;
            self.learned_use.clear();
        }
        self.day = date;
    }

    fn used_today(&self, now: Now) -> u64 {
        if self.date(now) > self.day {
            0
        } else {
            self.used
        }
    }

    /// The highest known use of a day's limit, in per cent.
    fn used_percent(&self, now: Now) -> Option<f64> {
        let ours = |limit: u64| self.used_today(now) as f64 * 100.0 / limit as f64;
        let turned = self.date(now) > self.day;
        let learned = self.learned_use.values().copied().filter(|_| !turned);
        // Our own count stands in for a header that is not there yet.
        let own = match (self.rules.daily_request_limit, self.learned_daily_limit) {
            (Some(limit), _) => Some(ours(limit)),
            (None, Some(limit)) if !self.learned_use.contains_key(&LimitKind::Requests) => {
                Some(ours(limit))
            }
            _ => None,
        };
        learned.chain(own).max_by(f64::total_cmp)
    }

    fn pause_at_limit(&self, now: Now) -> Option<PauseAdvice> {
        let limit = self
            .rules
            .daily_request_limit
            .filter(|_| self.rules.monitoring)?;
        let used = self.used_today(now);
        let share = used as f64 / limit as f64;
        (share >= self.rules.pause_threshold).then(|| {
            let reason = PauseReason::DailyLimit {
                used_percent: used as f64 * 100.0 / limit as f64,
                threshold_percent: self.rules.pause_threshold * 100.0,
            };
            PauseAdvice {
                scope: reason.scope(),
                reason,
                resume_at: self.rules.zone.next_turn(now.wall),
            }
        })
    }

    fn learn(&mut self, headers: &RateLimitHeaders, now: Now) {
        let is_days = |seen: &&Observation| {
            seen.source != HeaderSource::Informational
                && seen.window.is_some_and(|window| window >= DAY)
        };
        let mut uses = BTreeMap::new();
        for seen in headers.observations.iter().filter(is_days) {
            if seen.kind == LimitKind::Requests {
                self.learned_daily_limit = seen.limit.or(self.learned_daily_limit);
            }
            if let Some(used) = seen.used_percent() {
                let highest = uses.entry(seen.kind).or_insert(used);
                *highest = used.max(*highest);
            }
        }
        self.learned_use.extend(uses);
        if !headers.observations.is_empty() {
            let newer = headers.quota_status(now.wall);
            self.status = Some(match self.status.take() {
                Some(older) => newer.completed_from(&older),
                None => newer,
            });
        }
    }

    /// What has changed since the last look: alerts, the begin and end of a pause.
    fn notice(&mut self, now: Now) -> Vec<QuotaEvent> {
        let mut events = Vec::new();
        events.extend(self.notice_level(now));
        events.extend(self.notice_pause(now));
        events
    }

    fn notice_level(&mut self, now: Now) -> Option<QuotaEvent> {
        let used_percent = self.used_percent(now).filter(|_| self.rules.monitoring)?;
        let level = self.rules.alerts.level(used_percent)?;
        // The levels below are not told of any more either.
        (Some(level) > self.alerted).then(|| {
            self.alerted = Some(level);
            QuotaEvent::Alert {
                level,
                used_percent,
            }
        })
    }

    fn notice_pause(&mut self, now: Now) -> Option<QuotaEvent> {
        self.told = self.told.take().filter(|told| told.ends(now).is_some());
        match (self.paused.take(), self.should_pause(now)) {
            (before, Some(advice)) => {
                let since = before.as_ref().map_or(now, |paused| paused.since);
                let is_more = |paused: Paused| {
                    advice.scope > paused.reason.scope()
                        || advice.resume_at.since(paused.resume_at) > SAME_END
                };
                let more = before.is_none_or(is_more);
                self.paused = Some(Paused {
                    since,
                    reason: advice.reason.clone(),
                    resume_at: advice.resume_at,
                });
                more.then_some(QuotaEvent::Paused(advice))
            }
            (Some(paused), None) => Some(QuotaEvent::Resumed {
                paused_for: now.mono - paused.since.mono,
            }),
            (None, None) => None,
        }
    }
}

#[cfg(test)]
mod tests;
