//! `GET /openapi.json`: made from the routes themselves, so that none can be left out.

use std::sync::{Arc, LazyLock};

use axum::response::{IntoResponse, Response};
use http::header::CONTENT_TYPE;
use llmq_provider::Operation;
use utoipa::openapi::path::{HttpMethod, OperationBuilder, PathItem};
use utoipa::openapi::request_body::RequestBodyBuilder;
use utoipa::openapi::security::{Http, HttpAuthScheme, SecurityRequirement, SecurityScheme};
use utoipa::openapi::{
    ComponentsBuilder, ContentBuilder, InfoBuilder, OpenApi, OpenApiBuilder, Required,
    ResponseBuilder,
};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::observed::Observed;
use super::{routes as answers, sse};

type Described = OpenApiRouter<Arc<Observed>>;

/// What anybody may ask.
pub(crate) fn open() -> Described {
    OpenApiRouter::new()
        .routes(routes!(answers::health))
        .routes(routes!(answers::live))
        .routes(routes!(answers::ready))
        .routes(routes!(openapi_json))
}

/// What takes the scope `read`.
pub(crate) fn read() -> Described {
    OpenApiRouter::new()
        .routes(routes!(answers::index))
        .routes(routes!(answers::metrics))
        .routes(routes!(answers::list_queues))
        .routes(routes!(answers::get_queue))
        .routes(routes!(answers::stats))
        .routes(routes!(answers::get_call))
        .routes(routes!(sse::events))
}

/// What takes the scope `manage`.
pub(crate) fn manage() -> Described {
    OpenApiRouter::new()
        .routes(routes!(answers::pause))
        .routes(routes!(answers::resume))
        .routes(routes!(answers::drain))
}

/// This description, OpenAPI 3.1.
#[utoipa::path(
    get,
    path = "/openapi.json",
    tag = "watching",
    responses((status = 200, content_type = "application/json", body = Object)),
)]
pub(crate) async fn openapi_json() -> Response {
    static TEXT: LazyLock<String> = LazyLock::new(|| {
        // A tree of strings and numbers has a JSON form.
        document().to_json().unwrap_or_default()
    });
    ([(CONTENT_TYPE, "application/json")], TEXT.as_str()).into_response()
}

/// Everything the server offers.
pub(crate) fn document() -> OpenApi {
    let described = [open(), read(), manage()]
        .into_iter()
        .fold(OpenApiRouter::with_openapi(about()), OpenApiRouter::merge);
    let mut document = described.into_openapi();
    for operation in Operation::ALL {
        describe_call(&mut document, operation);
    }
    document
}

fn about() -> OpenApi {
    let info = InfoBuilder::new()
        .title("llmq")
        .version(env!("CARGO_PKG_VERSION"))
        .description(Some(
            "A drop-in endpoint for OpenAI's and Anthropic's APIs that waits instead of failing.",
        ));
    let key = SecurityScheme::Http(Http::new(HttpAuthScheme::Bearer));
    let components = ComponentsBuilder::new().security_scheme("key", key);
    OpenApiBuilder::new()
        .info(info)
        .components(Some(components.build()))
        // Where no key exists none is asked for.
        .security(Some([
            SecurityRequirement::new("key", Vec::<String>::new()),
            SecurityRequirement::default(),
        ]))
        .build()
}

/// A route that is a provider's: its JSON is described by the provider.
fn describe_call(document: &mut OpenApi, operation: Operation) {
    let (method, whose) = match operation {
        Operation::Models => (HttpMethod::Get, "OpenAI's"),
        Operation::Messages | Operation::CountTokens => (HttpMethod::Post, "Anthropic's"),
        Operation::ChatCompletions
        | Operation::Responses
        | Operation::Embeddings
        | Operation::Completions => (HttpMethod::Post, "OpenAI's"),
    };
    let path = format!("/v1{}", operation.path());
    let answer = ResponseBuilder::new().description(format!(
        "{whose} answer, or an error in {whose} form; a stream where one was asked for."
    ));
    let mut described = OperationBuilder::new()
        .tag("calls")
        .operation_id(Some(format!("{operation:?}")))
        .summary(Some(format!("{whose} API; fields pass through.")))
        .response("default", answer.build());
    if method == HttpMethod::Post {
        let body = RequestBodyBuilder::new()
            .content("application/json", ContentBuilder::new().build())
            .required(Some(Required::True));
        described = described.request_body(Some(body.build()));
    }
    let item = PathItem::new(method, described.build());
    document.paths.paths.insert(path, item);
}
