//! `GET /openapi.json`: made from the routes themselves, so that none can be left out.

mod calls;
mod errors;

use std::sync::{Arc, LazyLock};

use axum::response::{IntoResponse, Response};
use http::header::CONTENT_TYPE;
use utoipa::openapi::security::{Http, HttpAuthScheme, SecurityRequirement, SecurityScheme};
use utoipa::openapi::{ComponentsBuilder, InfoBuilder, OpenApi, OpenApiBuilder};
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
        .routes(routes!(sse::events))
}

/// What takes the scope `read` or `call`.
pub(crate) fn look() -> Described {
    OpenApiRouter::new()
        .routes(routes!(answers::list_calls))
        .routes(routes!(answers::get_call))
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
    let described = [open(), read(), look(), manage()]
        .into_iter()
        .fold(OpenApiRouter::with_openapi(about()), OpenApiRouter::merge);
    let mut document = described.into_openapi();
    document.merge(keys::described().into_openapi());
    document.merge(crate::jobs::routes().into_openapi());
    document.merge(crate::openai::routes().into_openapi());
    calls::describe(&mut document);
    errors::describe(&mut document);
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
    let components = calls::components(ComponentsBuilder::new().security_scheme("key", key));
    let components = errors::components(components);
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use llmq_provider::Operation;
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
        for response in responses.iter().flat_map(|all| all.as_object().unwrap()) {
            let is_told = response.1["description"].is_string() || response.1["$ref"].is_string();
            assert!(is_told, "{response:?}");
        }
    }

    /// What a client is made of: a status that is not described cannot be read.
    #[test]
    fn every_operation_says_what_else_it_may_answer() {
        let json = json();
        for (path, item) in json["paths"].as_object().unwrap() {
            for (method, operation) in item.as_object().unwrap() {
                let answers = &operation["responses"];
                assert!(answers.get("default").is_some(), "{method} {path}");
            }
        }
    }

    #[test]
    fn one_request_and_many_have_a_form_each_on_their_way_in_and_out() {
        let create = &json()["paths"]["/api/requests"]["post"];
        let forms = |place: &Value| {
            let mut found = Vec::new();
            all(place, "$ref", &mut found);
            let names = found.iter().map(|found| found.as_str().unwrap());
            let names = names.map(|name| name.rsplit('/').next().unwrap().to_owned());
            names.collect::<Vec<_>>()
        };
        assert_eq!(forms(&create["requestBody"]), ["HandedIn"]);
        assert_eq!(forms(&create["responses"]["202"]), ["Accepted"]);
        let json = json();
        let of = |name: &str| forms(&json["components"]["schemas"][name]);
        assert_eq!(of("HandedIn"), ["CreateRequest", "CreateRequests"]);
        assert_eq!(of("Accepted"), ["RequestState", "AcceptedRequests"]);
    }

    /// A change of the public face is seen where it is reviewed.
    #[test]
    fn it_is_as_it_was() {
        let text = document().to_pretty_json().unwrap();
        let version = format!("\"version\": \"{}\"", env!("CARGO_PKG_VERSION"));
        insta::assert_snapshot!(text.replacen(&version, "\"version\": \"…\"", 1));
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
