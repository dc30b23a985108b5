use std::collections::BTreeMap;

/// Words of one page: 512 × 64 = 32,768 rows in 4 KiB.
const WORDS: usize = 512;
const ROWS_PER_PAGE: u64 = 64 * WORDS as u64;

/// A set of row numbers, one bit each.
///
/// It is kept in pages of 32,768 rows, so that a single absurd number read from a damaged file
/// costs 4 KiB and not the space of all the numbers below it.
///
/// ```
/// use llmq_engine::bulk::Bitmap;
/// let mut done = Bitmap::default();
/// assert!(done.insert(42_888));
/// assert!(!done.insert(42_888), "it was there already");
/// assert!(done.contains(42_888) && !done.contains(1));
/// assert_eq!(done.len(), 1);
/// ```
#[derive(Debug, Clone, Default)]
pub struct Bitmap {
    pages: BTreeMap<u64, Box<[u64; WORDS]>>,
    len: u64,
}

impl Bitmap {
    /// Adds `row`; `false` when it was there already.
    pub fn insert(&mut self, row: u64) -> bool {
        let (word, bit) = place(row);
        let page = self
            .pages
            .entry(row / ROWS_PER_PAGE)
            .or_insert_with(|| Box::new([0; WORDS]));
        let is_new = page[word] & bit == 0;
        page[word] |= bit;
        self.len += u64::from(is_new);
        is_new
    }

    /// Takes `row` out; `false` when it was not there.
    pub fn remove(&mut self, row: u64) -> bool {
        let (word, bit) = place(row);
        let Some(page) = self.pages.get_mut(&(row / ROWS_PER_PAGE)) else {
            return false;
        };
        let was_there = page[word] & bit != 0;
        page[word] &= !bit;
        self.len -= u64::from(was_there);
        was_there
    }

    /// Whether `row` is in the set.
    #[must_use]
    pub fn contains(&self, row: u64) -> bool {
        let (word, bit) = place(row);
        self.pages
            .get(&(row / ROWS_PER_PAGE))
            .is_some_and(|page| page[word] & bit != 0)
    }

    /// How many rows are in the set.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether no row is in the set.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The rows, in ascending order.
    pub fn iter(&self) -> impl Iterator<Item = u64> + '_ {
        self.pages.iter().flat_map(|(page_number, page)| {
            page.iter().zip(0_u64..).flat_map(move |(&word, at)| {
                let first = page_number * ROWS_PER_PAGE + at * 64;
                (0..64)
                    .filter(move |bit| word & (1 << bit) != 0)
                    .map(move |bit| first + bit)
            })
        })
    }
}

/// The word within its page, and the bit within that word.
fn place(row: u64) -> (usize, u64) {
    (((row / 64) % (WORDS as u64)) as usize, 1 << (row % 64))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn it_is_a_set_of_numbers(steps in prop::collection::vec((any::<bool>(), 0_u64..70_000), 0..400)) {
            let mut model = BTreeSet::new();
            let mut bitmap = Bitmap::default();
            for (add, row) in steps {
                if add {
                    prop_assert_eq!(bitmap.insert(row), model.insert(row));
                } else {
                    prop_assert_eq!(bitmap.remove(row), model.remove(&row));
                }
                prop_assert_eq!(bitmap.contains(row), model.contains(&row));
            }
            prop_assert_eq!(bitmap.len(), model.len() as u64);
            prop_assert_eq!(bitmap.iter().collect::<Vec<_>>(), model.into_iter().collect::<Vec<_>>());
        }
    }

    #[test]
    fn an_absurd_number_costs_one_page() {
        let mut bitmap = Bitmap::default();
        assert!(bitmap.insert(u64::MAX) && bitmap.contains(u64::MAX));
        assert_eq!(bitmap.pages.len(), 1);
        assert_eq!(bitmap.iter().collect::<Vec<_>>(), [u64::MAX]);
    }
}
