//! A line of a batch's output: what became of a row.

use std::borrow::Cow;

use hyper::body::Bytes;
use hyper::{HeaderMap, StatusCode};
use llmq_core::{FailureClass, Now};
use llmq_engine::bulk::HandedIn;
use llmq_provider::{AnswerFacts, Refused, Source, Times, Verdict, WholeAnswer, check_answer};
use serde::Deserialize;
use serde_json::value::RawValue;

/// A line of a batch's output (OpenAI's API reference, "The request output object", 2026).
#[derive(Deserialize)]
pub(super) struct Line<'a> {
    #[serde(borrow)]
    pub(super) custom_id: Cow<'a, str>,
    #[serde(borrow)]
    pub(super) response: Option<Response<'a>>,
    pub(super) error: Option<Said>,
}

/// What a provider answered.
#[derive(Deserialize)]
pub(super) struct Response<'a> {
    status_code: u16,
    pub(super) request_id: Option<String>,
    #[serde(borrow)]
    body: &'a RawValue,
}

/// Why there is no answer, in the server's words.
#[derive(Deserialize, Default)]
#[serde(default)]
pub(super) struct Said {
    pub(super) code: String,
    pub(super) message: String,
}

/// An answer, and what it is worth.
pub(super) struct Judged {
    pub(super) answer: WholeAnswer,
    pub(super) verdict: Result<AnswerFacts, Box<Verdict>>,
}

impl Response<'_> {
    /// Judges it as if the provider had just given it. `None`: its status is none.
    pub(super) fn judged(&self, source: Source, now: Now) -> Option<Judged> {
        let raw = self.body.get();
        // What was no JSON stands there as a text.
        let text = serde_json::from_str::<String>(raw);
        let body = text.map_or_else(|_| Bytes::copy_from_slice(raw.as_bytes()), Bytes::from);
        let answer = WholeAnswer {
            status: StatusCode::from_u16(self.status_code).ok()?,
            headers: HeaderMap::new(),
            body,
            times: Times {
                sent: now.mono,
                head: now.mono,
            },
        };
        Some(Judged {
            verdict: check_answer(source, &answer, now),
            answer,
        })
    }
}

/// Whether a failure is the account's and not the row's: it is then for the next run, as it is
/// without a batch. `has_answers`: other rows of the batch were answered.
pub(super) fn is_the_accounts(verdict: &Verdict, part: &HandedIn, has_answers: bool) -> bool {
    let is_closed = matches!(verdict.class, FailureClass::NoAccess | FailureClass::Money);
    is_closed
        && match verdict.refused {
            Some(Refused::Model) => !part.names_model,
            Some(Refused::Unclear) => !has_answers,
            Some(Refused::Key) | None => true,
        }
}

#[cfg(test)]
mod tests {
    use llmq_core::Host;
    use llmq_provider::Dialect;

    use super::*;

    fn judged(status: u16, body: &str) -> Judged {
        let line = format!(
            r#"{{"custom_id":"1 a","response":{{"status_code":{status},"request_id":"r","body":{body}}},"error":null}}"#
        );
        let line: Line<'_> = serde_json::from_str(&line).unwrap();
        let source = Source {
            host: Host::OpenAi,
            dialect: Dialect::OpenAi,
        };
        line.response
            .unwrap()
            .judged(source, Now::default())
            .unwrap()
    }

    fn part(names_model: bool) -> HandedIn {
        HandedIn {
            file: "file-1".into(),
            batch: None,
            endpoint: "/v1/chat/completions".into(),
            model: "m".into(),
            first: 1,
            last: 1,
            rows: 1,
            names_model,
        }
    }

    fn is_accounts(status: u16, body: &str, names_model: bool, has_answers: bool) -> bool {
        let verdict = judged(status, body).verdict.unwrap_err();
        is_the_accounts(&verdict, &part(names_model), has_answers)
    }

    /// Some servers send the names of both APIs: such a body was taken for one without usage.
    #[test]
    fn usage_is_read_as_it_is_of_a_call() {
        let both = r#"{"usage":{"prompt_tokens":3,"input_tokens":3,"completion_tokens":4}}"#;
        let usage = judged(200, both).verdict.unwrap().usage.unwrap();
        assert_eq!((usage.input_tokens, usage.output_tokens), (3, 4));
        assert_eq!(judged(200, "{}").verdict.unwrap().usage, None);
    }

    #[test]
    fn a_failure_has_the_words_that_it_has_of_a_call() {
        let text = judged(400, r#"{"error":"no such parameter"}"#);
        assert_eq!(text.verdict.unwrap_err().message, "no such parameter");
        let page = judged(502, r#""<html>bad gateway</html>""#);
        assert_eq!(&page.answer.body[..], b"<html>bad gateway</html>");
        assert!(page.verdict.is_err());
        let dressed = r#"{"error":{"code":502,"message":"upstream"}}"#;
        assert!(judged(200, dressed).verdict.is_err(), "no answer");
    }

    #[test]
    fn what_the_account_refuses_is_no_rows_fault() {
        let key = r#"{"error":{"message":"bad key","code":"invalid_api_key"}}"#;
        assert!(is_accounts(401, key, true, true));
        let money = r#"{"error":{"message":"pay","code":"insufficient_quota"}}"#;
        assert!(is_accounts(429, money, true, true));
        let model = r#"{"error":{"message":"no such model","code":"model_not_found"}}"#;
        assert!(is_accounts(404, model, false, true));
        assert!(!is_accounts(404, model, true, false), "a row's own model");
        let page = r#""<html>forbidden</html>""#;
        assert!(is_accounts(403, page, false, false));
        assert!(!is_accounts(403, page, false, true), "others get through");
        assert!(!is_accounts(400, "{}", false, false));
    }
}
