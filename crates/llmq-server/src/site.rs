//! No page of another site spends the money of a server that its reader's browser can reach.

use http::header::{HOST, HeaderMap, ORIGIN};
use http::{Method, Uri};

/// Whether a browser sent a request for a page of another site, and the request changes
/// something.
///
/// A page may send a POST with a plain body to any server, without asking first ("CORS-safelisted",
/// the Fetch standard, section 2.2); only the answer is kept from it. Browsers say who made a
/// request: in `Sec-Fetch-Site` (Fetch Metadata, section 2), older ones in `Origin` alone (RFC
/// 6454, section 7). Programs send neither.
pub(crate) fn is_another(method: &Method, uri: &Uri, headers: &HeaderMap) -> bool {
    if method.is_safe() {
        return false;
    }
    if let Some(site) = headers.get("sec-fetch-site") {
        return site != "same-origin" && site != "none";
    }
    let Some(origin) = headers.get(ORIGIN) else {
        return false;
    };
    let named = uri
        .authority()
        .map(|authority| authority.as_str().as_bytes());
    let host = named.or_else(|| headers.get(HOST).map(|host| host.as_bytes()));
    let of_page = origin.as_bytes();
    let of_page = [b"http://".as_slice(), b"https://"]
        .into_iter()
        .find_map(|scheme| of_page.strip_prefix(scheme));
    // `null` is a page that does not say where it is from.
    of_page.is_none() || of_page != host
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[track_caller]
    fn check(method: &Method, headers: &[(&'static str, &'static str)], expected: bool) {
        let mut map = HeaderMap::new();
        map.insert(HOST, HeaderValue::from_static("localhost:8080"));
        for (name, value) in headers {
            map.insert(*name, HeaderValue::from_static(value));
        }
        let is = is_another(method, &Uri::from_static("/v1/messages"), &map);
        assert_eq!(is, expected, "{headers:?}");
    }

    #[test]
    fn a_browser_says_whose_page_it_was_and_a_program_says_nothing() {
        let post = &Method::POST;
        check(post, &[], false);
        check(post, &[("sec-fetch-site", "none")], false);
        check(post, &[("sec-fetch-site", "same-origin")], false);
        check(post, &[("sec-fetch-site", "same-site")], true);
        check(post, &[("sec-fetch-site", "cross-site")], true);
        check(post, &[("origin", "http://localhost:8080")], false);
        check(post, &[("origin", "https://localhost:8080")], false);
        check(post, &[("origin", "http://localhost")], true);
        check(post, &[("origin", "null")], true);
        check(post, &[("origin", "localhost:8080")], true);
        // Behind a proxy the two differ, and the browser knows better.
        let proxied = [("sec-fetch-site", "same-origin"), ("origin", "http://a:1")];
        check(post, &proxied, false);
        check(&Method::DELETE, &[("origin", "http://evil.example")], true);
        check(&Method::GET, &[("sec-fetch-site", "cross-site")], false);
    }
}
