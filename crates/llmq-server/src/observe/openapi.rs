//! `GET /openapi.json`: made from the routes themselves, so that none can be left out.

use std::sync::{Arc, LazyLock};

use axum::response::{IntoResponse, Response};
use http::header::CONTENT_TYPE;
use llmq_provider::Operation;
use utoipa::openapi::path::{
    HttpMethod, OperationBuilder, ParameterBuilder, ParameterIn, PathItem,
};
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
use crate::keys;

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
    responses((status = 200, description = "The description.", content_type = "application/json", body = Object)),
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
    document.merge(keys::described().into_openapi());
    document.merge(crate::jobs::routes().into_openapi());
    document.merge(crate::openai::routes().into_openapi());
    for operation in Operation::ALL {
        describe_call(&mut document, operation);
    }
    describe_model(&mut document);
    for (method, below, name) in [
        (HttpMethod::Get, "", "get_response"),
        (HttpMethod::Delete, "", "delete_response"),
        (HttpMethod::Get, "/input_items", "list_input_items"),
        (HttpMethod::Post, "/cancel", "cancel_response"),
    ] {
        describe_response(&mut document, method, below, name);
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

/// One model, as either API shows it.
fn describe_model(document: &mut OpenApi) {
    let name = ParameterBuilder::new()
        .name("model")
        .parameter_in(ParameterIn::Path)
        .required(Required::True)
        .description(Some("The public model name."));
    let answer = |text: &str| ResponseBuilder::new().description(text).build();
    let described = OperationBuilder::new()
        .tag("calls")
        .operation_id(Some("Model"))
        .summary(Some(
            "One model; Anthropic's form with the header `anthropic-version`.",
        ))
        .parameter(name.build())
        .response("200", answer("The model."))
        .response("404", answer("There is none; the known ones are listed."));
    let item = PathItem::new(HttpMethod::Get, described.build());
    let path = "/v1/models/{model}".to_owned();
    document.paths.paths.insert(path, item);
}

/// A response that was made in the background, or that a provider keeps.
fn describe_response(document: &mut OpenApi, method: HttpMethod, below: &str, name: &str) {
    let answer = ResponseBuilder::new().description(
        "What OpenAI's API answers, such as the response object as it stands, a stream of it with \
         `?stream=true`, or an error in OpenAI's form.",
    );
    let id = ParameterBuilder::new()
        .name("id")
        .parameter_in(ParameterIn::Path)
        .required(Required::True)
        .description(Some("Its `id`."));
    let described = OperationBuilder::new()
        .tag("calls")
        .operation_id(Some(name))
        .summary(Some(
            "OpenAI's API, for a response made with `background: true` (get, cancel) and for one \
             that the caller's provider keeps.",
        ))
        .parameter(id.build())
        .response("default", answer.build());
    let path = format!("/v1/responses/{{id}}{below}");
    let paths = &mut document.paths;
    paths.add_path_operation(path, vec![method], described.build());
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::Value;

    use super::*;

    fn json() -> Value {
        serde_json::to_value(document()).unwrap()
    }

    /// Every value under a key, wherever it stands.
    fn all<'a>(value: &'a Value, key: &str, found: &mut Vec<&'a Value>) {
        match value {
            Value::Object(object) => {
                found.extend(object.get(key));
                object.values().for_each(|value| all(value, key, found));
            }
            Value::Array(array) => array.iter().for_each(|value| all(value, key, found)),
            _ => {}
        }
    }

    #[test]
    fn it_is_of_version_3_1_and_has_what_that_demands() {
        let json = json();
        assert!(
            json["openapi"].as_str().unwrap().starts_with("3.1."),
            "{json}"
        );
        let info = json["info"].as_object().unwrap();
        assert!(info["title"].is_string() && info["version"].is_string());
        let mut responses = Vec::new();
        all(&json["paths"], "responses", &mut responses);
        assert_eq!(responses.len(), 18 + 17 + 13 + Operation::ALL.len() + 1);
        for response in responses.iter().flat_map(|all| all.as_object().unwrap()) {
            assert!(response.1["description"].is_string(), "{response:?}");
        }
    }

    #[test]
    fn every_reference_leads_somewhere() {
        let json = json();
        let mut references = Vec::new();
        all(&json, "$ref", &mut references);
        assert!(!references.is_empty());
        for reference in references {
            let pointer = reference.as_str().unwrap().strip_prefix('#').unwrap();
            assert!(json.pointer(pointer).is_some(), "{reference}");
        }
    }

    #[test]
    fn operations_have_names_of_their_own_and_parameters_for_their_paths() {
        let json = json();
        let mut names = BTreeSet::new();
        for (path, item) in json["paths"].as_object().unwrap() {
            for operation in item.as_object().unwrap().values() {
                let name = operation["operationId"].as_str().unwrap();
                assert!(names.insert(name), "{name} twice");
                let parameters = operation["parameters"].as_array().into_iter().flatten();
                let in_path = parameters.filter(|parameter| parameter["in"] == "path");
                assert_eq!(in_path.count(), path.matches('{').count(), "{path}");
            }
        }
    }

    #[test]
    fn every_path_of_the_small_routes_is_one_that_is_served() {
        let json = json();
        for path in json["paths"].as_object().unwrap().keys() {
            let call = Operation::from_path(path).is_some()
                || path.starts_with("/v1/models/")
                || path.starts_with("/v1/responses/");
            assert!(call || crate::pages::has(path), "{path}");
        }
        for path in [
            "/api/keys",
            "/api/keys/{id}",
            "/v1/models/{model}",
            "/api/events",
        ] {
            assert!(json["paths"].get(path).is_some(), "{path}");
        }
    }
}
