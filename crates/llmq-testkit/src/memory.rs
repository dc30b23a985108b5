use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

static HELD: AtomicUsize = AtomicUsize::new(0);

/// The system's allocator with a count of what is held, for a test's program of its own:
///
/// ```
/// # use llmq_testkit::CountedMemory;
/// #[global_allocator]
/// static MEMORY: CountedMemory = CountedMemory;
///
/// let before = CountedMemory::held_bytes();
/// let text = vec![0_u8; 100];
/// assert_eq!(CountedMemory::held_bytes() - before, 112);
/// # drop(text);
/// ```
///
/// A piece counts as much as jemalloc, llmq's own allocator, takes for it.
#[derive(Debug, Default)]
pub struct CountedMemory;

impl CountedMemory {
    /// How much is held now, by all threads. What C code has taken is not in it.
    #[must_use]
    pub fn held_bytes() -> usize {
        HELD.load(Ordering::Relaxed)
    }
}

#[expect(
    unsafe_code,
    reason = "an allocator is told of pieces of memory by their addresses"
)]
// SAFETY: every call is passed on to the system's allocator as it came.
unsafe impl GlobalAlloc for CountedMemory {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        HELD.fetch_add(class_of(layout.size()), Ordering::Relaxed);
        // SAFETY: the caller keeps the promises of `GlobalAlloc::alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, place: *mut u8, layout: Layout) {
        HELD.fetch_sub(class_of(layout.size()), Ordering::Relaxed);
        // SAFETY: the caller keeps the promises of `GlobalAlloc::dealloc`.
        unsafe { System.dealloc(place, layout) }
    }
}

/// The size class of a piece: four for each doubling, and sixteenths of the smallest ones ("Size
/// classes", jemalloc's manual).
fn class_of(bytes: usize) -> usize {
    let step = if bytes <= 128 {
        16
    } else {
        bytes.next_power_of_two() / 8
    };
    bytes.next_multiple_of(step)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_count_as_what_is_taken_for_them() {
        for (bytes, class) in [
            (1, 16),
            (16, 16),
            (113, 128),
            (129, 160),
            (256, 256),
            (257, 320),
            (280, 320),
            (4097, 5120),
        ] {
            assert_eq!(class_of(bytes), class, "{bytes}");
        }
    }
}
