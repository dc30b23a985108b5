use std::time::Duration;

use http::HeaderMap;

/// Stated times above it are not believed: no call runs that long.
const PROCESSING_MAX: Duration = Duration::from_secs(86_400);

/// How long the provider says it worked on the call (`openai-processing-ms`).
///
/// The call had arrived at least this long before its answer's first byte.
///
/// ```
/// use llmq_provider::processing_time;
/// let mut headers = http::HeaderMap::new();
/// assert_eq!(processing_time(&headers), None);
/// headers.insert("openai-processing-ms", http::HeaderValue::from_static("415"));
/// assert_eq!(processing_time(&headers).unwrap().as_millis(), 415);
/// ```
#[must_use]
pub fn processing_time(headers: &HeaderMap) -> Option<Duration> {
    let millis: u64 = text(headers, "openai-processing-ms")?.trim().parse().ok()?;
    let stated = Duration::from_millis(millis);
    (stated <= PROCESSING_MAX).then_some(stated)
}

/// The provider's own name for the call, to be told to its support: `x-request-id`
/// (OpenAI and most others) or `request-id` (Anthropic).
#[must_use]
pub fn request_id(headers: &HeaderMap) -> Option<&str> {
    text(headers, "x-request-id").or_else(|| text(headers, "request-id"))
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn an_unreadable_time_is_unknown() {
        for value in ["", "soon", "-5", "1.5", "99999999999"] {
            let mut headers = HeaderMap::new();
            headers.insert("openai-processing-ms", HeaderValue::from_static(value));
            assert_eq!(processing_time(&headers), None, "{value}");
        }
    }

    #[test]
    fn both_names_of_the_request_id_are_known() {
        for name in ["x-request-id", "request-id"] {
            let mut headers = HeaderMap::new();
            headers.insert(name, HeaderValue::from_static("req_1"));
            assert_eq!(request_id(&headers), Some("req_1"));
        }
    }
}
