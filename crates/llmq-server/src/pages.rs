//! The small routes beside the calls: what can be seen of the gateway, and who may call.

use std::sync::Arc;

use axum::Router;
use axum::extract::{Request, State};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use http::StatusCode;

use crate::keys::{KeyRing, KeyScope, Look, Manage, Need as _};
use crate::{Gateway, Problem, keys, observe};

/// Whether a path is one of theirs.
pub(crate) fn has(path: &str) -> bool {
    matches!(path, "/" | "/metrics" | "/openapi.json" | "/health")
        || path.starts_with("/health/")
        || path.starts_with("/api/")
        || path.starts_with("/v1/files")
        || path.starts_with("/v1/batches")
}

/// All of them, each for those who may use it.
pub(crate) fn router(gateway: &Arc<Gateway>) -> Router {
    let observe::Routes {
        open,
        read,
        look,
        manage,
    } = observe::routes(&gateway.observed);
    open.merge(guarded(read, &gateway.keys, &[KeyScope::Read]))
        .merge(guarded(look, &gateway.keys, Look::SCOPES))
        .merge(guarded(
            recorded(manage, gateway),
            &gateway.keys,
            Manage::SCOPES,
        ))
        .merge(keys::router(Arc::clone(&gateway.keys)))
        .merge(gateway.job_routes())
        .merge(gateway.openai_routes())
        .method_not_allowed_fallback(other_method)
        .fallback(nothing_here)
}

/// For callers with one of these scopes.
fn guarded(router: Router, ring: &Arc<KeyRing>, scopes: &'static [KeyScope]) -> Router {
    router.route_layer(from_fn_with_state((Arc::clone(ring), scopes), guard))
}

/// What was decided about a queue is in the store before that is answered.
fn recorded(router: Router, gateway: &Arc<Gateway>) -> Router {
    router.route_layer(from_fn_with_state(Arc::clone(gateway), record))
}

async fn record(State(gateway): State<Arc<Gateway>>, request: Request, next: Next) -> Response {
    let response = next.run(request).await;
    match gateway.desk.runner.queues_changed().await {
        Ok(()) => response,
        Err(error) => Problem::unavailable("store_unavailable", error.to_string()).into_response(),
    }
}

async fn guard(
    State((ring, scopes)): State<(Arc<KeyRing>, &'static [KeyScope])>,
    mut request: Request,
    next: Next,
) -> Response {
    match keys::caller(&ring, request.headers(), scopes) {
        Ok(caller) => {
            // What goes on for long asks again whether its caller may.
            request.extensions_mut().insert(Arc::clone(&ring));
            request.extensions_mut().insert(caller);
            next.run(request).await
        }
        Err(denied) => Problem::from(denied).into_response(),
    }
}

async fn other_method(request: Request) -> Response {
    let (method, path) = (request.method(), request.uri().path());
    let message = format!("{path} does not take {method}; GET /openapi.json lists what there is");
    Problem::new(
        StatusCode::METHOD_NOT_ALLOWED,
        "method_not_allowed",
        message,
    )
    .into_response()
}

async fn nothing_here(request: Request) -> Response {
    let shown: String = request.uri().path().chars().take(200).collect();
    let message = format!("there is nothing at {shown}; GET /openapi.json lists what there is");
    Problem::new(StatusCode::NOT_FOUND, "not_found", message).into_response()
}
