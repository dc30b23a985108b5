use xxhash_rust::xxh3::xxh3_64;

/// How far a shard grows before every shard is split in two.
const SHARD_MAX: usize = 512;
/// How much room a full shard is given: little, since a table that doubles would at its worst
/// hold twice what it needs.
const SHARD_STEP: usize = 32;

/// The ids seen so far, as 64-bit hashes (XXH3), to tell a duplicate.
///
/// The hashes lie in sorted shards of at most about 512, chosen by their leading bits. A search
/// is a few comparisons and an insertion moves at most 4 KiB. Room is added 32 hashes at a time,
/// and splitting goes shard by shard, so it stays under 10 bytes an id at every size, and under
/// 12 with what the allocator cannot use.
///
/// Two different ids share a hash with a probability of about n²/2⁶⁵: for a million ids one in
/// thirty million. The second one would be reported as a duplicate, and not sent.
///
/// ```
/// use llmq_engine::bulk::IdSet;
/// let mut seen = IdSet::default();
/// assert!(seen.insert("place-00001"));
/// assert!(!seen.insert("place-00001"));
/// ```
#[derive(Debug, Clone)]
pub struct IdSet {
    /// Always a power of two of them.
    shards: Vec<Vec<u64>>,
    /// The shard of a hash is given by this many of its leading bits.
    bits: u32,
    len: usize,
}

impl Default for IdSet {
    fn default() -> Self {
        Self {
            shards: vec![Vec::new()],
            bits: 0,
            len: 0,
        }
    }
}

impl IdSet {
    /// Adds `id`; `false` when it, or an id with the same hash, was there already.
    pub fn insert(&mut self, id: &str) -> bool {
        self.insert_hash(xxh3_64(id.as_bytes()))
    }

    /// How many ids were added.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether no id was added yet.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The memory taken on the heap, in bytes, without the allocator's own.
    #[must_use]
    pub fn heap_bytes(&self) -> usize {
        let hashes: usize = self.shards.iter().map(Vec::capacity).sum();
        hashes * size_of::<u64>() + self.shards.capacity() * size_of::<Vec<u64>>()
    }

    fn insert_hash(&mut self, hash: u64) -> bool {
        let shard_number = self.shard_of(hash);
        let shard = &mut self.shards[shard_number];
        let Err(place) = shard.binary_search(&hash) else {
            return false;
        };
        if shard.len() == shard.capacity() {
            shard.reserve_exact(SHARD_STEP);
        }
        shard.insert(place, hash);
        self.len += 1;
        if self.len > self.shards.len() * SHARD_MAX {
            self.split();
        }
        true
    }

    fn shard_of(&self, hash: u64) -> usize {
        // A shift by all 64 bits would overflow; with one shard there is nothing to choose.
        let leading = hash.checked_shr(u64::BITS - self.bits).unwrap_or(0);
        usize::try_from(leading).unwrap_or(0)
    }

    /// Gives each shard's upper half a shard of its own. The old shards are freed one after
    /// another, so that the set is never held twice.
    fn split(&mut self) {
        self.bits += 1;
        let old = std::mem::take(&mut self.shards);
        let mut halves = Vec::with_capacity(old.len() * 2);
        for mut lower in old {
            let one_bit_more = u64::BITS - self.bits;
            let middle = lower.partition_point(|hash| (hash >> one_bit_more) & 1 == 0);
            let upper = lower[middle..].to_vec();
            lower.truncate(middle);
            lower.shrink_to_fit();
            halves.push(lower);
            halves.push(upper);
        }
        self.shards = halves;
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn a_duplicate_is_told_at_every_size() {
        let mut ids = IdSet::default();
        let mut model = HashSet::new();
        // A small multiplicative walk that meets some ids again.
        let mut x = 1_u64;
        for _ in 0..50_000 {
            x = x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let id = format!("id-{}", (x >> 33) % 40_000);
            assert_eq!(ids.insert(&id), model.insert(id));
        }
        assert_eq!(ids.len(), model.len());
        assert!(model.iter().all(|id| !ids.insert(id)));
    }

    #[test]
    fn extreme_hashes_find_their_shards() {
        let mut ids = IdSet::default();
        for n in 0..5_000_u64 {
            assert!(ids.insert_hash(n.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1));
        }
        assert!(ids.insert_hash(0) && ids.insert_hash(u64::MAX - 1));
        assert!(!ids.insert_hash(0) && !ids.insert_hash(u64::MAX - 1));
    }

    #[test]
    fn memory_stays_under_ten_bytes_an_id_at_every_size() {
        let mut ids = IdSet::default();
        for n in 0..200_000_u32 {
            ids.insert(&n.to_string());
            if n > 1_000 {
                let per_id = ids.heap_bytes() as f64 / ids.len() as f64;
                assert!(per_id < 10.0, "{per_id} bytes an id at {n}");
            }
        }
    }
}
