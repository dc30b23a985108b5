//! Asking a running server.

use std::convert::Infallible;
use std::error::Error;
use std::fs::File;
use std::io::{self, Read};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use clap::Args;
use http_body_util::{BodyExt, Either, Full, Limited};
use hyper::body::{Body, Bytes, Frame, Incoming, SizeHint};
use hyper::{Method, Request, Response, StatusCode, Uri};
use hyper_rustls::HttpsConnectorBuilder;
use hyper_util::client::legacy::Client as HttpClient;
use hyper_util::rt::TokioExecutor;
use llmq_api::ProblemBody;
use llmq_provider::Secret;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;

use crate::exit::{ACCOUNT, FAILED, Failure, INTERRUPTED, UNREACHABLE, with_causes};
use crate::text::time;

/// A longer answer is refused rather than held in memory; what may be longer is copied on
/// ([`ServerArgs::copy`]).
const ANSWER_BYTES_MAX: usize = 64 << 20;

/// Which server to ask, and as whom.
#[derive(Debug, Clone, Args)]
pub(crate) struct ServerArgs {
    /// The server
    #[arg(
        long,
        value_name = "URL",
        env = "LLMQ_BASE_URL",
        default_value = "http://localhost:8080",
        global = true
    )]
    base_url: String,
    /// A key of the server
    #[arg(
        long,
        value_name = "KEY",
        env = "LLMQ_API_KEY",
        hide_env_values = true,
        value_parser = secret,
        global = true
    )]
    api_key: Option<Secret>,
    /// How long to wait for its answer
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = time, global = true)]
    timeout: Duration,
    /// What names the server.
    #[arg(skip = "--base-url or LLMQ_BASE_URL")]
    named_by: &'static str,
    /// Once this is cancelled nothing is waited for: what is asked fails with [`INTERRUPTED`].
    #[arg(skip)]
    leave: CancellationToken,
}

/// What a server says where it may know no such thing, or may not be there.
pub(crate) enum Asked<T> {
    Found(T),
    /// There is no such thing (404), in its words.
    Unknown(String),
    /// It is away, or cannot do it now, and may come back.
    Away(Failure),
}

impl<T> Asked<T> {
    /// What it has, for those to whom nothing else is of use.
    pub(crate) fn found(self) -> Result<T, Failure> {
        match self {
            Self::Found(found) => Ok(found),
            Self::Unknown(message) => Err(Failure {
                code: FAILED,
                message,
            }),
            Self::Away(failure) => Err(failure),
        }
    }
}

impl ServerArgs {
    /// The server at `url` of `--server`, with the path of its API or without, and the key of the
    /// environment; asked until `leave` is cancelled.
    pub(crate) fn of(url: &str, timeout: Duration, leave: CancellationToken) -> Self {
        let key = std::env::var("LLMQ_API_KEY").ok();
        Self {
            base_url: url.to_owned(),
            api_key: key.filter(|key| !key.is_empty()).map(Secret::new),
            timeout,
            named_by: "--server",
            leave,
        }
    }

    /// What the server has at `path`, which begins with a slash.
    pub(crate) fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, Failure> {
        self.send(Method::GET, path, None::<&()>)
    }

    /// The same server, for a question that it may hold for `longer`.
    pub(crate) fn waiting(&self, longer: Duration) -> Self {
        Self {
            timeout: self.timeout + longer,
            ..self.clone()
        }
    }

    /// The same where it may know no such thing, or be away.
    pub(crate) fn ask<T: DeserializeOwned>(&self, path: &str) -> Result<Asked<T>, Failure> {
        self.asked(self.raw(path))
    }

