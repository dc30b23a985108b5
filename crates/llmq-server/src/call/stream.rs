//! A stream on its way through.
//!
//! Its head is held until its first token: until then another upstream may take over
//! without the caller knowing. After that it is passed on as it comes, and a stream that breaks
//! off is never ended as if it were whole.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use http::StatusCode;
use http_body::Frame;
use llmq_core::{Clock, Timestamp};
use llmq_dispatch::Ended;
use llmq_engine::config::StreamRecovery;
use llmq_engine::{
    AssembledRoute, Grant, Retelling, STREAM_ENDS_WITHIN, end_of, heed, outcome, tell_output,
};
use llmq_provider::translate::StreamBroken;
use llmq_provider::{Answer, Dialect, Source, StreamEnd, StreamReader, Verdict, check_stream};
use tokio::time::Sleep;

use super::attempt::{Attempted, Trial};
use super::body::{Broken, ReplyBody};
use super::forward;
use super::progress::Progress;
use super::reply;
use crate::Gateway;
use crate::dialect::Refusal;
use crate::models::Model;

/// Pieces that wait together go out together, up to about this much at a time.
const TOGETHER_BYTES: usize = 64 << 10;
/// So much is held back where a stream is to be recovered.
const HELD_BYTES_MAX: usize = 4 << 20;

/// What was read of a stream before any of it was passed on.
enum Opened {
    /// Good so far; `true` when it has ended well.
    Good(BytesMut, bool),
    /// No answer comes of it.
    Bad(Bad),
}

struct Bad {
    verdict: Box<Verdict>,
    /// Whether it may be billed all the same.
    may_be_billed: bool,
    /// The provider's own words, where it has said that it failed.
    said: Option<Bytes>,
}

/// Takes over a stream whose head has come.
pub(super) async fn open(mut trial: Trial<'_>, model: &Model, mut answer: Answer) -> Attempted {
    let mut reader = trial.asked.reader(&trial.grant);
    if trial.progress.is_traced() {
        reader = reader.telling();
    }
    let hold_all = model.settings.stream_recovery == StreamRecovery::Buffer;
    match hold(&trial, &mut answer, &mut reader, hold_all).await {
        Opened::Bad(bad) => {
            if !bad.may_be_billed {
                trial.progress.was_free();
            }
            let whole = bad.said.map(|said| answer.failed(said));
            trial.failed(&bad.verdict, whole)
        }
        Opened::Good(held, ended) => {
            if let Some(by) = trial.maker() {
                trial.gateway.made.note_stream(&held, by);
            }
            let (status, mut headers) = (answer.status(), answer.headers().clone());
            if trial.asked.is_translated() {
                forward::translate_request_id(&mut headers, trial.incoming.dialect);
            }
            let nothing = ReplyBody::Whole(None);
            let mut reply =
                reply::answered(status, headers, nothing, trial.incoming.id, &trial.progress);
            let passing = Passing::new(trial, answer, reader, held.freeze(), ended);
            *reply.body_mut() = ReplyBody::Passing(Box::new(passing));
            Attempted::Answered(Box::new(reply))
        }
    }
}

/// Reads until the first token, or to the end where all is to be held.
async fn hold(
    trial: &Trial<'_>,
    answer: &mut Answer,
    reader: &mut StreamReader,
    hold_all: bool,
) -> Opened {
    let mut held = BytesMut::new();
    answer.begins();
    loop {
        let piece = answer.chunk().await;
        let end = match piece {
            Ok(Some(piece)) => {
                held.extend_from_slice(&piece);
                let pushed = reader.push(&piece);
                heed(reader, answer);
                match pushed {
                    Err(_) => StreamEnd::Malformed,
                    Ok(()) if reader.is_broken() => reader.end(),
                    Ok(()) if reader.end() == StreamEnd::Whole => {
                        return Opened::Good(held, false);
                    }
                    Ok(()) if !hold_all && reader.has_begun() => {
                        return Opened::Good(held, false);
                    }
                    Ok(()) if held.len() > HELD_BYTES_MAX => {
                        answer.has_begun();
                        return Opened::Good(held, false);
                    }
                    Ok(()) => continue,
                }
            }
            Ok(None) => match end_of(reader, answer) {
                StreamEnd::Whole => return Opened::Good(held, true),
                end => end,
            },
            // Every answer has said why it ended; what is missing is the last event.
            Err(_) if reader.broke() == StreamEnd::Whole => return Opened::Good(held, true),
            Err(error) => {
                return Opened::Bad(Bad {
                    verdict: Box::new(Verdict::from(&error)),
                    may_be_billed: true,
                    said: None,
                });
            }
        };
        let judged = check_stream(
            trial.asked.source(),
            answer.status(),
            answer.headers(),
            &end,
            trial.now(),
        );
        if let Err(verdict) = judged {
            let said = match end {
                StreamEnd::Failed(said) => Some(Bytes::from(said)),
                _ => None,
            };
            return Opened::Bad(Bad {
                verdict,
                // A provider that says why it gives nothing has made nothing.
                may_be_billed: reader.has_begun() || said.is_none(),
                said,
            });
        }
    }
}

