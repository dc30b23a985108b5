//! The reader of HTTP/1.1 answers.
//!
//! An input is the method that was asked with, on a line, and the bytes of the connection, which
//! ends with them.

use http::Method;
use llmq_provider::{AnswerHead, AnswerReader, WireFault};

use crate::first_line;
use crate::pieces::cuts;

/// What was made of a connection's bytes.
#[derive(Debug, Default, PartialEq)]
struct Read {
    head: Option<AnswerHead>,
    body: Vec<u8>,
    /// It came to its end before the connection did.
    ended: bool,
    leaves_connection: bool,
    /// Why there was no answer, or not all of one; what exactly was wrong may depend on the cuts.
    fault: Option<Fault>,
}

#[derive(Debug, PartialEq)]
enum Fault {
    CutOff,
    NotHttp,
}

/// Any bytes give the same answer however they are cut, with a body no larger than they are; one
/// whose end was there is the same whatever follows; and one that had not ended when the
/// connection did is a fault, unless that was to be its end.
pub fn check(data: &[u8]) {
    let (method, bytes) = first_line(data);
    let method = Method::from_bytes(method.as_bytes()).unwrap_or(Method::POST);
    let whole = read(&method, &[bytes]);
    for pieces in cuts(bytes) {
        assert_eq!(read(&method, &pieces), whole);
    }
    assert!(whole.body.len() <= bytes.len());
    assert!(!whole.leaves_connection || whole.ended);
    if let Some(head) = &whole.head {
        assert!(!head.status.is_informational());
        assert!(!(has(head, "content-length") && has(head, "transfer-encoding")));
        let stated = has(head, "content-length") || has(head, "transfer-encoding");
        assert!(!stated || whole.ended || whole.fault.is_some());
    }
    if whole.ended {
        let more = read(&method, &[bytes, b"HTTP/1.1 200 OK\r\n\r\n"]);
        assert_eq!((&more.head, &more.body), (&whole.head, &whole.body));
        assert!(more.ended && !more.leaves_connection);
    }
}

fn has(head: &AnswerHead, name: &str) -> bool {
    head.headers.contains_key(name)
}

fn read(method: &Method, pieces: &[&[u8]]) -> Read {
    let mut reader = AnswerReader::new(method);
    let mut read = Read::default();
    for piece in pieces {
        match reader.push(&mut piece.to_vec()) {
            Ok(came) => {
                assert!(came.head.is_none() || read.head.is_none(), "two heads");
                read.head = read.head.or(came.head);
                read.body.extend_from_slice(&came.body);
            }
            Err(fault) => return failed(read, &fault),
        }
    }
    read.ended = reader.is_ended();
    read.leaves_connection = reader.leaves_connection();
    match reader.close() {
        Ok(()) => read,
        Err(fault) => failed(read, &fault),
    }
}

/// What had come before a fault depends on the cuts.
fn failed(read: Read, fault: &WireFault) -> Read {
    let fault = match fault {
        WireFault::CutOff => Fault::CutOff,
        _ => Fault::NotHttp,
    };
    match fault {
        Fault::CutOff => Read {
            fault: Some(fault),
            ..read
        },
        Fault::NotHttp => Read {
            fault: Some(fault),
            ..Read::default()
        },
    }
}
