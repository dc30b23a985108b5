//! The routes that are a provider's: their JSON is described by the provider, what llmq adds is
//! here.

use llmq_provider::Operation;
use utoipa::openapi::header::{Header, HeaderBuilder};
use utoipa::openapi::path::{
    HttpMethod, OperationBuilder, Parameter, ParameterBuilder, ParameterIn, PathItem,
};
use utoipa::openapi::request_body::RequestBodyBuilder;
use utoipa::openapi::schema::{ComponentsBuilder, ObjectBuilder, Type};
use utoipa::openapi::{ContentBuilder, OpenApi, Ref, Required, ResponseBuilder};

/// What a call may say to the gateway.
const ASKS: [(&str, &str); 9] = [
    (
        "X-LLMQ-Max-Wait",
        "How long it may wait to be sent, such as `2m`: at most 24h, `0s` not at all; \
         `server.max_wait` unless said.",
    ),
    (
        "X-LLMQ-Priority",
        "`low`, `normal`, `high` (unless said), `critical`, or 0 to 100; higher goes first.",
    ),
    (
        "X-LLMQ-Tenant",
        "Who it is charged to, where the key may call for another than its own.",
    ),
    (
        "X-LLMQ-Early-Headers",
        "A stream begins with comment lines after so long without its answer, such as `15s`.",
    ),
    (
        "X-LLMQ-TTL",
        "The time in which it must start once it is accepted (202), such as `20m`; \
         `store.request_ttl` unless said.",
    ),
    (
        "X-LLMQ-Metadata-*",
        "Notes of one's own for a call that is accepted (202), each under a name of its own behind \
         the last dash.",
    ),
    (
        "Prefer",
        "`respond-async`: accept it and answer 202 at once, or, with `wait=30`, when it could not \
         be sent in so many seconds (RFC 7240); a stream is answered as one all the same. \
         `wait=30` alone is a wait of so long.",
    ),
    (
        "Idempotency-Key",
        "The same key and body get the same bytes for 24 h, streams included; with another body \
         409. Such a call goes on when its caller leaves.",
    ),
    (
        "traceparent",
        "The trace that it belongs to (W3C Trace Context); it is passed on.",
    ),
];

/// What an answer to a call says of its way through the gateway.
const TELLS: [(&str, &str); 5] = [
    (
        "X-LLMQ-Request-Id",
        "Its number: in the log of calls, `GET /api/calls/{id}` and, if it was accepted, \
         `GET /api/requests/{id}`.",
    ),
    (
        "X-LLMQ-Queued-Ms",
        "Milliseconds in line, over all attempts.",
    ),
    (
        "X-LLMQ-Wait",
        "What it waited for last, and how long that was expected to take; absent when it did not \
         wait.",
    ),
    ("X-LLMQ-Attempts", "How often it was sent."),
    ("X-LLMQ-Upstream", "Who was asked last."),
];

/// What it says that a call was accepted instead.
const ACCEPTED: [(&str, &str); 2] = [
    ("Location", "Where to ask for it: `/api/requests/{id}`."),
    (
        "Preference-Applied",
        "`respond-async`, where that was asked for (RFC 7240).",
    ),
];

/// What a refusal says beside.
const REFUSALS: [(&str, &str); 2] = [
    (
        "Retry-After",
        "When another try makes sense, in seconds (RFC 9110, 10.2.3), where one does.",
    ),
    (
        "x-should-retry",
        "Whether an SDK should try again by itself: `true` or `false`.",
    ),
];

/// The parameters and headers of calls, by name: each call refers to them.
pub(super) fn components(mut components: ComponentsBuilder) -> ComponentsBuilder {
    for (name, text) in ASKS {
        components = components.parameter(key(name), parameter(name, ParameterIn::Header, text));
    }
    for (name, text) in TELLS.into_iter().chain(ACCEPTED).chain(REFUSALS) {
        components = components.header(name, header(text));
    }
    components
}

/// Under which name a component stands, which may hold letters, digits, `.`, `-` and `_` (OpenAPI
/// 3.1, "Components Object").
fn key(name: &str) -> &str {
    name.trim_end_matches("-*")
}

/// All of a provider's routes.
pub(super) fn describe(document: &mut OpenApi) {
    for operation in Operation::ALL {
        describe_call(document, operation);
    }
    describe_model(document);
    for (method, below, name) in [
        (HttpMethod::Get, "", "get_response"),
        (HttpMethod::Delete, "", "delete_response"),
        (HttpMethod::Get, "/input_items", "list_input_items"),
        (HttpMethod::Post, "/cancel", "cancel_response"),
    ] {
        describe_response(document, method, below, name);
    }
}

