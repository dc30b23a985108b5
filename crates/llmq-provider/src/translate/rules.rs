//! The members that have no counterpart: which may be left out, and which values say nothing.

use std::collections::BTreeSet;

use super::Untranslatable;
use super::json::Members;

/// A member without a counterpart, the values that ask for what happens anyway, and why any
/// other value is refused.
pub(super) struct Rule(
    pub(super) &'static str,
    pub(super) &'static [&'static str],
    pub(super) &'static str,
);

/// Takes the members of `rules`; each must be absent, null, or a value that says nothing.
pub(super) fn refuse(members: &mut Members<'_>, rules: &[Rule]) -> Result<(), Untranslatable> {
    for Rule(name, idle, reason) in rules {
        let Some(value) = members.take(name) else {
            continue;
        };
        let compact: String = value.get().split_ascii_whitespace().collect();
        if !idle.contains(&compact.as_str()) {
            return Err(Untranslatable::no_counterpart(name, *reason));
        }
    }
    Ok(())
}

/// Takes the members of `hints`, which change only cost or speed, and notes those that were
/// there.
pub(super) fn leave_out(
    members: &mut Members<'_>,
    hints: &[&'static str],
    left_out: &mut BTreeSet<&'static str>,
) {
    let there = hints.iter().filter(|name| members.take(name).is_some());
    left_out.extend(there);
}
