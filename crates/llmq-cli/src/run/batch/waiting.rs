//! Waiting for the server, and for the ends of batches.

use std::collections::HashSet;
use std::time::Duration;

use llmq_engine::bulk::HandedIn;
use tokio::runtime::Handle;
use tokio::time::{Instant, timeout};

use super::{ASK_EVERY, Halt, Handing, SAY_EVERY, kind_of};
use crate::batches;
use crate::client::{Asked, ServerArgs};
use crate::exit::Failure;
use crate::text::grouped;

impl Handing {
    pub(super) fn collect_or_wait(&mut self) -> Result<(), Halt> {
        if self.collect_ended()? {
            return Ok(());
        }
        self.stop_if_refused()?;
        self.pause(ASK_EVERY)
    }

    /// What the account refuses is not waited for; all that has ended is fetched first.
    pub(super) fn stop_if_refused(&mut self) -> Result<(), Halt> {
        match self.left_out.refused.take() {
            Some(reason) => Err(Halt::Account(reason)),
            None => Ok(()),
        }
    }

    /// Asks after the first batch of each kind: they end in their order. Whether one had ended.
    pub(super) fn collect_ended(&mut self) -> Result<bool, Halt> {
        let mut asked = HashSet::new();
        for index in 0..self.side.handed_in.len() {
            let part = self.side.handed_in[index].clone();
            if self.lost.contains(&part.file) || asked.contains(&kind_of(&part)) {
                continue;
            }
            let Some(id) = &part.batch else {
                self.begin(index)?;
                continue;
            };
            match self.server.ask(&format!("/v1/batches/{id}"))? {
                Asked::Found(batch) if batches::is_final(&batch) => {
                    self.collect(index, &part, &batch)?;
                    return Ok(true);
                }
                Asked::Found(_) => {}
                Asked::Away(away) => self.wait_for_server(&away.message)?,
                Asked::Unknown(_) => {
                    self.lost.insert(part.file);
                    continue;
                }
            }
            asked.insert(kind_of(&part));
        }
        let mut parts = self.side.handed_in.iter();
        if parts.len() > 0 && parts.all(|part| self.lost.contains(&part.file)) {
            return self.give_up_lost().map(|()| true);
        }
        self.tell();
        Ok(false)
    }

    /// Where nothing is left but batches that the server knows no more, their rows are handed in
    /// again, if that is wished.
    fn give_up_lost(&mut self) -> Result<(), Halt> {
        if !self.options.resume_anyway {
            return Err(Halt::Failed(Failure::usage(lost(&self.side.handed_in))));
        }
        let parts = std::mem::take(&mut self.side.handed_in);
        self.save()?;
        for part in parts {
            self.remove_file(&part.file);
        }
        Ok(())
    }

    /// What the server answers once it is there and has room; its words where it knows no such
    /// thing.
    pub(super) fn until_there<T>(
        &mut self,
        ask: impl Fn(&ServerArgs) -> Result<Asked<T>, Failure>,
    ) -> Result<Result<T, String>, Halt> {
        loop {
            match ask(&self.server)? {
                Asked::Found(answer) => return Ok(Ok(answer)),
                Asked::Unknown(why) => return Ok(Err(why)),
                Asked::Away(away) => self.wait_for_server(&away.message)?,
            }
        }
    }

    pub(super) fn wait_for_server(&mut self, why: &str) -> Result<(), Halt> {
        if self.says && self.said_at.elapsed() >= SAY_EVERY {
            self.said_at = Instant::now();
            say!("{why}; waiting for it");
        }
        self.pause(ASK_EVERY)
    }

    pub(super) fn pause(&self, time: Duration) -> Result<(), Halt> {
        // It stands on a thread that may wait.
        let left = Handle::current().block_on(timeout(time, self.leave.cancelled()));
        match left {
            Ok(()) => Err(Halt::Left),
            Err(_in_time) => Ok(()),
        }
    }

    fn tell(&mut self) {
        if self.says && self.said_at.elapsed() >= SAY_EVERY {
            self.said_at = Instant::now();
            say!(
                "{} of {} rows have a result; {} batches are at the server",
                grouped(self.done.len()),
                grouped(self.figures.rows),
                self.side.handed_in.len()
            );
        }
    }
}

/// What is said where nobody knows what became of these any more.
fn lost(parts: &[HandedIn]) -> String {
    const NAMED_MAX: usize = 5;
    let named = parts.iter().take(NAMED_MAX);
    let named: Vec<_> = named
        .map(|part| format!("{}-{}", part.first, part.last))
        .collect();
    let more = if parts.len() > NAMED_MAX { ", …" } else { "" };
    format!(
        "the server knows nothing of the batches of rows {}{more}: it forgets what has ended after \
         `[store] keep_results` (7 days), or it is not the server that they were handed to. With \
         --resume-anyway these rows are handed in again",
        named.join(", ")
    )
}
