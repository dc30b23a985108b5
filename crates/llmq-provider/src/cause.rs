use std::error::Error as StdError;
use std::io;
use std::time::Duration;

use rustls::{CertificateError, Error as RustlsError};

use crate::connect::ConnectTimeout;
use crate::wire::WireFault;

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
    #[error("no secure connection: {0}")]
    Tls(TlsFault),
    /// No connection in time.
    #[error("no connection within {0:?}")]
    ConnectTimeout(Duration),
    /// No answer in time after the call was sent.
    #[error("no answer within {0:?}")]
    FirstByteTimeout(Duration),
    /// A stream that began, and brought no token in time.
    #[error("no token within {0:?}")]
    FirstTokenTimeout(Duration),
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

/// Why no secure connection was agreed on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TlsFault {
    /// Nobody whom this machine trusts vouches for the certificate.
    #[error("its certificate is of an authority that this machine does not know")]
    UnknownAuthority,
    /// The certificate is good, for somebody else.
    #[error("{0}")]
    WrongName(String),
    /// The certificate is not valid yet, or no longer.
    #[error("{0}")]
    WrongTime(String),
    /// What was said there is not TLS.
    #[error("what answers there does not speak TLS")]
    NotTls,
    /// Anything else, in the words of the TLS library.
    #[error("{0}")]
    Other(String),
}

impl Cause {
    /// What a person can do about it; none where waiting is all there is.
    #[must_use]
    pub fn remedy(&self) -> Option<&'static str> {
        Some(match self {
            Self::Dns(_) => {
                "check the host in the base URL, and whether this machine can look up names"
            }
            Self::Unreachable(_) => {
                "check host and port of the base URL, and whether the server runs"
            }
            Self::ConnectTimeout(_) => {
                "check host and port of the base URL, and whether a firewall or a proxy stands \
                 in the way"
            }
            Self::Tls(fault) => return fault.remedy(),
            Self::Closed => {
                "if it never answers, check the port, and whether the base URL should begin with \
                 https:// or http://"
            }
            Self::NotHttp(_) => {
                "check the port of the base URL, and whether it should begin with https://"
            }
            Self::FirstByteTimeout(_) | Self::FirstTokenTimeout(_) | Self::TotalTimeout(_) => {
                "allow more time, or fewer calls at once, if the server is only slow"
            }
            Self::IdleTimeout(_) | Self::Other(_) => return None,
        })
    }

    /// Whether it stays so until a person acts, however long one waits.
    #[must_use]
    pub fn is_lasting(&self) -> bool {
        use TlsFault as T;
        matches!(
            self,
            Self::Tls(T::UnknownAuthority | T::WrongName(_) | T::WrongTime(_) | T::NotTls)
        )
    }

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
            if let Some(fault) = error.downcast_ref::<WireFault>() {
                return match fault {
                    WireFault::CutOff => Self::Closed,
                    WireFault::NotHttp(why) => Self::NotHttp(why.clone()),
                };
            }
            if let Some(fault) = error.downcast_ref::<RustlsError>() {
                return Self::Tls(TlsFault::of(fault));
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

impl TlsFault {
    fn of(error: &RustlsError) -> Self {
        use CertificateError as C;
        let text = error.to_string();
        match error {
            RustlsError::InvalidMessage(_) => Self::NotTls,
            RustlsError::InvalidCertificate(fault) => match fault {
                C::UnknownIssuer => Self::UnknownAuthority,
                C::NotValidForName | C::NotValidForNameContext { .. } => Self::WrongName(text),
                C::Expired
                | C::ExpiredContext { .. }
                | C::NotValidYet
                | C::NotValidYetContext { .. } => Self::WrongTime(text),
                _ => Self::Other(text),
            },
            _ => Self::Other(text),
        }
    }

    fn remedy(&self) -> Option<&'static str> {
        Some(match self {
            Self::UnknownAuthority => {
                "if you trust it, name a file with its authority's certificate in SSL_CERT_FILE"
            }
            Self::WrongName(_) => "name the host in the base URL as its certificate does",
            Self::WrongTime(_) => {
                "check this machine's clock; if it is right, the server needs a new certificate"
            }
            Self::NotTls => {
                "check the port of the base URL, and whether it should begin with http://"
            }
            Self::Other(_) => return None,
        })
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

fn of_io(kind: io::ErrorKind, text: String) -> Cause {
    match kind {
        io::ErrorKind::ConnectionReset
        | io::ErrorKind::ConnectionAborted
        | io::ErrorKind::BrokenPipe
        | io::ErrorKind::NotConnected
        | io::ErrorKind::UnexpectedEof => Cause::Closed,
        io::ErrorKind::ConnectionRefused
        | io::ErrorKind::HostUnreachable
        | io::ErrorKind::NetworkUnreachable
        | io::ErrorKind::NetworkDown
        | io::ErrorKind::AddrNotAvailable
        | io::ErrorKind::TimedOut => Cause::Unreachable(text),
        _ => Cause::Other(text),
    }
}
