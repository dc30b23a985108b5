//! A call that was sent, for whoever reads its answer: who answers, and in which words the
//! caller hears it. Calls whose caller waits and accepted ones are read by the same rules.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use llmq_core::{FailureClass, Now};
use llmq_provider::translate::{self, StreamBroken, StreamOptions, StreamTranslator};
use llmq_provider::{
    Answer, Dialect, Operation, Source, StreamEnd, StreamReader, UsageChunkFilter, Verdict,
    WholeAnswer, WholeEvents,
};

use crate::{AssembledRoute, Grant, Outgoing};

/// A stream's last event is there; its connection may take so long to end too.
pub const STREAM_ENDS_WITHIN: Duration = Duration::from_secs(1);

/// What is to be known of a call when its answer comes.
#[derive(Debug, Clone, Copy)]
pub struct Asked {
    source: Source,
    /// As it was sent.
    operation: Operation,
    /// The caller's.
    dialect: Dialect,
    /// Set where the call was translated: whether the caller asked for a stream's usage.
    include_usage: Option<bool>,
    asks_usage: bool,
    choices: u32,
}

impl Asked {
    /// A call of `choices` answers (`n`) from a caller that speaks `dialect`, sent as `outgoing`
    /// by `route`.
    #[must_use]
    pub fn new(
        outgoing: &Outgoing,
        route: &AssembledRoute,
        dialect: Dialect,
        choices: u32,
    ) -> Self {
        Self {
            source: Source {
                host: route.provider.host(),
                dialect: route.provider.dialect(),
            },
            operation: outgoing.operation,
            dialect,
            include_usage: outgoing.include_usage,
            asks_usage: outgoing.asks_usage,
            choices,
        }
    }

    /// Who answers.
    #[must_use]
    pub fn source(&self) -> Source {
        self.source
    }

    /// Whether the provider speaks another dialect than the caller.
    #[must_use]
    pub fn is_translated(&self) -> bool {
        self.include_usage.is_some()
    }

    /// Whether the stream was asked for its usage, and not because the caller did.
    #[must_use]
    pub fn asks_usage(&self) -> bool {
        self.asks_usage
    }

    /// The reader of its stream, which counts its output where a limit on the way needs that.
    #[must_use]
    pub fn reader(&self, grant: &Grant) -> StreamReader {
        let reader = StreamReader::new(self.source.dialect, self.operation).of(self.choices);
        match grant.start().counts_output {
            true => reader.counting(),
            false => reader,
        }
    }

    /// What makes the caller's stream of the provider's.
    #[must_use]
    pub fn retelling(&self, now: Now) -> Retelling {
        match self.include_usage {
            Some(include_usage) => {
                let options = StreamOptions {
                    include_usage,
                    created_s: created_s(now),
                };
                let translator = StreamTranslator::new(self.dialect, options);
                Retelling(Way::Translated(Box::new(translator)))
            }
            None if self.asks_usage => Retelling(Way::WithoutUsage(UsageChunkFilter::default())),
            None => Retelling(Way::AsItComes(WholeEvents::default())),
        }
    }

    /// The body of a whole answer in the caller's dialect; none: it is as it came.
    ///
    /// # Errors
    ///
    /// It is none that can be told there.
    pub fn retold(&self, whole: &WholeAnswer, now: Now) -> Result<Option<Bytes>, Box<Verdict>> {
        if !self.is_translated() {
            return Ok(None);
        }
        let told = translate::answer(self.dialect, &whole.body, created_s(now));
        told.map(Some).map_err(|unreadable| {
            let class = FailureClass::Transient;
            Box::new(Verdict {
                class,
                wait: None,
                pause: class.rule().pause,
                refused: None,
                status: Some(whole.status.as_u16()),
                code: None,
                message: unreadable.to_string(),
                limit: None,
                was_silent: false,
            })
        })
    }
}

/// Lets the deadlines of a stream follow what was read of it.
pub fn heed(reader: &StreamReader, answer: &mut Answer) {
    if reader.has_begun() {
        answer.has_begun();
    }
    match reader.is_all_there() {
        true => answer.is_all_there(),
        false => answer.goes_on(),
    }
}

/// How a stream stands whose body has ended.
pub fn end_of(reader: &mut StreamReader, answer: &Answer) -> StreamEnd {
    match answer.has_own_end() {
        true => reader.finish(),
        false => reader.broke(),
    }
}

/// Tells a stream's limits how much of its output has come, some tokens at a time; `told` is what
/// they were told last.
pub fn tell_output(reader: &StreamReader, grant: &Grant, told: &mut u64) {
    const AT_A_TIME: u64 = 16;
    let come = reader.output_at_least();
    if let Some(come) = come.filter(|come| *come >= *told + AT_A_TIME) {
        *told = come;
        grant.produced(come);
    }
}

fn created_s(now: Now) -> u64 {
    u64::try_from(now.wall.as_micros() / 1_000_000).unwrap_or(0)
}

/// Makes the caller's stream of the provider's, piece by piece.
pub struct Retelling(Way);

/// How a stream's bytes become the caller's.
enum Way {
    AsItComes(WholeEvents),
    /// Its usage is counted here, and the caller did not ask for it.
    WithoutUsage(UsageChunkFilter),
    /// The provider speaks another dialect than the caller.
    Translated(Box<StreamTranslator>),
}

impl Retelling {
    /// Whether the caller gets the provider's bytes, whatever they are.
    #[must_use]
    pub fn is_as_it_comes(&self) -> bool {
        matches!(self.0, Way::AsItComes(_))
    }

    /// Takes the next bytes, cut anywhere, and tells what they make: whole events, so that one that
    /// tells of a failure may follow.
    ///
    /// # Errors
    ///
    /// It cannot be told on. What was told before the fault counts, and where the provider has
    /// told of a failure of its own ([`StreamBroken::Failed`]), that too has been told.
    pub fn push(&mut self, piece: Bytes, mut tell: impl FnMut(Bytes)) -> Result<(), StreamBroken> {
        match &mut self.0 {
            Way::AsItComes(events) => events.push(piece, tell),
            Way::WithoutUsage(filter) => filter.push(piece, tell),
            Way::Translated(translator) => {
                let mut said = BytesMut::new();
                let pushed = translator.push(&piece, &mut said);
                tell(said.freeze());
                pushed?;
            }
        }
        Ok(())
    }

    /// Tells what is held back until the end of a stream that is whole.
    ///
    /// # Errors
    ///
    /// As [`Retelling::push`]: it was not whole.
    pub fn finish(&mut self, mut tell: impl FnMut(Bytes)) -> Result<(), StreamBroken> {
        match &mut self.0 {
            Way::AsItComes(events) => events.finish(tell),
            Way::WithoutUsage(filter) => filter.finish(tell),
            Way::Translated(translator) => {
                let mut said = BytesMut::new();
                let finished = translator.finish(&mut said);
                tell(said.freeze());
                finished?;
            }
        }
        Ok(())
    }
}
