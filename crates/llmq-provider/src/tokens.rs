use std::sync::LazyLock;

use tiktoken_rs::CoreBPE;

/// How tokens are counted before a call is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TokenCounter {
    /// A quarter of the characters, rounded up over the whole text: how providers themselves
    /// charge on arrival.
    #[default]
    Chars,
    /// The tokenizer of OpenAI's current models (`o200k_base`), which is held in the program
    /// and needs no network. Some hundred times slower, and its tables take tens of megabytes
    /// once used.
    Tiktoken,
}

/// Characters to a token, as OpenAI's own estimate takes it.
const CHARS_PER_TOKEN: u64 = 4;
/// The tokenizer is fed windows of at most this size: its expressions and its merging are
/// worse than linear on long runs, and a window's edge costs at most a token.
const WINDOW_BYTES: usize = 4_096;

/// `None` only if the tables built into the program were broken; then characters are counted.
static TOKENIZER: LazyLock<Option<CoreBPE>> = LazyLock::new(|| tiktoken_rs::o200k_base().ok());

impl TokenCounter {
    /// The tokens of one text.
    ///
    /// ```
    /// use llmq_provider::TokenCounter;
    /// assert_eq!(TokenCounter::Chars.count("Hello, world!"), 4);
    /// assert_eq!(TokenCounter::Tiktoken.count("Hello, world!"), 4);
    /// ```
    #[must_use]
    pub fn count(self, text: &str) -> u32 {
        let mut tally = TokenTally::new(self);
        tally.add(text);
        tally.tokens()
    }

    fn tokenizer(self) -> Option<&'static CoreBPE> {
        match self {
            Self::Chars => None,
            Self::Tiktoken => TOKENIZER.as_ref(),
        }
    }
}

/// Adds up many texts. Characters are divided once, at the end, so that short texts do not
/// round up each.
///
/// ```
/// use llmq_provider::{TokenCounter, TokenTally};
/// let mut tally = TokenTally::new(TokenCounter::Chars);
/// tally.add("hi");
/// tally.add("é!");
/// assert_eq!(tally.tokens(), 1);
/// ```
#[derive(Debug, Clone)]
pub struct TokenTally {
    counter: TokenCounter,
    chars: u64,
    tokens: u64,
}

impl TokenTally {
    /// Nothing counted yet.
    #[must_use]
    pub fn new(counter: TokenCounter) -> Self {
        Self {
            counter,
            chars: 0,
            tokens: 0,
        }
    }

    /// Adds one text.
    pub fn add(&mut self, text: &str) {
        match self.counter.tokenizer() {
            None => self.chars += text.chars().count() as u64,
            Some(tokenizer) => {
                let counts = windows(text).map(|part| tokenizer.count_ordinary(part) as u64);
                self.tokens += counts.sum::<u64>();
            }
        }
    }

    /// Adds a text of which only the number of characters is known; none where tokens are counted
    /// by a tokenizer.
    pub(crate) fn add_chars(&mut self, chars: u64) {
        self.chars = self.chars.saturating_add(chars);
    }

    /// Adds tokens that need no counting, as in a prompt that is given as token numbers.
    pub fn add_tokens(&mut self, tokens: u64) {
        self.tokens = self.tokens.saturating_add(tokens);
    }

    /// All that was added, in tokens.
    #[must_use]
    pub fn tokens(&self) -> u32 {
        let tokens = self
            .chars
            .div_ceil(CHARS_PER_TOKEN)
            .saturating_add(self.tokens);
        u32::try_from(tokens).unwrap_or(u32::MAX)
    }
}

/// The text in parts of at most [`WINDOW_BYTES`], cut before a blank where there is one, since
/// there a token begins.
fn windows(mut text: &str) -> impl Iterator<Item = &str> {
    std::iter::from_fn(move || {
        if text.is_empty() {
            return None;
        }
        let (part, rest) = text.split_at(window_end(text));
        text = rest;
        Some(part)
    })
}

fn window_end(text: &str) -> usize {
    if text.len() <= WINDOW_BYTES {
        return text.len();
    }
    let end = text.floor_char_boundary(WINDOW_BYTES);
    match text[..end].rfind(' ') {
        Some(blank) if blank > end / 2 => blank,
        _ => end,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_character_counts_once_whatever_its_bytes() {
        let count = |text| TokenCounter::Chars.count(text);
        assert_eq!(
            [count(""), count("a"), count("abcd"), count("abcde")],
            [0, 1, 1, 2]
        );
        assert_eq!(count("äöü€"), 1);
        assert_eq!(count("日本語テキスト"), 2);
    }

    #[test]
    fn long_runs_without_a_blank_are_counted_in_good_time() {
        // Such texts take minutes when they are fed to the tokenizer whole.
        for run in ["a", " ", "\n", "日"] {
            let tokens = TokenCounter::Tiktoken.count(&run.repeat(200_000));
            assert!(tokens > 0, "{run:?}");
        }
    }

    #[test]
    fn windows_cost_next_to_nothing() {
        let text = "The quick brown fox jumps over the lazy dog, again and again. ".repeat(500);
        let whole = u32::try_from(TOKENIZER.as_ref().unwrap().count_ordinary(&text)).unwrap();
        let counted = TokenCounter::Tiktoken.count(&text);
        assert!(counted.abs_diff(whole) <= 10, "{counted} for {whole}");
    }

    proptest! {
        #[test]
        fn windows_lose_nothing(text in "(\\PC| ){0,6000}") {
            prop_assert_eq!(windows(&text).collect::<String>(), text);
        }
    }
}
