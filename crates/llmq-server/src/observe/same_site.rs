//! No page of another site steers a server that its reader's browser can reach.

use axum::extract::Request;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use crate::problem::Problem;

/// Refuses what a browser sends for another site. Programs send no such header.
///
/// Browsers say on every request who made it (Fetch Metadata, `Sec-Fetch-Site`); a POST without
/// a body needs no permission across origins, and a server on a loopback address may ask for no
/// key.
pub(crate) async fn guard(request: Request, next: Next) -> Response {
    let site = request.headers().get("sec-fetch-site");
    let ours = site.is_none_or(|site| site == "same-origin" || site == "none");
    if !ours {
        return Problem::forbidden("pages of other sites may not change this server")
            .into_response();
    }
    next.run(request).await
}