    /// What the server answers to a POST, where it may be away or have no room.
    pub(crate) fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        parcel: Parcel,
    ) -> Result<Asked<T>, Failure> {
        self.asked(self.answer(Method::POST, path, Some(parcel)))
    }

    fn asked<T: DeserializeOwned>(
        &self,
        answer: Result<(StatusCode, Bytes), Failure>,
    ) -> Result<Asked<T>, Failure> {
        match answer {
            Ok((status, body)) if status.is_success() => self.read(status, &body).map(Asked::Found),
            Ok((status, body)) => no_success(status, &body),
            Err(away) if away.code == UNREACHABLE => Ok(Asked::Away(away)),
            Err(failure) => Err(failure),
        }
    }

    /// Whatever the server answers at `path`, as it is.
    pub(crate) fn raw(&self, path: &str) -> Result<(StatusCode, Bytes), Failure> {
        self.answer(Method::GET, path, None)
    }

    /// What the server answers to `method` at `path`, with `body` as JSON if there is one.
    pub(crate) fn send<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&impl Serialize>,
    ) -> Result<T, Failure> {
        let body = body.map(serde_json::to_vec).transpose();
        let body = body.map_err(|error| Failure::wrong(&error))?;
        let parcel = body.map(|body| Parcel::json(body.into()));
        self.told(method, path, parcel)
    }

    /// What the server answers to a POST of `upload`, which is of this kind.
    pub(crate) fn upload<T: DeserializeOwned>(
        &self,
        path: &str,
        kind: String,
        upload: Upload,
    ) -> Result<T, Failure> {
        let parcel = Parcel {
            kind,
            content: Either::Right(upload),
            key: None,
        };
        self.told(Method::POST, path, Some(parcel))
    }

    /// Hands on what the server has at `path`, as it comes and however long it is, until `out` wants
    /// no more. There is a limit to how long nothing comes, and none for the whole. If it goes away
    /// in the middle, something was handed on.
    pub(crate) fn copy(
        &self,
        path: &str,
        mut out: impl FnMut(&[u8]) -> Result<bool, Failure>,
    ) -> Result<Asked<()>, Failure> {
        let copied = async {
            let silent = |_| self.unreachable(&format!("nothing came for {:?}", self.timeout));
            let response = tokio::time::timeout(self.timeout, self.begin(Method::GET, path, None));
            let response = response.await.map_err(silent)??;
            let status = response.status();
            if !status.is_success() {
                let body = self.whole(response.into_body()).await?;
                return no_success(status, &body);
            }
            let mut body = response.into_body();
            while let Some(frame) = tokio::time::timeout(self.timeout, body.frame())
                .await
                .map_err(silent)?
            {
                let frame = frame.map_err(|error| self.unreachable(&with_causes(&error)))?;
                if let Ok(data) = frame.into_data()
                    && !out(&data)?
                {
                    break;
                }
            }
            Ok(Asked::Found(()))
        };
        match self.unless_left(copied) {
            Err(away) if away.code == UNREACHABLE => Ok(Asked::Away(away)),
            copied => copied,
        }
    }

    fn told<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        parcel: Option<Parcel>,
    ) -> Result<T, Failure> {
        let (status, body) = self.answer(method, path, parcel)?;
        self.read(status, &body)
    }

    /// What an answer says, or that it says no.
    pub(crate) fn read<T: DeserializeOwned>(
        &self,
        status: StatusCode,
        body: &[u8],
    ) -> Result<T, Failure> {
        if !status.is_success() {
            return Err(refused(status, body));
        }
        serde_json::from_slice(body)
            .map_err(|error| self.unreachable(&format!("that is no llmq server: {error}")))
    }

    /// What the server answers, whatever that is.
    pub(crate) fn answer(
        &self,
        method: Method,
        path: &str,
        parcel: Option<Parcel>,
    ) -> Result<(StatusCode, Bytes), Failure> {
        self.unless_left(async {
            let asked = tokio::time::timeout(self.timeout, async {
                let response = self.begin(method, path, parcel).await?;
                let status = response.status();
                Ok((status, self.whole(response.into_body()).await?))
            });
            let silent = |_| self.unreachable(&format!("no answer within {:?}", self.timeout));
            asked.await.map_err(silent)?
        })
    }

    fn unless_left<T>(
        &self,
        question: impl Future<Output = Result<T, Failure>>,
    ) -> Result<T, Failure> {
        runtime()?.block_on(async {
            tokio::select! {
                biased;
                () = self.leave.cancelled() => Err(Failure::silent(INTERRUPTED)),
                answer = question => answer,
            }
        })
    }

    /// The beginning of the server's answer.
    async fn begin(
        &self,
        method: Method,
        path: &str,
        parcel: Option<Parcel>,
    ) -> Result<Response<Incoming>, Failure> {
        let root = root(&self.base_url).ok_or_else(|| no_server(self.named_by, &self.base_url))?;
        let uri = format!("{root}{path}");
        let mut request = Request::builder().method(method).uri(uri);
        if let Some(key) = &self.api_key {
            request = request.header("authorization", format!("Bearer {}", key.expose()));
        }
        let mut body = Either::Left(Full::default());
        if let Some(parcel) = parcel {
            request = request.header("content-type", parcel.kind);
            if let Some(key) = parcel.key {
                request = request.header("idempotency-key", key);
            }
            body = parcel.content;
        }
        let request = request
            .body(body)
            .map_err(|error| Failure::usage(format!("{} or the key: {error}", self.named_by)))?;
        let connector = HttpsConnectorBuilder::new()
            .with_native_roots()
            .map_err(|error| Failure::wrong(&error))?
            .https_or_http()
            .enable_http1()
            .build();
        let client = HttpClient::builder(TokioExecutor::new()).build(connector);
        let response = client.request(request).await;
        response.map_err(|error| match error.is_connect() {
            true => self.unreachable(&format!(
                "{}; is `llmq serve` running there? {} names another",
                first_cause(&error),
                self.named_by
            )),
            false => self.unreachable(&with_causes(&error)),
        })
    }

    async fn whole(&self, body: Incoming) -> Result<Bytes, Failure> {
        let body = Limited::new(body, ANSWER_BYTES_MAX).collect().await;
        let body = body.map_err(|error| self.unreachable(&error.to_string()))?;
        Ok(body.to_bytes())
    }

    fn unreachable(&self, why: &str) -> Failure {
        Failure {
            code: UNREACHABLE,
            message: format!("cannot ask {}: {why}", self.base_url),
        }
    }
}

