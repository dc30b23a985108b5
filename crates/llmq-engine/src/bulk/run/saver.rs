use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;

use llmq_core::WallTime;
use llmq_dispatch::{Event, LimitId, Surroundings, UpstreamId};

use super::spent::{Kept, Spent, next_portion};
use crate::Hub;
use crate::bulk::{Side, SideError};

/// How often a running run says that it is alive.
const SIGN_OF_LIFE: Duration = Duration::from_secs(1);

/// What must be on disk before the dispatcher goes on.
#[derive(Debug)]
pub(super) enum Save {
    /// The count of the day.
    Quota(UpstreamId),
    /// What a long limit may use next; or any limit that was learned just now, so that the next
    /// process knows of it whatever happens to this one.
    Portion(LimitId),
    /// Everything, for the last time.
    End,
}

/// Writes the side file: a sign of life each second, and at once what the dispatcher waits for.
pub(super) struct Saver {
    pub(super) hub: Arc<Hub>,
    pub(super) side: Side,
    pub(super) output: PathBuf,
    pub(super) kept: Kept,
}

impl Saver {
    /// Works until [`Save::End`], then writes the books of a clean stop.
    ///
    /// # Errors
    ///
    /// The first write that fails ends it: nothing more may be started then.
    pub(super) fn run(mut self, wanted: &Receiver<Save>) -> Result<(), SideError> {
        loop {
            let mut asked: Vec<Save> = match wanted.recv_timeout(SIGN_OF_LIFE) {
                Ok(save) => vec![save],
                Err(RecvTimeoutError::Timeout) => Vec::new(),
                Err(RecvTimeoutError::Disconnected) => break,
            };
            asked.extend(wanted.try_iter());
            if asked.iter().any(|save| matches!(save, Save::End)) {
                break;
            }
            self.write(false)?;
            for save in asked {
                self.tell(&save);
            }
        }
        self.write(true)
    }

    /// Writes the books as they are now, for a run that goes on or has stopped.
    ///
    /// # Errors
    ///
    /// [`SideError`]; the last ones are then still on disk.
    pub(super) fn write(&mut self, clean: bool) -> Result<(), SideError> {
        let now = self.hub.surroundings().now();
        let (windows, quota) = self.hub.with(|dispatcher| {
            let quota = self.kept.upstreams.iter().filter_map(|(id, name)| {
                let quota = dispatcher.quota(*id)?;
                let state = if clean {
                    quota.to_final_state()
                } else {
                    quota.to_state()
                };
                Some((
                    name.clone(),
                    serde_json::to_value(state).unwrap_or_default(),
                ))
            });
            let quota: serde_json::Map<String, serde_json::Value> = quota.collect();
            (Spent::of(dispatcher, &self.kept, clean, now), quota)
        });
        self.side.windows = serde_json::to_value(windows).unwrap_or_default();
        self.side.quota = quota.into();
        self.side.alive_at = Some(now.wall.max(WallTime::from_micros(0)));
        self.side.save(&self.output)
    }

    fn tell(&self, save: &Save) {
        match save {
            Save::Quota(upstream) => self.hub.handle(Event::QuotaSaved(*upstream)),
            Save::End => {}
            Save::Portion(limit) => self.hub.change(|dispatcher, now, effects| {
                if let Some(more) = next_portion(dispatcher, *limit) {
                    dispatcher.allow(*limit, Some(more), now, effects);
                }
            }),
        }
    }
}
