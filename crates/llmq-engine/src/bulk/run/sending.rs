use std::collections::VecDeque;
use std::sync::Arc;

use llmq_core::LimitKind;
use tokio::sync::mpsc::error::TryRecvError;
use tokio::sync::{Semaphore, mpsc};
use tokio_util::task::TaskTracker;

use super::call::Prepared;
use super::control::Control;
use super::feed::{AHEAD_BYTES, AHEAD_ROWS};
use super::options::RunOptions;
use super::row::{Lane, Places};
use super::verdict::Ended;
use super::watch::Watch;

/// Rows that stand in line at once. More would gain nothing: a row that is granted makes room for
/// the next one in microseconds.
const IN_LINE: usize = 64;
/// The most calls in flight on one route.
const IN_FLIGHT_MAX: u64 = 65_536;

/// Hands rows to their tasks until none is left or the run must stop; then waits for the calls
/// in flight. Tells why it stopped, if the rows were not the reason.
pub(super) async fn send_all(
    lane: Arc<Lane>,
    mut rows: mpsc::Receiver<Prepared>,
    alive_max: usize,
    room: &Semaphore,
    watch: &Watch,
    control: &Control,
) -> Option<Ended> {
    let in_line = Arc::new(Semaphore::new(IN_LINE));
    let alive = Arc::new(Semaphore::new(alive_max));
    let calls = TaskTracker::new();
    let mut ahead: VecDeque<Prepared> = VecDeque::new();
    let mut open = true;
    let feeding = async {
        loop {
            while open && ahead.len() < AHEAD_ROWS {
                match rows.try_recv() {
                    Ok(row) => ahead.push_back(row),
                    Err(TryRecvError::Empty) => break,
                    Err(TryRecvError::Disconnected) => {
                        open = false;
                        // The last rows: those that may take long go first, so that no single
                        // one is left over at the end.
                        ahead
                            .make_contiguous()
                            .sort_by_key(|row| std::cmp::Reverse(length(row)));
                    }
                }
            }
            let next = match ahead.pop_front() {
                Some(row) => Some(row),
                None if open => rows.recv().await,
                None => None,
            };
            let Some(row) = next else {
                if open {
                    open = false;
                    continue;
                }
                return;
            };
            room.add_permits(row.body.len().min(AHEAD_BYTES));
            // Neither is ever closed.
            let Ok(alive) = Arc::clone(&alive).acquire_owned().await else {
                return;
            };
            let Ok(in_line) = Arc::clone(&in_line).acquire_owned().await else {
                return;
            };
            calls.spawn(Arc::clone(&lane).finish(row, Places { in_line, alive }));
        }
    };
    let stopped = tokio::select! {
        biased;
        () = control.stop_token().cancelled() => None,
        stopped = watch.must_stop() => Some(stopped),
        () = async { feeding.await; calls.close(); calls.wait().await } => None,
    };
    // What waits gives up; what was granted is still sent, and comes to its end.
    if stopped.is_some() {
        control.stop_by_verdict();
    }
    rows.close();
    room.close();
    drop(lane);
    calls.close();
    tokio::select! {
        () = calls.wait() => {}
        () = control.abort_token().cancelled() => {}
    }
    stopped
}

/// How many rows may be between the feeder and the writer: all that can be in line and in
/// flight, and no more, so that a slow disk holds the calls back instead of filling the memory.
/// Never more than there are connections for, so that none fails for want of one.
pub(super) fn rows_alive_max(options: &RunOptions) -> usize {
    let in_flight = options.routes.iter().map(|route| {
        let stated = route
            .limits
            .iter()
            .filter(|limit| limit.kind == LimitKind::Concurrency);
        let stated = stated.map(|limit| limit.count).min();
        let most = stated
            .or_else(|| Some(route.adaptive?.max()))
            .unwrap_or(IN_FLIGHT_MAX);
        usize::try_from(most.min(IN_FLIGHT_MAX)).unwrap_or(usize::MAX)
    });
    let rows = in_flight.fold(IN_LINE, usize::saturating_add);
    rows.min(options.in_flight_max.max(1))
}

/// What decides how long a call takes, as far as it is known.
fn length(row: &Prepared) -> u64 {
    u64::from(row.size.input_tokens) + row.size.output_cap(0)
}
