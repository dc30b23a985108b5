use llmq_core::FailureClass;

use crate::Cause;

/// Why a call brought no whole answer, by how far it got.
///
/// No message holds a header, a key, a query or any part of the prompt.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CallError {
    /// Not one byte of the call left: its reservation can be given back whole.
    #[error("could not reach {authority}: {cause}")]
    NotSent {
        /// Host and port.
        authority: String,
        /// What went wrong.
        cause: Cause,
    },
    /// The call left, at least in part, and no answer came. It may have been billed.
    #[error("{authority} took the call and did not answer: {cause}")]
    NoAnswer {
        /// Host and port.
        authority: String,
        /// What went wrong.
        cause: Cause,
    },
    /// The answer began and did not reach its end.
    #[error("the answer of {authority} broke off after {received_bytes} bytes: {cause}")]
    CutOff {
        /// Host and port.
        authority: String,
        /// How much of the body had come.
        received_bytes: u64,
        /// What went wrong.
        cause: Cause,
    },
    /// What it asks for below its operation has a name that cannot stand in an address.
    #[error("what the call asks {authority} for has no address")]
    NoAddress {
        /// Host and port.
        authority: String,
    },
    /// The answer is larger than `answer_bytes_max`; another attempt would be as large.
    #[error("the answer of {authority} is larger than {max_bytes} bytes")]
    AnswerTooLarge {
        /// Host and port.
        authority: String,
        /// The bound.
        max_bytes: usize,
    },
}

impl CallError {
    /// The failure class that decides what happens next.
    #[must_use]
    pub fn class(&self) -> FailureClass {
        match self {
            // It was taken, and nothing of the answer came.
            Self::CutOff {
                cause: Cause::FirstTokenTimeout(_),
                ..
            } => FailureClass::Ambiguous,
            Self::NotSent { .. } | Self::CutOff { .. } => FailureClass::Transient,
            Self::NoAnswer { .. } => FailureClass::Ambiguous,
            Self::NoAddress { .. } | Self::AnswerTooLarge { .. } => FailureClass::RowFault,
        }
    }

    /// A stable word for programs, where the class says less.
    #[must_use]
    pub fn code(&self) -> Option<&'static str> {
        match self {
            Self::AnswerTooLarge { .. } => Some("answer_too_large"),
            Self::NotSent { .. }
            | Self::NoAnswer { .. }
            | Self::CutOff { .. }
            | Self::NoAddress { .. } => None,
        }
    }

    /// Whether any byte of the call may have left.
    #[must_use]
    pub fn may_have_been_sent(&self) -> bool {
        !matches!(self, Self::NotSent { .. } | Self::NoAddress { .. })
    }

    /// Whether the other side took the call and then said nothing in time.
    #[must_use]
    pub fn is_silence(&self) -> bool {
        matches!(
            self,
            Self::NoAnswer {
                cause: Cause::FirstByteTimeout(_),
                ..
            } | Self::CutOff {
                cause: Cause::FirstTokenTimeout(_),
                ..
            }
        )
    }

    /// What went wrong on the network, if it was that.
    #[must_use]
    pub fn cause(&self) -> Option<&Cause> {
        match self {
            Self::NotSent { cause, .. }
            | Self::NoAnswer { cause, .. }
            | Self::CutOff { cause, .. } => Some(cause),
            Self::NoAddress { .. } | Self::AnswerTooLarge { .. } => None,
        }
    }
}