/// A stream that is being passed on.
pub(crate) struct Passing {
    gateway: Arc<Gateway>,
    route: Arc<AssembledRoute>,
    answer: Answer,
    reader: StreamReader,
    /// So much of its output the limits were told of.
    told: u64,
    /// In which the caller is told of a broken stream.
    dialect: Dialect,
    source: Source,
    retelling: Retelling,
    held: Option<Bytes>,
    grant: Option<Grant>,
    progress: Progress,
    sent: Timestamp,
    state: State,
    /// For the end of a connection whose stream is whole.
    patience: Option<Pin<Box<Sleep>>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Open,
    /// Its last event is there and all is settled; its connection has not ended yet.
    Whole,
    Ended,
    Broken,
}

impl Passing {
    fn new(
        trial: Trial<'_>,
        answer: Answer,
        reader: StreamReader,
        held: Bytes,
        ended: bool,
    ) -> Self {
        let mut passing = Self {
            source: trial.asked.source(),
            retelling: trial.asked.retelling(trial.now()),
            gateway: Arc::clone(trial.gateway),
            route: trial.route,
            sent: answer.times().sent,
            answer,
            reader,
            told: 0,
            dialect: trial.incoming.dialect,
            held: None,
            grant: Some(trial.grant),
            progress: trial.progress,
            state: State::Open,
            patience: None,
        };
        passing.progress.first_token = Some(passing.gateway.clock.now().mono);
        let mut pieces = Pieces::default();
        passing.tell_output();
        passing.write(held, &mut pieces);
        if passing.state == State::Open && (ended || passing.reader.end() == StreamEnd::Whole) {
            passing.end_well(&mut pieces);
        }
        if ended && passing.state == State::Whole {
            passing.state = State::Ended;
        }
        passing.held = pieces.take();
        passing
    }

    /// Passes on what has been read, in the caller's dialect.
    fn write(&mut self, piece: Bytes, pieces: &mut Pieces) {
        let pushed = self.retelling.push(piece, |bytes| pieces.push(bytes));
        if let Err(broken) = pushed {
            self.broken(&broken, pieces);
        }
    }

    fn broken(&mut self, broken: &StreamBroken, pieces: &mut Pieces) {
        // The provider's own failure has been told in the caller's dialect already.
        if matches!(broken, StreamBroken::Failed { .. }) {
            let end = match self.reader.end() {
                StreamEnd::Whole => StreamEnd::Malformed,
                end => end,
            };
            self.judge_failed(&end);
        } else {
            self.break_off(&StreamEnd::Malformed, pieces);
        }
    }

    pub(super) fn poll_frame(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        if let Some(held) = self.held.take() {
            return Poll::Ready(Some(Ok(Frame::data(held))));
        }
        match self.state {
            State::Open => {}
            State::Whole => return self.poll_end(context),
            State::Ended => return Poll::Ready(None),
            State::Broken => return Poll::Ready(Some(Err(Broken))),
        }
        let mut pieces = Pieces::default();
        while self.state == State::Open && pieces.len() < TOGETHER_BYTES {
            match self.answer.poll_chunk(context) {
                Poll::Ready(Ok(Some(piece))) => self.pass(piece, &mut pieces),
                Poll::Ready(Ok(None)) => match end_of(&mut self.reader, &self.answer) {
                    StreamEnd::Whole => self.end_at_once(&mut pieces),
                    end => self.break_off(&end, &mut pieces),
                },
                // Every answer has said why it ended; what is missing is the last event.
                Poll::Ready(Err(_)) if self.reader.broke() == StreamEnd::Whole => {
                    self.end_at_once(&mut pieces);
                }
                Poll::Ready(Err(error)) => {
                    let message = error.to_string();
                    self.fail(&Verdict::from(&error));
                    pieces.push(self.event(message));
                }
                Poll::Pending if pieces.is_empty() => return Poll::Pending,
                Poll::Pending => break,
            }
        }
        match (pieces.take(), self.state) {
            (Some(bytes), _) => Poll::Ready(Some(Ok(Frame::data(bytes)))),
            (None, State::Broken) => Poll::Ready(Some(Err(Broken))),
            (None, State::Whole) => self.poll_end(context),
            (None, _) => Poll::Ready(None),
        }
    }

    /// A stream that is whole ends with its connection, which can then be used again; but not
    /// much later, however that one ends.
    fn poll_end(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        loop {
            match self.answer.poll_chunk(context) {
                Poll::Ready(Ok(Some(piece))) if self.retelling.is_as_it_comes() => {
                    return Poll::Ready(Some(Ok(Frame::data(piece))));
                }
                Poll::Ready(Ok(Some(_))) => {}
                Poll::Ready(Ok(None) | Err(_)) => break,
                Poll::Pending => {
                    let patience = || Box::pin(tokio::time::sleep(STREAM_ENDS_WITHIN));
                    let patience = self.patience.get_or_insert_with(patience);
                    ready!(patience.as_mut().poll(context));
                    break;
                }
            }
        }
        self.state = State::Ended;
        Poll::Ready(None)
    }

