/// A count with its thousands apart.
///
/// ```
/// assert_eq!(llmq_engine::grouped(42_888), "42,888");
/// ```
#[must_use]
pub fn grouped(count: u64) -> String {
    let digits = count.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_grouped() {
        let texts = [0, 999, 1_000, 42_888, 1_234_567].map(grouped);
        assert_eq!(texts, ["0", "999", "1,000", "42,888", "1,234,567"]);
    }
}
