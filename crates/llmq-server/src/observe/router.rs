use std::sync::Arc;

use axum::Router;

use super::observed::Observed;
use super::openapi;

/// The routes that show a gateway, by who may use them.
#[derive(Debug)]
pub struct Routes {
    /// For everybody: health, and the description of the API.
    pub open: Router,
    /// For keys with the scope `read`: figures, queues, events, the page.
    pub read: Router,
    /// For keys with the scope `read` or `call`: the calls of their tenant that wait.
    pub look: Router,
    /// For keys with the scope `manage`: what changes queues.
    pub manage: Router,
}

/// The routes that show a gateway, by who may use them.
#[must_use]
pub fn routes(observed: &Arc<Observed>) -> Routes {
    let with_state = |described: utoipa_axum::router::OpenApiRouter<Arc<Observed>>| {
        let (router, _) = described.split_for_parts();
        router.with_state(Arc::clone(observed))
    };
    Routes {
        open: with_state(openapi::open()),
        read: with_state(openapi::read()),
        look: with_state(openapi::look()),
        manage: with_state(openapi::manage()),
    }
}

/// All of them together, for those who need no key.
#[cfg(test)]
pub(crate) fn router(observed: &Arc<Observed>) -> Router {
    let routes = routes(observed);
    let seen = routes.open.merge(routes.read).merge(routes.look);
    seen.merge(routes.manage)
}