fn describe_call(document: &mut OpenApi, operation: Operation) {
    let whose = match operation {
        Operation::Messages | Operation::CountTokens => "Anthropic's",
        Operation::ChatCompletions
        | Operation::Responses
        | Operation::Embeddings
        | Operation::Completions
        | Operation::Models => "OpenAI's",
    };
    let path = format!("/v1{}", operation.path());
    let described = OperationBuilder::new()
        .tag("calls")
        .operation_id(Some(format!("{operation:?}")))
        .summary(Some(format!("{whose} API; fields pass through.")));
    let (method, described) = match operation {
        Operation::Models => {
            let answer = format!("{whose} answer, or an error in {whose} form.");
            let answer = ResponseBuilder::new().description(answer).build();
            (HttpMethod::Get, described.response("default", answer))
        }
        _ => (HttpMethod::Post, posted(described, whose)),
    };
    let item = PathItem::new(method, described.build());
    document.paths.paths.insert(path, item);
}

/// A call: what it says to the gateway, and what the gateway says to it.
fn posted(mut described: OperationBuilder, whose: &str) -> OperationBuilder {
    let body = RequestBodyBuilder::new()
        .content("application/json", ContentBuilder::new().build())
        .required(Some(Required::True));
    described = described.request_body(Some(body.build()));
    for (name, _) in ASKS {
        let path = format!("#/components/parameters/{}", key(name));
        described = described.parameter_ref(Ref::new(path));
    }
    let told = |mut answer: ResponseBuilder, headers: &[(&str, &str)]| {
        for (name, _) in headers {
            answer = answer.header_ref(*name, Ref::new(format!("#/components/headers/{name}")));
        }
        answer
    };
    let answer = |text: &str| ResponseBuilder::new().description(text);
    let says = |text: &str| told(answer(text), &TELLS);
    let refuses = |text: &str| told(says(text), &REFUSALS);
    let accepted = ContentBuilder::new()
        .schema(Some(Ref::from_schema_name("RequestState")))
        .build();
    // It was not sent yet: its number is all that can be told of its way.
    let accepts = |text: &str| told(told(answer(text), &TELLS[..1]), &ACCEPTED);
    let whole = format!("{whose} answer, byte for byte; a stream where one was asked for.");
    described
        .response("200", says(&whole).build())
        .response(
            "202",
            accepts(
                "It is on disk and finished later: asked for by `Prefer: respond-async`, or since \
                 nobody can serve it now (`on_unavailable = \"queue\"`).",
            )
            .content("application/json", accepted)
            .build(),
        )
        .response("401", says("No valid key: `unauthenticated`.").build())
        .response(
            "429",
            refuses(
                "No room in its time (`rate_limited`), or in its key's budget \
                 (`budget_exhausted`); or the provider's own words.",
            )
            .build(),
        )
        .response(
            "503",
            refuses(
                "Every upstream is down (`upstream_unavailable`), the queue is full \
                 (`queue_full`), takes no more (`draining`) or was paused by a person (`paused`), \
                 or the store cannot record (`store_unavailable`).",
            )
            .build(),
        )
        .response(
            "default",
            says(&format!("An error in {whose} form.")).build(),
        )
}

/// One model, as either API shows it.
fn describe_model(document: &mut OpenApi) {
    let name = parameter("model", ParameterIn::Path, "The public model name.");
    let answer = |text: &str| ResponseBuilder::new().description(text).build();
    let described = OperationBuilder::new()
        .tag("calls")
        .operation_id(Some("Model"))
        .summary(Some(
            "One model; Anthropic's form with the header `anthropic-version`.",
        ))
        .parameter(name)
        .response("200", answer("The model."))
        .response(
            "404",
            answer("There is none; those that the key may use are listed."),
        )
        .response("default", answer("An error in either API's form."));
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
    let described = OperationBuilder::new()
        .tag("calls")
        .operation_id(Some(name))
        .summary(Some(
            "OpenAI's API, for a response made with `background: true` (get, cancel) and for one \
             that the caller's provider keeps.",
        ))
        .parameter(parameter("id", ParameterIn::Path, "Its `id`."))
        .response("default", answer.build());
    let path = format!("/v1/responses/{{id}}{below}");
    let paths = &mut document.paths;
    paths.add_path_operation(path, vec![method], described.build());
}

fn parameter(name: &str, place: ParameterIn, text: &str) -> Parameter {
    let required = match place {
        ParameterIn::Path => Required::True,
        _ => Required::False,
    };
    ParameterBuilder::new()
        .name(name)
        .parameter_in(place)
        .required(required)
        .schema(Some(a_text()))
        .description(Some(text))
        .build()
}

fn header(text: &str) -> Header {
    HeaderBuilder::new()
        .schema(Some(a_text()))
        .description(Some(text))
        .build()
}

fn a_text() -> ObjectBuilder {
    ObjectBuilder::new().schema_type(Type::String)
}
