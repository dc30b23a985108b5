//! What any small route answers when it does not do what it was asked.

use utoipa::openapi::path::PathItem;
use utoipa::openapi::schema::{ComponentsBuilder, ObjectBuilder, Type};
use utoipa::openapi::{Content, ContentBuilder, OpenApi, Ref, RefOr, ResponseBuilder};

/// The names of the two kinds among the components.
const PROBLEM: &str = "Problem";
const OPENAI: &str = "OpenAiError";

/// Both kinds: each route refers to its own.
pub(super) fn components(components: ComponentsBuilder) -> ComponentsBuilder {
    let problem = ContentBuilder::new()
        .schema(Some(Ref::from_schema_name("ProblemBody")))
        .build();
    let object = ContentBuilder::new()
        .schema(Some(ObjectBuilder::new().schema_type(Type::Object)))
        .build();
    let answer = |text: &str, kind: &str, content: Content| {
        let answer = ResponseBuilder::new().description(text);
        answer.content(kind, content).build()
    };
    components
        .response(
            PROBLEM,
            answer(
                "A problem, whose `code` is stable: no valid key (401), one that may not do that \
                 (403), what is wrong with the question (400, 404, 405, 409, 413, 415), or why \
                 it cannot be answered now (429, 503).",
                "application/problem+json",
                problem,
            ),
        )
        .response(
            OPENAI,
            answer("An error in OpenAI's form.", "application/json", object),
        )
}

/// Every route that does not say itself what else it answers.
pub(super) fn describe(document: &mut OpenApi) {
    for (path, item) in &mut document.paths.paths {
        let kind = if path.starts_with("/v1/") {
            OPENAI
        } else {
            PROBLEM
        };
        let PathItem {
            get,
            put,
            post,
            delete,
            patch,
            ..
        } = item;
        for operation in [get, put, post, delete, patch].into_iter().flatten() {
            let answers = &mut operation.responses.responses;
            answers
                .entry("default".to_owned())
                .or_insert_with(|| RefOr::Ref(Ref::from_response_name(kind)));
        }
    }
}
