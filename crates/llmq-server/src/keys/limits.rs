use llmq_core::{LimitKind, LimitSpec, ParseLimitError, parse_count};

/// Reads a limit of a key: `rpm=60` and its like (`rpd`, `tpm`, `tpd`, `itpm`, `otpm`), or any
/// `kind=count/period` and `concurrency=count`.
///
/// A key's limits are ours alone, so those without an algorithm slide.
///
/// ```
/// use llmq_server::keys::parse_limit;
/// assert_eq!(parse_limit("tpm=100k").unwrap().to_string(), "tokens=100k/1m");
/// assert_eq!(parse_limit("requests=200/2s:bucket").unwrap().to_string(), "requests=200/2s:bucket");
/// assert!(parse_limit("rpm=0").is_err());
/// ```
///
/// # Errors
///
/// [`ParseLimitError`], whose message says what would be right.
pub fn parse_limit(text: &str) -> Result<LimitSpec, ParseLimitError> {
    let Some((name, count)) = text.split_once('=') else {
        return text.parse();
    };
    let per: fn(LimitKind, u64) -> LimitSpec = match name.trim() {
        "rpm" | "tpm" | "itpm" | "otpm" => LimitSpec::per_minute,
        "rpd" | "tpd" => LimitSpec::per_day,
        _ => return text.parse(),
    };
    let kind = match name.trim() {
        "rpm" | "rpd" => LimitKind::Requests,
        "itpm" => LimitKind::InputTokens,
        "otpm" => LimitKind::OutputTokens,
        _ => LimitKind::Tokens,
    };
    parse_count(count).map(|count| per(kind, count))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_names_mean_what_they_mean_everywhere() {
        let check = |text: &str, long: &str| {
            assert_eq!(parse_limit(text).unwrap(), long.parse().unwrap(), "{text}");
        };
        check("rpm=60", "requests=60/1m");
        check("rpd=1_000", "requests=1000/1d");
        check("tpm=1.5k", "tokens=1500/1m");
        check("tpd=4M", "tokens=4M/1d");
        check("itpm=7", "input_tokens=7/1m");
        check(" otpm = 7 ", "output_tokens=7/1m");
        check("concurrency=3", "concurrency=3");
        for wrong in [
            "",
            "rpm",
            "rpm=",
            "rpm=-1",
            "rpm=60/1m",
            "rph=60",
            "requests=60",
        ] {
            assert!(parse_limit(wrong).is_err(), "{wrong}");
        }
    }
}