/// What is sent, and of which kind it is.
pub(crate) struct Parcel {
    kind: String,
    /// Something in memory, or a file.
    content: Either<Full<Bytes>, Upload>,
    /// However often it comes, it is meant once.
    key: Option<String>,
}

impl Parcel {
    pub(crate) fn new(kind: impl Into<String>, content: Bytes) -> Self {
        Self {
            kind: kind.into(),
            content: Either::Left(Full::from(content)),
            key: None,
        }
    }

    pub(crate) fn json(content: Bytes) -> Self {
        Self::new("application/json", content)
    }

    /// The same, with an idempotency key.
    pub(crate) fn once(self, key: &str) -> Self {
        Self {
            key: Some(key.to_owned()),
            ..self
        }
    }
}

/// A file as the middle of what is sent, read as it goes.
#[derive(Debug)]
pub(crate) struct Upload {
    before: Bytes,
    file: File,
    /// So much of it is still to be sent.
    left: u64,
    behind: Bytes,
}

impl Upload {
    /// `file` as it is now, between these bytes.
    pub(crate) fn new(before: Bytes, mut file: File, behind: Bytes) -> io::Result<Self> {
        let metadata = file.metadata()?;
        let (mut before, mut left) = (before, metadata.len());
        if !metadata.is_file() {
            // Nobody knows how long a pipe is before all of it came.
            let mut all = before.to_vec();
            file.read_to_end(&mut all)?;
            (before, left) = (all.into(), 0);
        }
        Ok(Self {
            before,
            file,
            left,
            behind,
        })
    }

    fn next(&mut self) -> io::Result<Bytes> {
        /// So much of the file is in memory.
        const PIECE: u64 = 256 << 10;
        if !self.before.is_empty() {
            return Ok(std::mem::take(&mut self.before));
        }
        if self.left == 0 {
            return Ok(std::mem::take(&mut self.behind));
        }
        let length = self.left.min(PIECE);
        let mut piece = vec![0; usize::try_from(length).unwrap_or(usize::MAX)];
        self.file.read_exact(&mut piece)?;
        self.left -= length;
        Ok(piece.into())
    }
}

impl Body for Upload {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        // Nothing else runs in this process: it may wait for its disk here.
        let piece = self.next();
        let is_end = matches!(&piece, Ok(piece) if piece.is_empty());
        Poll::Ready((!is_end).then(|| piece.map(Frame::data)))
    }

    fn size_hint(&self) -> SizeHint {
        let around = self.before.len() + self.behind.len();
        SizeHint::with_exact(self.left + around as u64)
    }
}

