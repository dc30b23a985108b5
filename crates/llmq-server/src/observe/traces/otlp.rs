use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http::HeaderMap;
use llmq_core::{Status as JobStatus, Usage, WallTime};
use llmq_provider::Operation;
use llmq_store::Job;
use opentelemetry::propagation::TextMapPropagator;
use opentelemetry::trace::{
    SpanBuilder, SpanKind, Status, TraceContextExt, Tracer, TracerProvider,
};
use opentelemetry::{Context, KeyValue};
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
        let span = SpanBuilder::from_name(format!("{name} {}", begun.model))
            .with_kind(SpanKind::Server)
            .with_start_time(instant(begun.at))
            .with_attributes([
                KeyValue::new("gen_ai.operation.name", name),
                KeyValue::new("gen_ai.request.model", begun.model.to_owned()),
                KeyValue::new("llmq.stream", begun.stream),
            ]);
        let span = self.tracer.build_with_context(span, &parent);
        CallSpan {
            context: parent.with_span(span),
            propagator: self.propagator.clone(),
        }
    }

    /// Tells of an accepted request that has ended.
    pub(crate) fn job(&self, job: &Job) {
        let mut headers = HeaderMap::new();
        if let Some(Ok(parent)) = job.details.traceparent.as_deref().map(str::parse) {
            headers.insert("traceparent", parent);
        }
        let operation = Operation::from_path(&job.details.endpoint);
        let begun = Begun {
            operation: operation.unwrap_or(Operation::ChatCompletions),
            model: &job.queue,
            stream: false,
            at: job.created_at,
        };
        let CallSpan { context, .. } = self.begin(begun, &headers);
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
    /// Names this span in the headers of what is sent for it.
    pub(crate) fn mark(&self, headers: &mut HeaderMap) {
        self.propagator
            .inject_context(&self.context, &mut HeaderInjector(headers));
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
            span.set_attribute(KeyValue::new("llmq.first_token_ms", milliseconds(first)));
        }
        if let Some(upstream) = call.upstream {
            span.set_attribute(KeyValue::new("llmq.upstream", upstream.to_owned()));
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

fn used(context: &Context, usage: &Usage) {
    let count = |tokens| i64::try_from(tokens).unwrap_or(i64::MAX);
    let span = context.span();
    let input = count(usage.input_tokens);
    span.set_attribute(KeyValue::new("gen_ai.usage.input_tokens", input));
    let output = count(usage.output_tokens);
    span.set_attribute(KeyValue::new("gen_ai.usage.output_tokens", output));
}

fn instant(at: WallTime) -> SystemTime {
    let micros = u64::try_from(at.as_micros()).unwrap_or(0);
    UNIX_EPOCH + Duration::from_micros(micros)
}
