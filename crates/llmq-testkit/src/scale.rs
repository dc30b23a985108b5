/// By how much to multiply the number of runs in simulations and crash tests: the variable
/// `LLMQ_TEST_SCALE`, 1 unless it is set.
#[must_use]
pub fn scale() -> u64 {
    env_number("LLMQ_TEST_SCALE").unwrap_or(1)
}

/// The number in a variable of the environment, if it is set.
///
/// # Panics
///
/// When it holds something else: a test that silently took its usual size would prove less than
/// its caller believes.
#[must_use]
pub fn env_number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    match text.parse() {
        Ok(number) => Some(number),
        Err(_) => panic!("{name} is {text:?}, and should be a whole number"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_set_is_none() {
        assert_eq!(env_number("LLMQ_TESTKIT_NEVER_SET"), None);
    }

    #[test]
    #[should_panic(expected = "should be a whole number")]
    fn what_is_no_number_is_not_taken_for_one() {
        // Cargo sets this one for every test.
        let _ = env_number("CARGO_PKG_NAME");
    }
}
