//! The text of a key: `llmq_` and 43 letters and digits, which hold 256 random bits.

use llmq_provider::Secret;
use sha2::{Digest, Sha256};

/// What every key begins with, so that people and secret scanners know one when they see it.
pub(super) const PREFIX: &str = "llmq_";

/// log2(62^43) = 256.03.
const LETTERS: usize = 43;

/// How much of a key is shown: 8 of its 43 letters, which leaves 208 bits unknown.
const SHOWN: usize = PREFIX.len() + 8;

const ALPHABET: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

/// SHA-256 of a key.
pub(super) type KeyHash = [u8; 32];

/// A new key from the operating system's randomness.
pub(super) fn generate() -> Result<Secret, getrandom::Error> {
    generate_with(getrandom::fill)
}

fn generate_with<E>(mut fill: impl FnMut(&mut [u8]) -> Result<(), E>) -> Result<Secret, E> {
    let mut text = String::with_capacity(PREFIX.len() + LETTERS);
    text.push_str(PREFIX);
    let mut random = [0; 64];
    while text.len() < PREFIX.len() + LETTERS {
        fill(&mut random)?;
        let missing = PREFIX.len() + LETTERS - text.len();
        // Six bits each; the two values of 64 that are no letter are drawn again, since a
        // remainder would make some letters likelier.
        let letters = random.iter().map(|byte| usize::from(byte & 63));
        let letters = letters
            .filter_map(|index| ALPHABET.get(index))
            .take(missing);
        text.extend(letters.map(|&letter| char::from(letter)));
    }
    Ok(Secret::new(text))
}

/// What is stored instead of the key. The key is random and long: there is nothing to guess, so
/// it takes no slow hash, and each request costs one block or two.
pub(super) fn hash(key: &str) -> KeyHash {
    Sha256::digest(key.as_bytes()).into()
}

/// The part of a key that is shown.
pub(super) fn shown(key: &str) -> &str {
    key.get(..SHOWN).unwrap_or(PREFIX)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::convert::Infallible;

    use super::*;

    #[test]
    fn keys_are_long_and_never_the_same() {
        let keys: HashSet<String> = (0..1_000)
            .map(|_| generate().unwrap().expose().to_owned())
            .collect();
        assert_eq!(keys.len(), 1_000);
        let letters: HashSet<char> = keys.iter().flat_map(|key| key[5..].chars()).collect();
        assert_eq!(letters.len(), 62, "every letter occurs");
        for key in keys {
            assert!(key.starts_with("llmq_"));
            assert_eq!(key.len(), 48);
            assert!(key[5..].bytes().all(|byte| byte.is_ascii_alphanumeric()));
            assert_eq!(shown(&key), &key[..13]);
        }
    }

    #[test]
    fn bytes_that_are_no_letter_are_drawn_again() {
        let mut draws = 0;
        let key = generate_with(|random| {
            draws += 1;
            random.fill(if draws == 1 { 62 } else { 61 });
            Ok::<(), Infallible>(())
        });
        assert_eq!(key.unwrap().expose(), format!("llmq_{}", "z".repeat(43)));
        assert_eq!(draws, 2);
    }

    #[test]
    fn the_hash_is_sha_256() {
        // FIPS 180-2, appendix B.1.
        let hex: String = hash("abc")
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        assert_eq!(
            hex,
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
    }
}
