/// How a budget of a day or longer is written ahead: before any of a portion is used, the file
/// says that all of it is. A crash then forgets nothing; it costs what was left of one portion.
///
/// ```
/// use llmq_limit::Portion;
/// assert_eq!(Portion::draw(0, 0, 1_000), Some(10));
/// assert_eq!(Portion::draw(9, 10, 1_000), None);
/// assert_eq!(Portion::draw(10, 10, 1_000), Some(20));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Portion;

/// A portion is a hundredth of the limit.
const PORTIONS: u64 = 100;

impl Portion {
    /// What must be on disk as `reserved` before one more is used; `None` when `reserved`
    /// already covers it.
    ///
    /// The new value is above `used` and not above `limit`, except that where the limit itself is
    /// used up (by calls that were told to go on) it grows by one portion still.
    #[must_use]
    pub fn draw(used: u64, reserved: u64, limit: u64) -> Option<u64> {
        Self::draw_for(used, 1, reserved, limit)
    }

    /// The same for a call that is charged `cost` at once, such as tokens.
    #[must_use]
    pub fn draw_for(used: u64, cost: u64, reserved: u64, limit: u64) -> Option<u64> {
        let wanted = used.saturating_add(cost);
        if wanted <= reserved {
            return None;
        }
        let portion = (limit / PORTIONS).max(1);
        let drawn = reserved.max(used).saturating_add(portion);
        Some(
            if wanted <= limit {
                drawn.min(limit)
            } else {
                drawn
            }
            .max(wanted),
        )
    }

    /// What is used after a start that followed a crash: all that was reserved.
    #[must_use]
    pub fn after_crash(used: u64, reserved: u64) -> u64 {
        used.max(reserved)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn small_limits_are_drawn_one_by_one() {
        assert_eq!(Portion::draw(0, 0, 10), Some(1));
        assert_eq!(Portion::draw(1, 1, 10), Some(2));
        assert_eq!(Portion::draw(10, 10, 10), Some(11));
        assert_eq!(Portion::draw(3, 0, 0), Some(4));
    }

    proptest! {
        #[test]
        fn what_is_used_is_always_on_disk_and_a_crash_costs_at_most_one_portion(
            limit in 1u64..1_000_000,
            costs in proptest::collection::vec(1u64..2_000, 0..200),
        ) {
            let (mut used, mut reserved, mut writes) = (0, 0, 0u64);
            for cost in costs {
                if used + cost > limit {
                    break;
                }
                if let Some(new) = Portion::draw_for(used, cost, reserved, limit) {
                    prop_assert!(new > reserved);
                    (reserved, writes) = (new, writes + 1);
                }
                used += cost;
                prop_assert!(used <= reserved && reserved <= limit);
                let lost = Portion::after_crash(used, reserved) - used;
                prop_assert!(lost <= (limit / PORTIONS).max(1));
            }
            prop_assert!(writes <= 2 * PORTIONS || limit < 2 * PORTIONS);
        }
    }
}
