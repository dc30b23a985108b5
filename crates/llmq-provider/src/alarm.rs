use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::time::{Instant, Sleep, sleep_until};

/// A timer that is seldom set. Setting one takes a lock that the whole runtime shares, and nearly
/// every call ends long before its deadline; so a timer that fires too early is moved only then.
#[derive(Debug)]
pub(crate) struct Alarm {
    timer: Option<Pin<Box<Sleep>>>,
    /// It is never set further ahead than this. Where no deadline is closer than that when it is
    /// first asked for, the timer needs no other moves.
    nap: Duration,
}

impl Alarm {
    pub(crate) fn new(nap: Duration) -> Self {
        Self { timer: None, nap }
    }

    /// Ready, with the present moment, once `at` has passed.
    pub(crate) fn poll_passed(&mut self, at: Instant, context: &mut Context<'_>) -> Poll<Instant> {
        let timer = match &mut self.timer {
            Some(timer) => timer,
            none => none.insert(Box::pin(sleep_until(at.min(Instant::now() + self.nap)))),
        };
        if at < timer.deadline() {
            timer.as_mut().reset(at);
        }
        loop {
            ready!(timer.as_mut().poll(context));
            let now = Instant::now();
            if now >= at {
                return Poll::Ready(now);
            }
            timer.as_mut().reset(at.min(now + self.nap));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use super::*;

    const NAP: Duration = Duration::from_secs(30);

    #[tokio::test(start_paused = true)]
    async fn it_rings_at_its_time_whatever_it_was_set_for_before() {
        let mut alarm = Alarm::new(NAP);
        let start = Instant::now();
        for seconds in [100, 20, 45, 200, 0] {
            let before = Instant::now();
            let at = before + Duration::from_secs(seconds);
            // Asked for and not waited for: it stays set.
            let later = at + Duration::from_secs(500);
            poll_fn(|context| {
                assert!(alarm.poll_passed(later, context).is_pending());
                Poll::Ready(())
            })
            .await;
            let rang = poll_fn(|context| alarm.poll_passed(at, context)).await;
            let late = rang - at;
            assert!(late <= Duration::from_millis(1), "{late:?}");
        }
        assert!(start.elapsed() >= Duration::from_secs(365));
    }
}
