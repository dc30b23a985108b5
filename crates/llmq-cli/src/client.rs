//! Asking a running server.

use std::convert::Infallible;
use std::time::Duration;

use clap::Args;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::{Method, Request, StatusCode, Uri};
use hyper_rustls::HttpsConnectorBuilder;
use hyper_util::client::legacy::Client as HttpClient;
use hyper_util::rt::TokioExecutor;
use llmq_api::ProblemBody;
use llmq_provider::Secret;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::exit::{ACCOUNT, FAILED, Failure, UNREACHABLE, with_causes};
use crate::mock::time;

/// A longer answer is refused rather than held in memory.
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
}

impl ServerArgs {
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
        let body = body.map(|body| ("application/json".to_owned(), body));
        self.told(method, path, body)
    }

    /// What the server answers to a POST of `body`, which is of this kind.
    pub(crate) fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        kind: String,
        body: Vec<u8>,
    ) -> Result<T, Failure> {
        self.told(Method::POST, path, Some((kind, body)))
    }

    /// What the server answers at `path`; its words where there is no such thing (404).
    pub(crate) fn find<T: DeserializeOwned>(
        &self,
        path: &str,
    ) -> Result<Result<T, String>, Failure> {
        let (status, body) = self.raw(path)?;
        if status == StatusCode::NOT_FOUND {
            return Ok(Err(refusal(status, &body)));
        }
        self.read(status, &body).map(Ok)
    }

    fn told<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<(String, Vec<u8>)>,
    ) -> Result<T, Failure> {
        let (status, body) = self.answer(method, path, body)?;
        self.read(status, &body)
    }

    fn read<T: DeserializeOwned>(&self, status: StatusCode, body: &[u8]) -> Result<T, Failure> {
        if !status.is_success() {
            let refused_key = status == StatusCode::UNAUTHORIZED;
            return Err(Failure {
                code: if refused_key { ACCOUNT } else { FAILED },
                message: refusal(status, body),
            });
        }
        serde_json::from_slice(body)
            .map_err(|error| self.unreachable(&format!("that is no llmq server: {error}")))
    }

    fn answer(
        &self,
        method: Method,
        path: &str,
        body: Option<(String, Vec<u8>)>,
    ) -> Result<(StatusCode, Bytes), Failure> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| Failure::wrong(&error))?;
        let asked =
            async { tokio::time::timeout(self.timeout, self.ask(method, path, body)).await };
        runtime
            .block_on(asked)
            .map_err(|_| self.unreachable(&format!("no answer within {:?}", self.timeout)))?
    }

    async fn ask(
        &self,
        method: Method,
        path: &str,
        body: Option<(String, Vec<u8>)>,
    ) -> Result<(StatusCode, Bytes), Failure> {
        let uri: Uri = format!("{}{path}", self.base_url.trim_end_matches('/'))
            .parse()
            .map_err(|error| Failure::usage(format!("--base-url {}: {error}", self.base_url)))?;
        let mut request = Request::builder().method(method).uri(uri);
        if let Some(key) = &self.api_key {
            request = request.header("authorization", format!("Bearer {}", key.expose()));
        }
        let body = body.map_or_else(Vec::new, |(kind, body)| {
            if let Some(headers) = request.headers_mut()
                && let Ok(kind) = kind.try_into()
            {
                headers.insert("content-type", kind);
            }
            body
        });
        let request = request
            .body(Full::<Bytes>::from(body))
            .map_err(|error| Failure::usage(format!("--base-url or --api-key: {error}")))?;
        let connector = HttpsConnectorBuilder::new()
            .with_native_roots()
            .map_err(|error| Failure::wrong(&error))?
            .https_or_http()
            .enable_http1()
            .build();
        let client = HttpClient::builder(TokioExecutor::new()).build(connector);
        let response = client
            .request(request)
            .await
            .map_err(|error| self.unreachable(&with_causes(&error)))?;
        let status = response.status();
        let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX)
            .collect()
            .await
            .map_err(|error| self.unreachable(&error.to_string()))?;
        Ok((status, body.to_bytes()))
    }

    fn unreachable(&self, why: &str) -> Failure {
        Failure {
            code: UNREACHABLE,
            message: format!("cannot ask {}: {why}", self.base_url),
        }
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
