//! No page of the web becomes a page of a server that asks for no key.
//!
//! Whoever owns a name can let it lead to 127.0.0.1 after a browser has loaded a page from it
//! (DNS rebinding): to the browser the server is then the page's own. Only the `Host` of its
//! requests still tells.

use std::net::IpAddr;

use http::{HeaderMap, Uri};

/// Whether a request names a server that no stranger can have named: an address, or a name that
/// public DNS does not hold.
pub(crate) fn is_ours(uri: &Uri, headers: &HeaderMap) -> bool {
    let named = uri.authority().map(http::uri::Authority::as_str);
    let stated = headers.get(http::header::HOST);
    let stated = stated.map(|value| value.to_str().unwrap_or("?.?"));
    // Both, where both are there: RFC 9112 §3.2.2 lets the first win, and readers differ.
    [named, stated].into_iter().flatten().all(is_local_name)
}

fn is_local_name(host: &str) -> bool {
    let host = without_port(host).trim_end_matches('.');
    if host.parse::<IpAddr>().is_ok() {
        return true;
    }
    let Some((_, top)) = host.rsplit_once('.') else {
        // `localhost`, or a name of the local network, such as that of a container.
        return true;
    };
    // RFC 6761 §6.3; ICANN resolution 2024.07.29.06 (host.docker.internal and its like).
    ["localhost", "internal"]
        .iter()
        .any(|local| top.eq_ignore_ascii_case(local))
}

/// The host of `host:port` without brackets (RFC 3986 §3.2.2).
fn without_port(host: &str) -> &str {
    if let Some(rest) = host.strip_prefix('[') {
        return rest.split(']').next().unwrap_or(rest);
    }
    match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn check(host: &str, expected: bool) {
        let mut headers = HeaderMap::new();
        headers.insert("host", HeaderValue::from_str(host).unwrap());
        assert_eq!(
            is_ours(&Uri::from_static("/"), &headers),
            expected,
            "{host}"
        );
    }

    #[test]
    fn names_that_anybody_can_own_are_not_ours() {
        for host in [
            "localhost",
            "localhost:8080",
            "app.localhost:8080",
            "127.0.0.1:8080",
            "[::1]:8080",
            "[::1]",
            "192.168.1.7",
            "gateway:8080",
            "host.docker.internal:8080",
            "LOCALHOST.",
        ] {
            check(host, true);
        }
        for host in [
            "evil.example",
            "evil.example:8080",
            "127.0.0.1.evil.example",
            "localhost.evil.example.",
            "printer.local",
            "127.0.0.1:80@evil.example",
        ] {
            check(host, false);
        }
    }

    #[test]
    fn a_request_in_absolute_form_counts_by_both_names() {
        let evil = Uri::from_static("http://evil.example/v1/models");
        assert!(!is_ours(&evil, &HeaderMap::new()));
        let mut headers = HeaderMap::new();
        headers.insert("host", HeaderValue::from_static("localhost"));
        assert!(!is_ours(&evil, &headers));
    }
}
