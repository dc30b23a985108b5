use hyper::HeaderMap;
use hyper::header::{HeaderName, HeaderValue};
use llmq_engine::config::ProviderKind;
use llmq_provider::Timeouts;

use super::args::ProviderArgs;
use super::choose::{Chosen, ChosenUpstream, Key, at};
use crate::client::{no_server, root};
use crate::exit::Failure;
use crate::limits::LimitArgs;

/// `--server`: every call goes through an llmq server. It keeps the limits, for all its callers;
/// those that are given here are kept as well.
pub(crate) fn through(
    server: &str,
    args: &ProviderArgs,
    limits: &LimitArgs,
    model: Option<&str>,
) -> Result<Chosen, Failure> {
    let provider = args.provider.map_or(ProviderKind::OpenAi, Into::into);
    if provider == ProviderKind::Mock {
        return Err(Failure::usage(
            "--server: the server says who answers; --provider openai or anthropic says whose \
             API the calls are made in",
        ));
    }
    let root = root(server).ok_or_else(|| no_server("--server", server))?;
    let settings = at(provider, format!("{root}/v1"), args.timeout);
    let host = settings.host();
    let chosen = ChosenUpstream {
        name: match model {
            Some(model) => format!("llmq/{model}"),
            None => "llmq".to_owned(),
        },
        key: Key::IfSet("LLMQ_API_KEY"),
        model: None,
        weight: 1.0,
        limits: limits.specs(host),
        shared: Vec::new(),
        headers: headers(&settings.timeouts),
        // They are the server's to keep: it is not the only one who uses the account.
        learn: false,
        settings,
    };
    Ok(Chosen {
        dialect: provider.dialect(),
        upstreams: vec![chosen],
        price: args.price,
    })
}

/// A file gives way to people who wait, and half of a call's time may pass in the server's line.
fn headers(timeouts: &Timeouts) -> HeaderMap {
    let wait = format!("{}ms", timeouts.total.as_millis() / 2);
    let mut headers = HeaderMap::new();
    let low = HeaderValue::from_static("low");
    headers.insert(HeaderName::from_static("x-llmq-priority"), low);
    if let Ok(wait) = HeaderValue::from_str(&wait) {
        headers.insert(HeaderName::from_static("x-llmq-max-wait"), wait);
    }
    headers
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::args::ProviderArg;
    use super::*;

    #[test]
    fn a_server_is_called_at_low_priority_and_keeps_the_limits_itself() {
        let args = ProviderArgs {
            timeout: Some(Duration::from_secs(60)),
            ..ProviderArgs::default()
        };
        for url in ["http://h:1", "http://h:1/", "http://h:1/v1"] {
            let chosen = through(url, &args, &LimitArgs::default(), Some("m")).unwrap();
            let upstream = &chosen.upstreams[0];
            assert_eq!(upstream.settings.base_url, "http://h:1/v1");
            assert_eq!(upstream.headers["x-llmq-priority"], "low");
            assert_eq!(upstream.headers["x-llmq-max-wait"], "30000ms");
            assert!(!upstream.learn && upstream.limits.is_empty());
        }
    }

    #[test]
    fn what_is_no_address_is_told_by_the_flag_that_was_given() {
        let args = ProviderArgs::default();
        let refused = through("nonsense", &args, &LimitArgs::default(), Some("m"));
        let message = refused.unwrap_err().message;
        assert!(message.contains("--server: \"nonsense\""), "{message}");
        assert!(message.contains("http://localhost:8080"), "{message}");
    }

    #[test]
    fn a_stand_in_inside_is_no_server() {
        let args = ProviderArgs {
            provider: Some(ProviderArg::Mock),
            ..ProviderArgs::default()
        };
        assert!(through("http://h", &args, &LimitArgs::default(), None).is_err());
    }
}
