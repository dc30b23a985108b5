//! hyper's client reads the same bytes.

use http_body_util::{BodyExt, Empty};
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use proptest::prelude::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

use crate::drawn::{answer, nearly_answer};
use crate::read;

/// What hyper's client makes of a connection that says `bytes` and ends: status, headers, body.
async fn by_hyper(bytes: &[u8]) -> Option<(u16, http::HeaderMap, Vec<u8>)> {
    let (ours, theirs) = tokio::io::duplex(64 << 10);
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(ours))
        .await
        .ok()?;
    let request = http::Request::post("/").body(Empty::<Bytes>::new()).ok()?;
    let call = async move {
        let answer = sender.send_request(request).await.ok()?;
        let (parts, body) = answer.into_parts();
        let body = body.collect().await.ok()?.to_bytes().to_vec();
        Some((parts.status.as_u16(), parts.headers, body))
    };
    let (answer, _, ()) = tokio::join!(call, connection, say(theirs, bytes));
    answer
}

async fn say(mut stream: DuplexStream, bytes: &[u8]) {
    let mut asked = Vec::new();
    while !asked.ends_with(b"\r\n\r\n") {
        if stream
            .read_buf(&mut asked)
            .await
            .is_ok_and(|read| read == 0)
        {
            return;
        }
    }
    // It may have heard enough.
    let _ = stream.write_all(bytes).await;
}

fn hyper_reads(bytes: &[u8]) -> Option<(u16, http::HeaderMap, Vec<u8>)> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    runtime.block_on(by_hyper(bytes))
}

fn ours(bytes: &[u8]) -> Option<(u16, http::HeaderMap, Vec<u8>)> {
    let (head, body, _) = read(&[bytes]).ok()?;
    Some((head.status.as_u16(), head.headers, body))
}

proptest! {
    #[test]
    fn what_is_proper_is_read_as_hyper_reads_it(drawn in answer()) {
        let read = ours(&drawn.bytes);
        prop_assert!(read.is_some());
        prop_assert_eq!(read, hyper_reads(&drawn.bytes));
    }

    #[test]
    fn what_is_taken_for_an_answer_is_the_same_to_hyper(bytes in nearly_answer()) {
        if let Some(read) = ours(&bytes) {
            prop_assert_eq!(Some(read), hyper_reads(&bytes));
        }
    }
}
