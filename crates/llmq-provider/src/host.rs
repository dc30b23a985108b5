use std::net::IpAddr;

use http::Uri;
use llmq_core::Host;

/// Who runs the server at `base_url`, judged by its host name alone.
///
/// A URL that names nobody known, or that is none, is [`Host::Unknown`].
///
/// ```
/// use llmq_core::Host;
/// use llmq_provider::host_of;
/// assert_eq!(host_of("https://api.groq.com/openai/v1"), Host::Groq);
/// assert_eq!(host_of("http://localhost:8000/v1"), Host::Unknown);
/// ```
#[must_use]
pub fn host_of(base_url: &str) -> Host {
    let Ok(uri) = base_url.trim().parse::<Uri>() else {
        return Host::Unknown;
    };
    uri.host().map_or(Host::Unknown, by_name)
}

/// Whether a server is on this machine or in a private network, by the name in its base URL.
///
/// ```
/// use llmq_provider::is_own_server;
/// assert!(is_own_server("http://vllm:8000/v1"));
/// assert!(!is_own_server("https://api.openai.com/v1"));
/// ```
#[must_use]
pub fn is_own_server(base_url: &str) -> bool {
    let rest = base_url
        .split_once("://")
        .map_or(base_url, |(_, rest)| rest);
    let authority = rest.split(['/', '?']).next().unwrap_or_default();
    let host = match authority.strip_prefix('[') {
        Some(v6) => v6.split(']').next().unwrap_or_default(),
        None => authority.split(':').next().unwrap_or_default(),
    };
    match host.parse::<IpAddr>() {
        Ok(IpAddr::V4(ip)) => ip.is_loopback() || ip.is_private() || ip.is_link_local(),
        Ok(IpAddr::V6(ip)) => ip.is_loopback() || ip.is_unique_local(),
        Err(_) => !host.contains('.') || host.ends_with(".local") || host.ends_with(".internal"),
    }
}

/// Suffixes match whole labels, so that `api.openai.com.example.org` is nobody known.
fn by_name(name: &str) -> Host {
    let name = name.trim_end_matches('.').to_ascii_lowercase();
    let under = |domain: &str| {
        name.strip_suffix(domain)
            .is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
    };
    // Regional names such as eu.api.openai.com count like the main one.
    if under("api.openai.com") {
        Host::OpenAi
    } else if under("api.anthropic.com") {
        Host::Anthropic
    } else if [
        "openai.azure.com",
        "services.ai.azure.com",
        "cognitiveservices.azure.com",
    ]
    .into_iter()
    .any(under)
    {
        Host::Azure
    } else if under("api.groq.com") {
        Host::Groq
    } else if under("api.mistral.ai") {
        Host::Mistral
    } else if under("generativelanguage.googleapis.com") {
        Host::Gemini
    } else if under("openrouter.ai") {
        Host::OpenRouter
    } else if under("api.cerebras.ai") {
        Host::Cerebras
    } else if under("api.deepseek.com") {
        Host::DeepSeek
    } else {
        Host::Unknown
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_known_by_whole_labels_of_their_name() {
        let table = [
            ("https://api.openai.com/v1", Host::OpenAi),
            ("https://eu.api.openai.com/v1", Host::OpenAi),
            ("https://API.OpenAI.com:443/v1/", Host::OpenAi),
            ("https://api.anthropic.com", Host::Anthropic),
            ("https://res.openai.azure.com/openai/v1", Host::Azure),
            ("https://res.services.ai.azure.com/openai/v1", Host::Azure),
            ("https://api.groq.com/openai/v1", Host::Groq),
            ("https://api.mistral.ai/v1", Host::Mistral),
            (
                "https://generativelanguage.googleapis.com/v1beta/openai/",
                Host::Gemini,
            ),
            ("https://openrouter.ai/api/v1", Host::OpenRouter),
            ("https://api.cerebras.ai/v1", Host::Cerebras),
            ("https://api.deepseek.com", Host::DeepSeek),
            ("https://api.openai.com.example.org/v1", Host::Unknown),
            ("https://notapi.openai.com/v1", Host::Unknown),
            ("https://my-openrouter.ai/v1", Host::Unknown),
            ("http://127.0.0.1:8099/v1", Host::Unknown),
            ("api.openai.com", Host::OpenAi),
            ("", Host::Unknown),
            ("not a url", Host::Unknown),
        ];
        for (url, host) in table {
            assert_eq!(host_of(url), host, "{url}");
        }
    }

    #[test]
    fn servers_of_ones_own_are_known() {
        for url in [
            "http://localhost:8000/v1",
            "http://127.0.0.1/v1",
            "http://[::1]:1",
            "http://10.1.2.3",
            "http://gpu.local:1",
            "http://vllm:8000/v1",
        ] {
            assert!(is_own_server(url), "{url}");
        }
        for url in [
            "https://api.openai.com/v1",
            "https://8.8.8.8/v1",
            "https://x.example",
        ] {
            assert!(!is_own_server(url), "{url}");
        }
    }
}
