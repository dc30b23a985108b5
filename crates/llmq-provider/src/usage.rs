use llmq_core::Usage;
use serde::Deserialize;

use crate::Dialect;
use crate::lenient::{Lenient, Object};
use crate::plain::{Once, Plain};

type Count = Lenient<Option<u64>>;

/// The `usage` object of any dialect. Each member may be missing, null or garbled; then it is
/// unknown, never an error: the answer itself is fine.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(crate) struct RawUsage {
    prompt_tokens: Count,
    completion_tokens: Count,
    input_tokens: Count,
    output_tokens: Count,
    prompt_tokens_details: Lenient<Object<Details>>,
    input_tokens_details: Lenient<Object<Details>>,
    /// DeepSeek's name for cached input.
    prompt_cache_hit_tokens: Count,
    cache_creation_input_tokens: Count,
    cache_read_input_tokens: Count,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
struct Details {
    cached_tokens: Count,
    cache_write_tokens: Count,
}

impl RawUsage {
    /// One that is plain.
    pub(crate) fn read_plain(json: &mut Plain<'_>) -> Option<Self> {
        let mut usage = Self::default();
        let mut once = Once::default();
        json.object(|json, name| {
            let (place, count) = match name {
                b"prompt_tokens" => (0, &mut usage.prompt_tokens),
                b"completion_tokens" => (1, &mut usage.completion_tokens),
                b"input_tokens" => (2, &mut usage.input_tokens),
                b"output_tokens" => (3, &mut usage.output_tokens),
                b"prompt_cache_hit_tokens" => (4, &mut usage.prompt_cache_hit_tokens),
                b"cache_creation_input_tokens" => (5, &mut usage.cache_creation_input_tokens),
                b"cache_read_input_tokens" => (6, &mut usage.cache_read_input_tokens),
                b"prompt_tokens_details" => {
                    once.note(7)?;
                    usage.prompt_tokens_details = Details::read_plain(json)?;
                    return Some(());
                }
                b"input_tokens_details" => {
                    once.note(8)?;
                    usage.input_tokens_details = Details::read_plain(json)?;
                    return Some(());
                }
                _ => return json.skip(),
            };
            once.note(place)?;
            *count = Lenient(json.unless_null(Plain::whole)?);
            Some(())
        })?;
        Some(usage)
    }

    /// The members of `later` that are there, the own ones elsewhere: Anthropic's stream
    /// repeats only what has changed, always as a total.
    pub(crate) fn overlaid(self, later: Self) -> Self {
        let details = |Lenient(Object(own)): Lenient<Object<Details>>,
                       Lenient(Object(new)): Lenient<Object<Details>>| {
            Lenient(Object(Details {
                cached_tokens: new.cached_tokens.or(own.cached_tokens),
                cache_write_tokens: new.cache_write_tokens.or(own.cache_write_tokens),
            }))
        };
        Self {
            prompt_tokens: later.prompt_tokens.or(self.prompt_tokens),
            completion_tokens: later.completion_tokens.or(self.completion_tokens),
            input_tokens: later.input_tokens.or(self.input_tokens),
            output_tokens: later.output_tokens.or(self.output_tokens),
            prompt_tokens_details: details(self.prompt_tokens_details, later.prompt_tokens_details),
            input_tokens_details: details(self.input_tokens_details, later.input_tokens_details),
            prompt_cache_hit_tokens: later
                .prompt_cache_hit_tokens
                .or(self.prompt_cache_hit_tokens),
            cache_creation_input_tokens: later
                .cache_creation_input_tokens
                .or(self.cache_creation_input_tokens),
            cache_read_input_tokens: later
                .cache_read_input_tokens
                .or(self.cache_read_input_tokens),
        }
    }

    /// In our words; `None` when it names no tokens at all.
    pub(crate) fn usage(self, dialect: Dialect) -> Option<Usage> {
        match dialect {
            Dialect::OpenAi => self.openai(),
            Dialect::Anthropic => self.anthropic(),
        }
    }

    fn openai(self) -> Option<Usage> {
        let input = self.prompt_tokens.or(self.input_tokens).0;
        let output = self.completion_tokens.or(self.output_tokens).0;
        if input.is_none() && output.is_none() {
            return None;
        }
        let (chat, responses) = (
            self.prompt_tokens_details.0.0,
            self.input_tokens_details.0.0,
        );
        let read = chat
            .cached_tokens
            .or(responses.cached_tokens)
            .or(self.prompt_cache_hit_tokens);
        let written = chat.cache_write_tokens.or(responses.cache_write_tokens);
        Some(Usage {
            input_tokens: input.unwrap_or(0),
            output_tokens: output.unwrap_or(0),
            cache_read_tokens: read.0.unwrap_or(0),
            cache_write_tokens: written.0.unwrap_or(0),
        })
    }