fn runtime() -> Result<Runtime, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    runtime.map_err(|error| Failure::wrong(&error))
}

/// A part of a path or a value in a query (RFC 3986, 2.1).
pub(crate) fn escaped(text: &str) -> String {
    text.bytes()
        .map(|byte| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                char::from(byte).to_string()
            }
            other => format!("%{other:02X}"),
        })
        .collect()
}

/// A server's address as people write it, with the path of its API or without: without. None: it
/// is no address of a server.
pub(crate) fn root(url: &str) -> Option<&str> {
    let uri: Uri = url.parse().ok()?;
    let speaks_http = matches!(uri.scheme_str(), Some("http" | "https"));
    let url = url.trim_end_matches('/');
    speaks_http.then(|| url.strip_suffix("/v1").unwrap_or(url))
}

/// What was given is no address of a server.
pub(crate) fn no_server(named_by: &str, url: &str) -> Failure {
    Failure::usage(format!(
        "{named_by}: {url:?} is no address of a server: write it like http://localhost:8080"
    ))
}

/// What the system said, without the layers between.
fn first_cause(error: &dyn Error) -> String {
    let mut first = error;
    while let Some(cause) = first.source() {
        first = cause;
    }
    first.to_string()
}

/// An answer that says no: for now, or for good.
fn no_success<T>(status: StatusCode, body: &[u8]) -> Result<Asked<T>, Failure> {
    let said = refused(status, body);
    match status {
        StatusCode::NOT_FOUND => Ok(Asked::Unknown(said.message)),
        _ if status.is_server_error() => Ok(Asked::Away(said)),
        _ => Err(said),
    }
}

fn refused(status: StatusCode, body: &[u8]) -> Failure {
    // A refused key, or a budget that is spent.
    let by_account = matches!(
        status,
        StatusCode::UNAUTHORIZED | StatusCode::TOO_MANY_REQUESTS
    );
    Failure {
        code: if by_account { ACCOUNT } else { FAILED },
        message: refusal(status, body),
    }
}

fn secret(text: &str) -> Result<Secret, Infallible> {
    Ok(Secret::new(text))
}

/// The server's own words, where it has any.
fn refusal(status: StatusCode, body: &[u8]) -> String {
    match serde_json::from_slice::<ProblemBody>(body) {
        Ok(problem) => problem.message,
        // Where it speaks OpenAI's API, errors have that form.
        Err(_) => serde_json::from_slice::<serde_json::Value>(body)
            .ok()
            .and_then(|body| Some(body.pointer("/error/message")?.as_str()?.to_owned()))
            .unwrap_or_else(|| format!("the server says {status}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_holds_its_value_whole() {
        assert_eq!(escaped("org/gpt 4&x=1"), "org%2Fgpt%204%26x%3D1");
        assert_eq!(escaped("2026-01-31T12:00:00Z"), "2026-01-31T12%3A00%3A00Z");
    }

    #[test]
    fn an_address_is_the_same_with_the_path_of_its_api() {
        for url in [
            "http://h:1",
            "http://h:1/",
            "http://h:1/v1",
            "http://h:1/v1/",
        ] {
            assert_eq!(root(url), Some("http://h:1"), "{url}");
        }
        for url in ["localhost:8080", "nonsense", "ftp://h", "http://", ""] {
            assert_eq!(root(url), None, "{url}");
        }
    }

    #[test]
    fn a_problem_is_told_in_the_servers_words() {
        let body = br#"{"type":"about:blank","title":"Not Found","status":404,"detail":"no such
            call","error":"no such call","code":"call_not_found","message":"no such call",
            "details":null}"#;
        let body = String::from_utf8_lossy(body).replace('\n', " ");
        assert_eq!(
            refusal(StatusCode::NOT_FOUND, body.as_bytes()),
            "no such call"
        );
        assert_eq!(
            refusal(StatusCode::BAD_GATEWAY, b"<html>"),
            "the server says 502 Bad Gateway"
        );
    }
}
