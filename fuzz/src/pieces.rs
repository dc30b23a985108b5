//! Ways to cut bytes, as the network does.

/// The bytes in single bytes, in two halves at each of the first places, and in pieces whose
/// lengths the bytes themselves choose.
pub(crate) fn cuts(bytes: &[u8]) -> impl Iterator<Item = Vec<&[u8]>> {
    /// Cutting at every place of a long input would make one run of it as slow as its square.
    const PLACES_MAX: usize = 48;
    let single = std::iter::once(bytes.chunks(1).collect());
    let halves = (0..bytes.len().min(PLACES_MAX)).map(|at| {
        let (head, tail) = bytes.split_at(at);
        vec![head, tail]
    });
    single.chain(halves).chain(std::iter::once(chosen(bytes)))
}

fn chosen(bytes: &[u8]) -> Vec<&[u8]> {
    let mut pieces = Vec::new();
    let mut rest = bytes;
    while let Some(first) = rest.first() {
        // An odd multiple spreads the letters, which are near each other, over all lengths.
        let length = usize::from(first.wrapping_mul(167)) % rest.len() + 1;
        let (piece, after) = rest.split_at(length);
        pieces.push(piece);
        rest = after;
    }
    pieces
}
