//! Answers drawn by chance, whole and spoilt.

use proptest::prelude::*;
use proptest::sample::Index;

/// An answer as it should be.
#[derive(Debug, Clone)]
pub(crate) struct Drawn {
    pub(crate) bytes: Vec<u8>,
    pub(crate) body: Vec<u8>,
    /// It ends with its connection.
    pub(crate) until_close: bool,
}

/// How the body is framed.
#[derive(Debug, Clone)]
enum Framed {
    Length,
    /// Where the body is cut into chunks, and what stands around them.
    Chunks(Vec<Index>, &'static str, &'static str),
    UntilClose,
}

pub(crate) fn answer() -> impl Strategy<Value = Drawn> {
    let body = proptest::collection::vec(any::<u8>(), 0..200);
    let status = prop_oneof![Just("200 OK"), Just("429 Too Many Requests"), Just("503")];
    let extension = prop_oneof![Just(""), Just(";a=b"), Just(" ")];
    let trailers = prop_oneof![Just(""), Just("x-checksum: 1\r\n")];
    let cuts = proptest::collection::vec(any::<Index>(), 0..5);
    let framed = prop_oneof![
        2 => Just(Framed::Length),
        3 => (cuts, extension, trailers).prop_map(|(cuts, e, t)| Framed::Chunks(cuts, e, t)),
        1 => Just(Framed::UntilClose),
    ];
    let headers = proptest::collection::vec(
        prop_oneof![
            Just("x-ratelimit-remaining-requests: 499\r\n"),
            Just("Date: Sun, 29 Nov 2026 20:00:00 GMT\r\n"),
            Just("server:cloudflare \r\n"),
            Just("set-cookie: a=b; Path=/\r\n"),
            Just("x-empty:\r\n"),
        ],
        0..4,
    );
    (body, status, framed, headers).prop_map(|(body, status, framed, headers)| {
        let mut bytes = format!("HTTP/1.1 {status}\r\n{}", headers.concat()).into_bytes();
        bytes.extend(written(&body, &framed));
        Drawn {
            bytes,
            body,
            until_close: matches!(framed, Framed::UntilClose),
        }
    })
}

fn written(body: &[u8], framed: &Framed) -> Vec<u8> {
    match framed {
        Framed::Length => {
            let head = format!("content-length: {}\r\n\r\n", body.len());
            [head.as_bytes(), body].concat()
        }
        Framed::UntilClose => [b"\r\n", body].concat(),
        Framed::Chunks(cuts, extension, trailers) => {
            let mut written = b"transfer-encoding: chunked\r\n\r\n".to_vec();
            for chunk in pieces(body, cuts) {
                // An empty one would be the last.
                if !chunk.is_empty() {
                    written.extend(format!("{:X}{extension}\r\n", chunk.len()).bytes());
                    written.extend_from_slice(chunk);
                    written.extend_from_slice(b"\r\n");
                }
            }
            written.extend(format!("0{extension}\r\n{trailers}\r\n").bytes());
            written
        }
    }
}

/// An answer, often with one place changed, doubled, or left out.
pub(crate) fn nearly_answer() -> impl Strategy<Value = Vec<u8>> {
    let byte = prop_oneof![
        prop::sample::select(b"\r\n\t ;:,0159afgHT/.".to_vec()),
        any::<u8>()
    ];
    (answer(), any::<Index>(), byte, 0_u8..5).prop_map(|(drawn, at, byte, how)| {
        let mut bytes = drawn.bytes;
        let at = at.index(bytes.len());
        match how {
            0 => bytes[at] = byte,
            1 => bytes.insert(at, byte),
            2 => drop(bytes.remove(at)),
            3 => bytes.truncate(at),
            _ => {}
        }
        bytes
    })
}

/// `bytes` cut at these places.
pub(crate) fn pieces<'a>(bytes: &'a [u8], cuts: &[Index]) -> Vec<&'a [u8]> {
    let mut places: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
    places.sort_unstable();
    let mut pieces = Vec::new();
    let mut from = 0;
    for to in places.into_iter().chain([bytes.len()]) {
        pieces.push(&bytes[from..to]);
        from = to;
    }
    pieces
}
