use super::{Answer, AnswerOutcome, ChangeReason, PlainPolicy};

/// The policy `plain` looks at so many answers at a time, and so changes no more often.
const PLAIN_ANSWERS: u32 = 10;

#[derive(Debug, Clone)]
pub(super) struct Plain {
    policy: PlainPolicy,
    answers: u32,
    failures: u32,
}

impl Plain {
    pub(super) fn new(policy: PlainPolicy) -> Self {
        Self {
            policy,
            answers: 0,
            failures: 0,
        }
    }

    pub(super) fn on_answer(
        &mut self,
        limit: u64,
        answer: Answer,
        quota_use: Option<f64>,
    ) -> Option<(u64, ChangeReason)> {
        self.answers += 1;
        self.failures += u32::from(answer.outcome != AnswerOutcome::Success);
        if self.answers < PLAIN_ANSWERS {
            return None;
        }
        let errors = f64::from(self.failures) / f64::from(self.answers);
        (self.answers, self.failures) = (0, 0);
        let quarter_less = limit - limit.div_ceil(4);
        if errors > self.policy.error_down {
            Some((quarter_less, ChangeReason::Errors))
        } else if quota_use.is_some_and(|used| used > self.policy.use_down) {
            Some((quarter_less, ChangeReason::QuotaUse))
        } else if 1.0 - errors > self.policy.success_up
            && quota_use.is_none_or(|used| used < self.policy.use_up)
        {
            Some((limit + 1, ChangeReason::Room))
        } else {
            None
        }
    }
}