    /// Anthropic counts only what follows the last cache breakpoint as `input_tokens`
    /// (docs.anthropic.com, "Prompt caching"); all input is the three fields together.
    fn anthropic(self) -> Option<Usage> {
        let (input, output) = (self.input_tokens.0, self.output_tokens.0);
        if input.is_none() && output.is_none() {
            return None;
        }
        let read = self.cache_read_input_tokens.0.unwrap_or(0);
        let written = self.cache_creation_input_tokens.0.unwrap_or(0);
        Some(Usage {
            input_tokens: input
                .unwrap_or(0)
                .saturating_add(read)
                .saturating_add(written),
            output_tokens: output.unwrap_or(0),
            cache_read_tokens: read,
            cache_write_tokens: written,
        })
    }
}

impl Details {
    /// Those that are plain.
    fn read_plain(json: &mut Plain<'_>) -> Option<Lenient<Object<Self>>> {
        let mut details = Self::default();
        let mut once = Once::default();
        json.unless_null(|json| {
            json.object(|json, name| {
                let (place, count) = match name {
                    b"cached_tokens" => (0, &mut details.cached_tokens),
                    b"cache_write_tokens" => (1, &mut details.cache_write_tokens),
                    _ => return json.skip(),
                };
                once.note(place)?;
                *count = Lenient(json.unless_null(Plain::whole)?);
                Some(())
            })
        })?;
        Some(Lenient(Object(details)))
    }
}

impl Count {
    fn or(self, other: Self) -> Self {
        Self(self.0.or(other.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(dialect: Dialect, json: &str) -> Option<Usage> {
        serde_json::from_str::<RawUsage>(json)
            .unwrap()
            .usage(dialect)
    }

    fn usage(input: u64, output: u64, cache_read: u64, cache_write: u64) -> Option<Usage> {
        Some(Usage {
            input_tokens: input,
            output_tokens: output,
            cache_read_tokens: cache_read,
            cache_write_tokens: cache_write,
        })
    }

    #[test]
    fn every_shape_of_usage_is_read() {
        let openai = [
            (
                r#"{"prompt_tokens":12,"completion_tokens":163,"total_tokens":175}"#,
                usage(12, 163, 0, 0),
            ),
            (
                r#"{"prompt_tokens":2006,"completion_tokens":300,"prompt_tokens_details":{"cached_tokens":1920,"cache_write_tokens":5},"completion_tokens_details":{"reasoning_tokens":99}}"#,
                usage(2006, 300, 1920, 5),
            ),
            (
                r#"{"input_tokens":36,"input_tokens_details":{"cached_tokens":4},"output_tokens":87,"output_tokens_details":{"reasoning_tokens":3},"total_tokens":123}"#,
                usage(36, 87, 4, 0),
            ),
            (r#"{"prompt_tokens":8,"total_tokens":8}"#, usage(8, 0, 0, 0)),
            (
                r#"{"prompt_tokens":8,"completion_tokens":1,"prompt_cache_hit_tokens":6}"#,
                usage(8, 1, 6, 0),
            ),
        ];
        for (json, expected) in openai {
            assert_eq!(read(Dialect::OpenAi, json), expected, "{json}");
        }
        let anthropic = r#"{"input_tokens":10,"cache_creation_input_tokens":200,"cache_read_input_tokens":3000,"output_tokens":7,"cache_creation":{"ephemeral_5m_input_tokens":200},"service_tier":"standard"}"#;
        assert_eq!(
            read(Dialect::Anthropic, anthropic),
            usage(3210, 7, 3000, 200)
        );
    }

    #[test]
    fn garbled_members_are_unknown_and_never_an_error() {
        for json in [
            "{}",
            r#"{"prompt_tokens":null,"completion_tokens":"many"}"#,
            r#"{"prompt_tokens":-3,"completion_tokens":1.5}"#,
            r#"{"prompt_tokens":[1],"completion_tokens":{"a":1},"prompt_tokens_details":[]}"#,
            r#"{"prompt_tokens":1e300}"#,
        ] {
            assert_eq!(read(Dialect::OpenAi, json), None, "{json}");
        }
        let json = r#"{"prompt_tokens":5.0,"completion_tokens":2,"prompt_tokens_details":null}"#;
        assert_eq!(read(Dialect::OpenAi, json), usage(5, 2, 0, 0));
    }
}
