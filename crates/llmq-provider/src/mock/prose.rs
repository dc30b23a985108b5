/// One token each, in the counting of the stand-in.
const WORDS: [&str; 48] = [
    "the",
    "river",
    "of",
    "small",
    "houses",
    "and",
    "a",
    "market",
    "in",
    "winter",
    "where",
    "people",
    "meet",
    "to",
    "talk",
    "about",
    "music",
    "with",
    "old",
    "friends",
    "under",
    "green",
    "hills",
    "near",
    "some",
    "quiet",
    "harbour",
    "that",
    "was",
    "built",
    "by",
    "careful",
    "hands",
    "for",
    "travellers",
    "who",
    "come",
    "from",
    "far",
    "away",
    "each",
    "year",
    "bringing",
    "new",
    "stories",
    "bread",
    "salt",
    "light",
];

/// Words in a sentence.
const SENTENCE: u64 = 11;

/// Readable text that follows from a seed alone: ASCII letters, blanks and full stops, so it
/// stands in JSON as it is.
#[derive(Debug, Clone)]
pub(super) struct Prose {
    state: u64,
    written: u64,
}

impl Prose {
    pub(super) fn new(seed: u64) -> Self {
        Self {
            // The generator below needs a state that is not zero.
            state: seed | 1,
            written: 0,
        }
    }

    /// Appends the next `words` words.
    pub(super) fn push(&mut self, words: u64, out: &mut String) {
        for _ in 0..words {
            let word = self.next_word();
            if self.written > 0 {
                out.push(' ');
            }
            if self.written.is_multiple_of(SENTENCE) {
                let (first, rest) = word.split_at(1);
                out.push_str(&first.to_ascii_uppercase());
                out.push_str(rest);
            } else {
                out.push_str(word);
            }
            self.written += 1;
            if self.written.is_multiple_of(SENTENCE) {
                out.push('.');
            }
        }
    }

    /// xorshift64* (Vigna 2016).
    fn next_word(&mut self) -> &'static str {
        self.state ^= self.state >> 12;
        self.state ^= self.state << 25;
        self.state ^= self.state >> 27;
        let random = self.state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32;
        let index = usize::try_from(random % WORDS.len() as u64).unwrap_or(0);
        WORDS[index]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_follows_from_the_seed_however_it_is_cut() {
        let (mut whole, mut parts) = (String::new(), String::new());
        Prose::new(7).push(40, &mut whole);
        let mut prose = Prose::new(7);
        for words in [1, 9, 0, 30] {
            prose.push(words, &mut parts);
        }
        assert_eq!(whole, parts);
        assert_eq!(whole.split(' ').count(), 40);
        let mut other = String::new();
        Prose::new(8).push(40, &mut other);
        assert_ne!(whole, other);
    }
}
