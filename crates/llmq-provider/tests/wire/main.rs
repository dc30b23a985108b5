//! The reader of HTTP/1.1 answers: the same however bytes are cut, never taken in by half an
//! answer, and never more lenient than hyper's client.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

mod drawn;
mod oracle;

use http::Method;
use llmq_provider::{AnswerHead, AnswerReader, WireFault};
use proptest::prelude::*;

use drawn::{answer, nearly_answer, pieces};

/// What a reader made of a connection: the head, the body, and whether another call may follow.
type Read = Result<(AnswerHead, Vec<u8>, bool), WireFault>;

fn read(pieces: &[&[u8]]) -> Read {
    let mut reader = AnswerReader::new(&Method::POST);
    let (mut head, mut body) = (None, Vec::new());
    for piece in pieces {
        let came = reader.push(&mut piece.to_vec())?;
        head = head.or(came.head);
        body.extend_from_slice(&came.body);
    }
    let leaves_connection = reader.leaves_connection();
    reader.close()?;
    Ok((
        head.expect("what has ended has begun"),
        body,
        leaves_connection,
    ))
}

proptest! {
    #[test]
    fn an_answer_is_the_same_however_it_is_cut(
        bytes in nearly_answer(),
        cuts in proptest::collection::vec(any::<prop::sample::Index>(), 0..12),
    ) {
        let whole = read(&[&bytes]);
        let single: Vec<&[u8]> = bytes.chunks(1).collect();
        for pieces in [pieces(&bytes, &cuts), single] {
            let cut = read(&pieces);
            // In which words a fault is told may depend on how much of it was there.
            prop_assert_eq!(cut.is_err(), whole.is_err());
            if let (Ok(cut), Ok(whole)) = (cut, &whole) {
                prop_assert_eq!(&cut, whole);
            }
        }
    }

    #[test]
    fn an_answer_cut_short_anywhere_is_a_fault(drawn in answer()) {
        prop_assume!(!drawn.until_close);
        prop_assert_eq!(read(&[&drawn.bytes]).unwrap().1, drawn.body);
        for end in 0..drawn.bytes.len() {
            prop_assert_eq!(read(&[&drawn.bytes[..end]]), Err(WireFault::CutOff), "{} bytes", end);
        }
    }

    #[test]
    fn what_follows_an_answer_closes_its_connection(drawn in answer(), more in 1_usize..4) {
        prop_assume!(!drawn.until_close);
        let (head, body, leaves) = read(&[&drawn.bytes]).unwrap();
        prop_assert!(leaves);
        for pieces in [
            vec![[&drawn.bytes[..], &b"HTT"[..more]].concat()],
            vec![drawn.bytes.clone(), b"HTT"[..more].to_vec()],
        ] {
            let pieces: Vec<&[u8]> = pieces.iter().map(Vec::as_slice).collect();
            prop_assert_eq!(read(&pieces).unwrap(), (head.clone(), body.clone(), false));
        }
    }
}

#[test]
fn answers_that_are_not_the_last_word_are_passed_over() {
    let early = "HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n";
    let answer = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
    let bytes = [early, answer].concat().into_bytes();
    for at in 0..bytes.len() {
        let (head, body, leaves) = read(&[&bytes[..at], &bytes[at..]]).unwrap();
        assert_eq!((head.status.as_u16(), head.headers.len()), (200, 1));
        assert!(body == b"ok" && leaves);
    }
    assert_eq!(read(&[early.as_bytes()]), Err(WireFault::CutOff));
}

#[test]
fn chunks_that_come_together_are_one_piece() {
    let mut reader = AnswerReader::new(&Method::POST);
    let head = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";
    reader.push(&mut head.to_vec()).unwrap();
    let came = reader
        .push(&mut b"1\r\na\r\n2\r\nbc\r\n1\r\nd".to_vec())
        .unwrap();
    assert_eq!(came.body, "abcd");
}