    fn pass(&mut self, piece: Bytes, pieces: &mut Pieces) {
        if self.reader.push(&piece).is_err() {
            return self.break_off(&StreamEnd::Malformed, pieces);
        }
        heed(&self.reader, &mut self.answer);
        self.tell_output();
        match self.reader.end() {
            StreamEnd::Malformed => self.break_off(&StreamEnd::Malformed, pieces),
            end @ StreamEnd::Failed(_) => {
                // The provider tells of its failure itself, and better. What comes behind it may
                // be the mark of a clean end.
                self.write(piece.slice(..self.reader.taken()), pieces);
                if self.state == State::Open && self.judge_failed(&end).is_empty() {
                    // It has said nothing that an SDK takes for an error.
                    let message = "the upstream did not say why it failed".to_owned();
                    pieces.push(self.event(message));
                }
            }
            StreamEnd::CutOff => self.write(piece, pieces),
            StreamEnd::Whole => {
                self.write(piece, pieces);
                if self.state == State::Open {
                    self.end_well(pieces);
                }
            }
        }
    }

    fn tell_output(&mut self) {
        if let Some(grant) = &self.grant {
            tell_output(&self.reader, grant, &mut self.told);
        }
    }

    /// All of it is there: what it used is settled, and it is told as a success, whatever becomes
    /// of its connection and of its caller.
    fn end_well(&mut self, pieces: &mut Pieces) {
        if let Err(broken) = self.retelling.finish(|bytes| pieces.push(bytes)) {
            return self.broken(&broken, pieces);
        }
        self.state = State::Whole;
        let now = self.gateway.clock.now();
        let ended = outcome::completed(
            &self.route.provider,
            self.answer.headers(),
            self.reader.usage(),
            now.mono - self.sent,
            now,
        );
        if let Some(grant) = self.grant.take() {
            grant.complete(ended);
        }
        let status = self.answer.status().as_u16();
        self.progress.asked(None, now.mono);
        self.progress.used(self.reader.usage());
        if let Some(facts) = self.reader.facts() {
            self.progress.answered(facts);
        }
        self.progress.ends(status, None);
    }

    /// The same where nothing more will come.
    fn end_at_once(&mut self, pieces: &mut Pieces) {
        self.end_well(pieces);
        if self.state == State::Whole {
            self.state = State::Ended;
        }
    }

    fn break_off(&mut self, end: &StreamEnd, pieces: &mut Pieces) {
        let message = self.judge_failed(end);
        pieces.push(self.event(message));
    }

    fn judge_failed(&mut self, end: &StreamEnd) -> String {
        let now = self.gateway.clock.now();
        let (status, headers) = (self.answer.status(), self.answer.headers());
        match check_stream(self.source, status, headers, end, now) {
            Ok(()) => String::new(),
            Err(verdict) => {
                self.fail(&verdict);
                verdict.message
            }
        }
    }

    /// The attempt has failed, and nobody can make up for it: a part of it is with the caller.
    fn fail(&mut self, verdict: &Verdict) {
        self.state = State::Broken;
        let now = self.gateway.clock.now();
        let heard = Some((self.answer.headers(), now.mono - self.sent));
        let ended: Ended = outcome::failed(&self.route.provider, verdict, heard, now);
        if let Some(grant) = self.grant.take() {
            // A ticket that stands in line again is dropped, and leaves it.
            drop(grant.fail(ended));
        }
        self.progress.asked(Some(verdict.class), now.mono);
        self.progress
            .ends(StatusCode::BAD_GATEWAY.as_u16(), Some(verdict.class));
    }

    fn event(&self, message: String) -> Bytes {
        let refusal = Refusal::new(StatusCode::BAD_GATEWAY, "stream_broken", message);
        refusal.event(self.dialect)
    }
}

/// Pieces that go out together. One alone is not copied.
#[derive(Default)]
struct Pieces {
    first: Option<Bytes>,
    all: BytesMut,
}

impl Pieces {
    fn push(&mut self, piece: Bytes) {
        if piece.is_empty() {
            return;
        }
        match self.first.take() {
            None if self.all.is_empty() => self.first = Some(piece),
            first => {
                if let Some(first) = first {
                    self.all.extend_from_slice(&first);
                }
                self.all.extend_from_slice(&piece);
            }
        }
    }

    fn len(&self) -> usize {
        self.first.as_ref().map_or(self.all.len(), Bytes::len)
    }

    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn take(&mut self) -> Option<Bytes> {
        self.first
            .take()
            .or_else(|| (!self.all.is_empty()).then(|| self.all.split().freeze()))
    }
}
