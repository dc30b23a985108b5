use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http::HeaderMap;
use llmq_core::{Host, Status as JobStatus, Usage, WallTime};
use llmq_provider::{AnswerFacts, Dialect, Operation, Provider};
use llmq_store::Job;
use opentelemetry::propagation::TextMapPropagator;
use opentelemetry::trace::{
    SpanBuilder, SpanKind, Status, TraceContextExt, Tracer, TracerProvider,
};
use opentelemetry::{Array, Context, KeyValue, StringValue, Value};
use opentelemetry_http::{HeaderExtractor, HeaderInjector};
use opentelemetry_otlp::{ExporterBuildError, SpanExporter, WithHttpConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{SdkTracer, SdkTracerProvider};

use super::Begun;
use super::post::Post;
use crate::observe::CallRecord;
use crate::observe::metrics::operation_name;
use crate::observe::record::ErrorType;

/// What is still to be sent when a gateway stops has so long.
const CLOSED_WITHIN: Duration = Duration::from_secs(5);

/// Where spans go: a collector that speaks OTLP over HTTP.
///
/// One span a call, from its arrival to the last byte of its answer, and one an accepted request,
/// from its acceptance to its end, each below the span that its caller names in `traceparent`;
/// a provider is told of ours. Names and attributes are those of OpenTelemetry's conventions for
/// generative AI (opentelemetry.io, "Generative AI spans", 2026), and `llmq.*`. No prompt and no
/// answer is in a span. Spans wait in a bounded queue and are let go when the collector does not
/// take them in time.
#[derive(Debug)]
pub struct Traces {
    provider: SdkTracerProvider,
    tracer: SdkTracer,
    propagator: TraceContextPropagator,
}

/// No spans can be sent.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TracesError {
    /// An address or header in the environment cannot be used.
    #[error("the variables OTEL_EXPORTER_OTLP_* cannot be used")]
    Exporter(#[from] ExporterBuildError),
    /// The certificate authorities of the system cannot be read.
    #[error("no certificate authorities found: install ca-certificates or set SSL_CERT_FILE")]
    Roots(#[source] std::io::Error),
}

/// The span of a call under way.
#[derive(Debug)]
pub(crate) struct CallSpan {
    context: Context,
    propagator: TraceContextPropagator,
    /// How many answers it asks for.
    choices: u32,
    /// Who was asked last.
    provider: Option<Provider>,
    answer: Option<AnswerFacts>,
}

impl Traces {
    /// Sends spans where OpenTelemetry's own variables say (`OTEL_EXPORTER_OTLP_ENDPOINT` and its
    /// kin; `OTEL_SERVICE_NAME`, `OTEL_TRACES_SAMPLER`), over the runtime that this is called in.
    ///
    /// # Errors
    ///
    /// [`TracesError`].
    ///
    /// # Panics
    ///
    /// Outside of a Tokio runtime.
    pub fn open() -> Result<Self, TracesError> {
        let post = Post::new(tokio::runtime::Handle::current()).map_err(TracesError::Roots)?;
        let exporter = SpanExporter::builder()
            .with_http()
            .with_http_client(post)
            .build()?;
        let mut resource = Resource::builder();
        if std::env::var_os("OTEL_SERVICE_NAME").is_none() {
            resource = resource.with_service_name("llmq");
        }
        let provider = SdkTracerProvider::builder()
            .with_batch_exporter(exporter)
            .with_resource(resource.build())
            .build();
        Ok(Self {
            tracer: provider.tracer("llmq"),
            provider,
            propagator: TraceContextPropagator::new(),
        })
    }

    /// Begins the span of a call, below the one that its caller names.
    pub(crate) fn begin(&self, begun: Begun<'_>, headers: &HeaderMap) -> CallSpan {
        let parent = self
            .propagator
            .extract_with_context(&Context::new(), &HeaderExtractor(headers));
        let name = operation_name(begun.operation);
        let mut attributes = vec![
            KeyValue::new("gen_ai.operation.name", name),
            KeyValue::new("gen_ai.request.model", begun.model.to_owned()),
        ];
        if begun.stream {
            attributes.push(KeyValue::new("gen_ai.request.stream", true));
        }
        if let Some(most) = begun.size.max_output_tokens {
            attributes.push(KeyValue::new("gen_ai.request.max_tokens", i64::from(most)));
        }
        let choices = begun.size.choices.max(1);
        if choices > 1 {
            let count = i64::from(choices);
            attributes.push(KeyValue::new("gen_ai.request.choice.count", count));
        }
        let span = SpanBuilder::from_name(format!("{name} {}", begun.model))
            .with_kind(SpanKind::Server)
            .with_start_time(instant(begun.at))
            .with_attributes(attributes);
        let span = self.tracer.build_with_context(span, &parent);
        CallSpan {
            context: parent.with_span(span),
            propagator: self.propagator.clone(),
            choices,
            provider: None,
            answer: None,
        }
    }

    /// Tells of an accepted request that has ended, with who was asked last, whether for a stream,
    /// and what the answer says of itself.
    pub(crate) fn job(
        &self,
        job: &Job,
        provider: Option<Provider>,
        stream: bool,
        answer: Option<&AnswerFacts>,
    ) {
        let mut headers = HeaderMap::new();
        if let Some(Ok(parent)) = job.details.traceparent.as_deref().map(str::parse) {
            headers.insert("traceparent", parent);
        }
        let operation = Operation::from_path(&job.details.endpoint);
        let begun = Begun {
            operation: operation.unwrap_or(Operation::ChatCompletions),
            model: &job.queue,
            size: job.size,
            stream,
            at: job.created_at,
        };
        let CallSpan {
            context, choices, ..
        } = self.begin(begun, &headers);
        let span = context.span();
        span.set_attribute(KeyValue::new("llmq.queue_id", job.id.to_string()));
        span.set_attribute(KeyValue::new("llmq.tenant", job.tenant.clone()));
        span.set_attribute(KeyValue::new(
            "llmq.priority",
            i64::from(job.priority.value()),
        ));
        span.set_attribute(KeyValue::new("llmq.attempts", i64::from(job.attempts)));
        if let Some(upstream) = &job.upstream {
            span.set_attribute(KeyValue::new("llmq.upstream", upstream.clone()));
        }
        if let Some(provider) = &provider {
            asked(&context, provider);
        }
        if let Some(answer) = answer {
            answered(&context, answer.clone(), choices);
        }
        if let Some(usage) = &job.usage {
            used(&context, usage);
        }
        if job.status != JobStatus::Completed {
            let code = job.error.as_ref().map(|error| error.code.clone());
            let code = code.unwrap_or_else(|| job.status.to_string());
            span.set_attribute(KeyValue::new("error.type", code.clone()));
            span.set_status(Status::error(code));
        }
        span.end_with_timestamp(instant(job.finished_at.unwrap_or(job.created_at)));
    }

    /// Sends what has not been sent. Blocks for five seconds at most.
    pub fn close(&self) {
        if let Err(error) = self.provider.shutdown_with_timeout(CLOSED_WITHIN) {
            tracing::warn!(%error, "the last spans were not sent");
        }
    }
}

impl CallSpan {
    /// A provider is asked: this span is named in the headers of what is sent to it.
    pub(crate) fn asks(&mut self, provider: &Provider, headers: &mut HeaderMap) {
        self.provider = Some(provider.clone());
        self.propagator
            .inject_context(&self.context, &mut HeaderInjector(headers));
    }

    /// The provider has answered, and says this of its answer.
    pub(crate) fn answered(&mut self, answer: AnswerFacts) {
        self.answer = Some(answer);
    }

    pub(crate) fn end(self, call: &CallRecord<'_>, at: WallTime) {
        let span = self.context.span();
        let milliseconds = |span: Duration| span.as_secs_f64() * 1e3;
        span.set_attribute(KeyValue::new(
            "http.response.status_code",
            i64::from(call.status),
        ));
        span.set_attribute(KeyValue::new("llmq.request_id", call.id.to_string()));
        span.set_attribute(KeyValue::new("llmq.tenant", call.tenant.to_owned()));
        span.set_attribute(KeyValue::new(
            "llmq.priority",
            i64::from(call.priority.value()),
        ));
        span.set_attribute(KeyValue::new("llmq.attempts", i64::from(call.attempts)));
        span.set_attribute(KeyValue::new("llmq.queued_ms", milliseconds(call.queued)));
        if let Some(first) = call.first_token {
            let first = first.as_secs_f64();
            span.set_attribute(KeyValue::new("gen_ai.response.time_to_first_chunk", first));
        }
        if let Some(upstream) = call.upstream {
            span.set_attribute(KeyValue::new("llmq.upstream", upstream.to_owned()));
        }
        if let Some(provider) = &self.provider {
            asked(&self.context, provider);
        }
        if let Some(answer) = self.answer {
            answered(&self.context, answer, self.choices);
        }
        if let Some(usage) = &call.usage {
            used(&self.context, usage);
        }
        let error = ErrorType::of(call).as_str();
        if !error.is_empty() {
            span.set_attribute(KeyValue::new("error.type", error));
            span.set_status(Status::error(error));
        }
        span.end_with_timestamp(instant(at));
    }
}

/// Who was asked.
fn asked(context: &Context, provider: &Provider) {
    let span = context.span();
    span.set_attribute(KeyValue::new("gen_ai.provider.name", name_of(provider)));
    let server = provider.server();
    if let Some(host) = server.host() {
        span.set_attribute(KeyValue::new("server.address", host.to_owned()));
        let is_https = server.scheme_str() == Some("https");
        let port = server.port_u16().unwrap_or(if is_https { 443 } else { 80 });
        span.set_attribute(KeyValue::new("server.port", i64::from(port)));
    }
}

/// A provider as the conventions name it, where they do. One that nobody knows has the name of
/// those whose API it speaks.
fn name_of(provider: &Provider) -> &'static str {
    match provider.host() {
        Host::OpenAi => "openai",
        Host::Anthropic => "anthropic",
        Host::Azure => "azure.ai.openai",
        Host::Groq => "groq",
        Host::Mistral => "mistral_ai",
        Host::Gemini => "gcp.gemini",
        Host::OpenRouter => "openrouter",
        Host::Cerebras => "cerebras",
        Host::DeepSeek => "deepseek",
        _ => match provider.dialect() {
            Dialect::OpenAi => "openai",
            Dialect::Anthropic => "anthropic",
        },
    }
}

/// What an answer says of itself. Of several only the first one's reason to end is known, which
/// would be told as if it were all of them.
fn answered(context: &Context, answer: AnswerFacts, choices: u32) {
    let span = context.span();
    let texts = [
        ("gen_ai.response.id", answer.id),
        ("gen_ai.response.model", answer.model),
    ];
    for (name, text) in texts {
        if let Some(text) = text {
            span.set_attribute(KeyValue::new(name, text));
        }
    }
    if let Some(reason) = answer.finish_reason.filter(|_| choices == 1) {
        let reasons = Array::String(vec![StringValue::from(reason)]);
        let reasons = Value::Array(reasons);
        span.set_attribute(KeyValue::new("gen_ai.response.finish_reasons", reasons));
    }
}

fn used(context: &Context, usage: &Usage) {
    let span = context.span();
    let counts = [
        ("gen_ai.usage.input_tokens", Some(usage.input_tokens)),
        ("gen_ai.usage.output_tokens", Some(usage.output_tokens)),
        (
            "gen_ai.usage.cache_read.input_tokens",
            cached(usage.cache_read_tokens),
        ),
        (
            "gen_ai.usage.cache_creation.input_tokens",
            cached(usage.cache_write_tokens),
        ),
    ];
    for (name, tokens) in counts {
        if let Some(tokens) = tokens {
            let tokens = i64::try_from(tokens).unwrap_or(i64::MAX);
            span.set_attribute(KeyValue::new(name, tokens));
        }
    }
}

/// Most providers do not say that nothing was.
fn cached(tokens: u64) -> Option<u64> {
    (tokens > 0).then_some(tokens)
}

fn instant(at: WallTime) -> SystemTime {
    let micros = u64::try_from(at.as_micros()).unwrap_or(0);
    UNIX_EPOCH + Duration::from_micros(micros)
}
