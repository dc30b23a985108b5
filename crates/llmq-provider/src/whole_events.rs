use bytes::{Bytes, BytesMut};
use memchr::memchr;

use crate::EVENT_BYTES_MAX;
use crate::event_ends::{EventEnds, pass_some};

/// Passes on a stream event by event, so that it can be broken off where an event may follow.
///
/// The bytes are not changed. What came together goes on together, and a piece that ends with an
/// event, as nearly all do, is neither copied nor read. An event of more than
/// [`EVENT_BYTES_MAX`](crate::EVENT_BYTES_MAX) is not held until it is whole.
///
/// ```
/// use bytes::Bytes;
/// use llmq_provider::WholeEvents;
/// let mut events = WholeEvents::default();
/// let mut passed = Vec::new();
/// events.push(Bytes::from("data: {}\n\ndata: {\"cho"), |bytes| passed.push(bytes));
/// assert_eq!(passed, ["data: {}\n\n"]);
/// ```
#[derive(Debug, Default)]
pub struct WholeEvents {
    /// An event that is not whole yet.
    held: BytesMut,
    ends: EventEnds,
}

impl WholeEvents {
    /// Takes the next bytes, cut anywhere, and passes on what is whole.
    pub fn push(&mut self, mut piece: Bytes, mut pass: impl FnMut(Bytes)) {
        if piece.ends_with(b"\n\n") {
            self.ends = EventEnds::default();
            self.finish(&mut pass);
            return pass(piece);
        }
        let mut end = None;
        while let Some(next) = self.ends.next(&piece, end.unwrap_or(0)) {
            end = Some(next);
        }
        if let Some(end) = end {
            self.finish(&mut pass);
            pass_some(piece.split_to(end), &mut pass);
        }
        self.held.extend_from_slice(&piece);
        let comments = comments(&self.held);
        pass_some(self.held.split_to(comments).freeze(), &mut pass);
        if self.held.len() > EVENT_BYTES_MAX {
            self.finish(&mut pass);
        }
    }

    /// Takes the end of the stream: an event that lacks its blank line passes as it is.
    pub fn finish(&mut self, mut pass: impl FnMut(Bytes)) {
        pass_some(std::mem::take(&mut self.held).freeze(), &mut pass);
    }
}

/// How many bytes are comments before an event: a sign of life is not kept from the caller.
fn comments(bytes: &[u8]) -> usize {
    let mut end = 0;
    while bytes[end..].starts_with(b":") {
        let Some(line) = memchr(b'\n', &bytes[end..]) else {
            break;
        };
        end += line + 1;
    }
    end
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What has been passed on after each piece, and after the end.
    fn passed(pieces: &[&[u8]]) -> (Vec<usize>, Vec<u8>) {
        let mut events = WholeEvents::default();
        let (mut lengths, mut passed) = (Vec::new(), Vec::new());
        for piece in pieces {
            let piece = Bytes::copy_from_slice(piece);
            events.push(piece, |bytes| passed.extend_from_slice(&bytes));
            lengths.push(passed.len());
        }
        events.finish(|bytes| passed.extend_from_slice(&bytes));
        (lengths, passed)
    }

    #[test]
    fn a_piece_that_ends_with_an_event_is_not_copied() {
        let piece = Bytes::from("data: {}\n\n");
        let mut events = WholeEvents::default();
        for _ in 0..2 {
            events.push(piece.clone(), |bytes| {
                assert_eq!(bytes.as_ptr(), piece.as_ptr());
            });
        }
    }

    #[test]
    fn a_comment_is_passed_on_though_no_blank_line_follows() {
        let (lengths, _) = passed(&[b": wait\n", b": wa", b"it\n", b"data: {\n: no event\n"]);
        assert_eq!(lengths, [7, 7, 14, 14]);
    }

    #[test]
    fn an_event_without_its_blank_line_passes_at_the_end() {
        let pieces: [&[u8]; 2] = [b"data: {}\n\ndata: [DO", b"NE]"];
        let (lengths, all) = passed(&pieces);
        assert_eq!(lengths, [10, 10]);
        assert_eq!(all, pieces.concat());
    }

    /// Lines that are no data are nobody's to bound, and may never end.
    #[test]
    fn no_more_than_an_event_may_have_is_held() {
        let line = [b": x\n".repeat(1 << 18), b"data: {}\n".to_vec()].concat();
        let mut events = WholeEvents::default();
        let (mut came, mut passed) = (0, 0);
        for _ in 0..20 {
            came += line.len();
            events.push(Bytes::copy_from_slice(&line), |bytes| passed += bytes.len());
            assert!(came - passed <= EVENT_BYTES_MAX + line.len());
        }
        assert!(passed > EVENT_BYTES_MAX);
    }

    proptest! {
        #[test]
        fn what_is_passed_on_ends_with_an_event_however_the_bytes_are_cut(
            events in proptest::collection::vec(
                prop_oneof![
                    Just("data: {\"choices\":[]}"), Just("event: a\ndata: 1\ndata: 2"),
                    Just(": ping"), Just("id"), Just(""),
                ],
                0..8,
            ),
            end in prop_oneof![Just("\n"), Just("\r\n"), Just("\r")],
            cuts in proptest::collection::vec(any::<prop::sample::Index>(), 0..12),
        ) {
            let mut whole = String::new();
            // Where something may follow, and how far the bytes must have come for it.
            let mut ends = vec![(0, 0)];
            let mut mark = |length: usize| {
                // Behind a CR it is not known yet whether its LF follows.
                ends.push((length, length + usize::from(end == "\r")));
            };
            for event in events {
                for line in event.lines() {
                    whole += &format!("{line}{end}");
                    if event.starts_with(':') && end != "\r" {
                        mark(whole.len());
                    }
                }
                whole += end;
                mark(whole.len());
            }
            let mut at: Vec<usize> = cuts.iter().map(|cut| cut.index(whole.len() + 1)).collect();
            at.sort_unstable();
            at.push(whole.len());
            let mut from = 0;
            let pieces: Vec<&[u8]> = at
                .iter()
                .map(|to| &whole.as_bytes()[std::mem::replace(&mut from, *to)..*to])
                .collect();
            let (lengths, all) = passed(&pieces);
            for (length, came) in lengths.into_iter().zip(at) {
                let due = ends.iter().rfind(|(_, known)| *known <= came);
                prop_assert_eq!(Some(length), due.map(|(end, _)| *end), "{:?} {}", &whole, came);
            }
            prop_assert_eq!(all, whole.as_bytes());
        }
    }
}
