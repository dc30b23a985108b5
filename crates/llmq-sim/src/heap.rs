use std::cmp::Ordering;
use std::collections::BinaryHeap;

use llmq_core::Timestamp;

/// What will happen, soonest first; of two things at one instant the one scheduled first.
#[derive(Debug)]
pub(crate) struct Agenda<E> {
    heap: BinaryHeap<Entry<E>>,
    count: u64,
}

#[derive(Debug)]
struct Entry<E> {
    at: Timestamp,
    number: u64,
    event: E,
}

impl<E> Agenda<E> {
    pub(crate) fn new() -> Self {
        Self {
            heap: BinaryHeap::new(),
            count: 0,
        }
    }

    pub(crate) fn add(&mut self, at: Timestamp, event: E) {
        self.count += 1;
        let number = self.count;
        self.heap.push(Entry { at, number, event });
    }

    pub(crate) fn next_at(&self) -> Option<Timestamp> {
        self.heap.peek().map(|entry| entry.at)
    }

    pub(crate) fn pop(&mut self) -> Option<E> {
        self.heap.pop().map(|entry| entry.event)
    }
}

impl<E> PartialEq for Entry<E> {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl<E> Eq for Entry<E> {}

impl<E> PartialOrd for Entry<E> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<E> Ord for Entry<E> {
    fn cmp(&self, other: &Self) -> Ordering {
        // A BinaryHeap gives its largest first.
        (other.at, other.number).cmp(&(self.at, self.number))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_first_is_given_first_and_equals_in_the_order_they_were_added() {
        let mut agenda = Agenda::new();
        for (at, event) in [(5, 'c'), (1, 'a'), (5, 'd'), (1, 'b')] {
            agenda.add(Timestamp::from_nanos(at), event);
        }
        assert_eq!(agenda.next_at(), Some(Timestamp::from_nanos(1)));
        let order: String = std::iter::from_fn(|| agenda.pop()).collect();
        assert_eq!(order, "abcd");
    }
}
