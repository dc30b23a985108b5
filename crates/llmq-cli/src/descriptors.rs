//! How many files and connections the process may have open.

/// So many are kept for files, listeners and what libraries open.
const KEPT: u64 = 128;

/// Raises the limit of open files as far as the system lets us, and tells it. Shells often give
/// 1,024 or 256, which is less than the callers of a busy gateway.
pub(crate) fn raise_limit() -> u64 {
    #[cfg(unix)]
    {
        use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
        /// macOS refuses an unlimited number, and nobody needs more.
        const ENOUGH: u64 = 1 << 20;
        let now = getrlimit(Resource::Nofile);
        let (soft, hard) = (
            now.current.unwrap_or(u64::MAX),
            now.maximum.unwrap_or(u64::MAX),
        );
        // OPEN_MAX of macOS, above which it refuses.
        let wishes = [hard.min(ENOUGH), hard.min(10_240)];
        for wish in wishes.into_iter().filter(|wish| *wish > soft) {
            let raised = Rlimit {
                current: Some(wish),
                maximum: now.maximum,
            };
            if setrlimit(Resource::Nofile, raised).is_ok() {
                return wish;
            }
        }
        soft
    }
    #[cfg(not(unix))]
    {
        // Sockets are no files there.
        1 << 20
    }
}

/// How many callers may be connected when `limit` files may be open: each may need a connection
/// to a provider too.
pub(crate) fn callers(limit: u64) -> usize {
    const ENOUGH: u64 = 100_000;
    let callers = limit.saturating_sub(KEPT) / 2;
    usize::try_from(callers.clamp(16, ENOUGH)).unwrap_or(usize::MAX)
}

/// How many calls of a run may be in flight when `limit` files may be open. Each has a connection,
/// and a stand-in inside (`with_stand_in`) its other end.
pub(crate) fn calls(limit: u64, with_stand_in: bool) -> usize {
    let ends = if with_stand_in { 2 } else { 1 };
    let calls = limit.saturating_sub(KEPT) / ends;
    usize::try_from(calls.max(16)).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stand_in_inside_takes_as_many_as_its_caller() {
        assert_eq!((calls(1_128, false), calls(1_128, true)), (1_000, 500));
        assert_eq!(calls(10, true), 16);
    }

    #[test]
    fn each_caller_has_room_for_a_provider_too() {
        assert_eq!(callers(1_128), 500);
        assert_eq!(callers(10), 16);
        assert_eq!(callers(u64::MAX), 100_000);
    }

    #[cfg(unix)]
    #[test]
    fn the_limit_is_as_high_as_the_system_lets_it_be() {
        use rustix::process::{Resource, getrlimit};
        let raised = raise_limit();
        let now = getrlimit(Resource::Nofile);
        assert_eq!(now.current.unwrap_or(u64::MAX), raised);
        assert!(
            raised >= now.maximum.unwrap_or(u64::MAX).min(1 << 20) || cfg!(target_os = "macos")
        );
    }
}
