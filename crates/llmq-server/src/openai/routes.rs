//! The routes of files and batches.

use std::sync::Arc;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::{batches, files};
use crate::Gateway;
use crate::jobs::Routes;

/// All of them, with their description.
pub(crate) fn routes() -> Routes {
    let files = OpenApiRouter::new()
        .routes(routes!(files::list, files::create))
        .routes(routes!(files::show, files::delete))
        .routes(routes!(files::content))
        // A file is bounded as it comes (`server.max_file`).
        .layer(DefaultBodyLimit::disable());
    OpenApiRouter::new()
        .merge(files)
        .routes(routes!(batches::list, batches::create))
        .routes(routes!(batches::show))
        .routes(routes!(batches::cancel))
}

impl Gateway {
    /// The routes, for a router.
    pub(crate) fn openai_routes(self: &Arc<Self>) -> Router {
        let (router, _) = routes().split_for_parts();
        router.with_state(Arc::clone(self))
    }
}
