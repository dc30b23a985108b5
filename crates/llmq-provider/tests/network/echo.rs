//! hyper's server reads what is sent, and says it again.

use std::convert::Infallible;
use std::future::poll_fn;
use std::pin::Pin;

use http::{Request, Response};
use http_body_util::{BodyExt, Either, Full, combinators::BoxBody};
use hyper::body::{Body, Bytes, Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use llmq_provider::{Dialect, Operation, Provider, ProviderConfig, Request as Call};
use proptest::prelude::*;
use tokio::net::TcpListener;

use crate::server::provider;

/// The body in pieces of this size, each written as a chunk.
struct InChunks(Bytes, usize);

impl Body for InChunks {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let size = self.1.min(self.0.len());
        let piece = self.0.split_to(size);
        std::task::Poll::Ready((!piece.is_empty()).then(|| Ok(Frame::data(piece))))
    }
}

type Echo = Either<Full<Bytes>, BoxBody<Bytes, Infallible>>;

/// Chunks of the size that the caller asks for; 0: a body of stated length.
async fn echo(request: Request<Incoming>) -> Result<Response<Echo>, hyper::Error> {
    let stated = request.headers().get("traceparent");
    let size = stated.and_then(|value| value.to_str().ok()?.parse().ok());
    let body = request.into_body().collect().await?.to_bytes();
    Ok(Response::new(match size.unwrap_or(0) {
        0 => Either::Left(Full::new(body)),
        size => Either::Right(BoxBody::new(InChunks(body, size))),
    }))
}

/// A server on a port of its own, until it is dropped.
async fn serve(listener: TcpListener) {
    let mut guests = tokio::task::JoinSet::new();
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        guests.spawn(async move {
            let service = service_fn(echo);
            let serving = hyper::server::conn::http1::Builder::new();
            // It ends as its guest likes.
            let _ = serving
                .serve_connection(TokioIo::new(stream), service)
                .await;
        });
    }
}

async fn said_again(provider: &Provider, body: &[u8], chunk: usize) -> Bytes {
    let mut call = Call::new(Operation::ChatCompletions, body.to_vec());
    call.headers.insert("traceparent", chunk.into());
    let answer = provider.call(call).await.unwrap();
    answer.collect().await.unwrap().body
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn bodies_of_any_size_pass_both_ways_on_one_connection_after_the_other(
        calls in proptest::collection::vec((0_usize..300_000, 0_usize..100_000), 1..6),
        byte in any::<u8>(),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let url = format!("http://{}/v1", listener.local_addr().unwrap());
            let provider = provider(ProviderConfig::new(Dialect::OpenAi, url));
            let mut serving = std::pin::pin!(serve(listener));
            let calling = async {
                for (size, chunk) in calls {
                    let body: Vec<u8> = (byte..=u8::MAX).cycle().take(size).collect();
                    assert!(said_again(&provider, &body, chunk).await == body, "{size} bytes");
                }
            };
            let mut calling = std::pin::pin!(calling);
            poll_fn(|context| {
                let _ = serving.as_mut().poll(context);
                calling.as_mut().poll(context)
            })
            .await;
        });
    }
}
