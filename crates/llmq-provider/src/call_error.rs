use std::error::Error as StdError;
use std::io;
use std::time::Duration;

use llmq_core::FailureClass;

use crate::connect::ConnectTimeout;

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
    /// The answer is larger than `answer_bytes_max`; another attempt would be as large.
    #[error("the answer of {authority} is larger than {max_bytes} bytes")]
    AnswerTooLarge {
        /// Host and port.
        authority: String,
        /// The bound.
        max_bytes: usize,
    },
}

/// What went wrong on the network.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Cause {
    /// The host name has no address.
    #[error("its name was not found ({0})")]
    Dns(String),
    /// Nothing listens there, or no route leads there.
    #[error("{0}")]
    Unreachable(String),
    /// The secure connection was not agreed on.
    #[error("no secure connection ({0})")]
    Tls(String),
    /// No connection in time.
    #[error("no connection within {0:?}")]
    ConnectTimeout(Duration),
    /// No answer in time after the call was sent.
    #[error("no answer within {0:?}")]
    FirstByteTimeout(Duration),
    /// Silence in the middle of an answer.
    #[error("silence for {0:?}")]
    IdleTimeout(Duration),
    /// The whole call took too long.
    #[error("not finished within {0:?}")]
    TotalTimeout(Duration),
    /// The other side closed or reset the connection.
    #[error("the connection was closed")]
    Closed,
    /// The other side does not speak HTTP as it should.
    #[error("the answer is not proper HTTP ({0})")]
    NotHttp(String),
    /// Anything else.
    #[error("{0}")]
    Other(String),
}

impl CallError {
    /// The failure class that decides what happens next.
    #[must_use]
    pub fn class(&self) -> FailureClass {
        match self {
            Self::NotSent { .. } | Self::CutOff { .. } => FailureClass::Transient,
            Self::NoAnswer { .. } => FailureClass::Ambiguous,
            Self::AnswerTooLarge { .. } => FailureClass::RowFault,
        }
    }

    /// Whether any byte of the call may have left.
    #[must_use]
    pub fn may_have_been_sent(&self) -> bool {
        !matches!(self, Self::NotSent { .. })
    }

    /// What went wrong on the network, if it was that.
    #[must_use]
    pub fn cause(&self) -> Option<&Cause> {
        match self {
            Self::NotSent { cause, .. }
            | Self::NoAnswer { cause, .. }
            | Self::CutOff { cause, .. } => Some(cause),
            Self::AnswerTooLarge { .. } => None,
        }
    }
}

impl Cause {
    /// Reads an error and those behind it, from the outside in.
    pub(crate) fn of(error: &(dyn StdError + 'static)) -> Self {
        let mut next = Some(error);
        let mut innermost = error;
        let mut io = None;
        let mut is_dns = false;
        while let Some(error) = next {
            if let Some(ConnectTimeout(limit)) = error.downcast_ref() {
                return Self::ConnectTimeout(*limit);
            }
            if let Some(cause) = error.downcast_ref::<hyper::Error>().and_then(of_hyper) {
                return cause;
            }
            // hyper-util does not export its connector's error; its text is stable.
            is_dns |= error.to_string().starts_with("dns error");
            innermost = error;
            let as_io = error.downcast_ref::<io::Error>();
            io = as_io.or(io);
            // An io::Error leaves the error it wraps out of `source`.
            next = as_io
                .and_then(io::Error::get_ref)
                .map(|inner| inner as &(dyn StdError + 'static))
                .or_else(|| error.source());
        }
        let text = innermost.to_string();
        match io.map(io::Error::kind) {
            _ if is_dns => Self::Dns(text),
            Some(kind) => of_io(kind, text),
            None => Self::Other(text),
        }
    }
}

fn of_hyper(error: &hyper::Error) -> Option<Cause> {
    if error.is_incomplete_message() || error.is_closed() {
        Some(Cause::Closed)
    } else if error.is_parse() {
        Some(Cause::NotHttp(error.to_string()))
    } else {
        None
    }
}

/// What a person can do about an unknown authority is not in rustls's word for it.
fn of_tls(text: String) -> String {
    if text.ends_with("UnknownIssuer") {
        "its certificate is of an authority that this machine does not know; SSL_CERT_FILE names \
         a file of those to trust instead"
            .to_owned()
    } else {
        text
    }
}

fn of_io(kind: io::ErrorKind, text: String) -> Cause {
    match kind {
        io::ErrorKind::ConnectionReset
        | io::ErrorKind::ConnectionAborted
        | io::ErrorKind::BrokenPipe
        | io::ErrorKind::NotConnected
        | io::ErrorKind::UnexpectedEof => Cause::Closed,
        // rustls reports through this kind.
        io::ErrorKind::InvalidData => Cause::Tls(of_tls(text)),
        io::ErrorKind::ConnectionRefused
        | io::ErrorKind::HostUnreachable
        | io::ErrorKind::NetworkUnreachable
        | io::ErrorKind::NetworkDown
        | io::ErrorKind::AddrNotAvailable
        | io::ErrorKind::TimedOut => Cause::Unreachable(text),
        _ => Cause::Other(text),
    }
}
