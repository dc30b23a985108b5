use std::time::Duration;

use clap::{Args, ValueEnum};
use llmq_engine::bulk::Price;
use llmq_engine::config::ProviderKind;

/// Which provider.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Provider")]
pub(crate) struct ProviderArgs {
    /// Who answers: openai (and every server that speaks its API), anthropic, or mock, which
    /// starts a stand-in inside [default: openai]
    #[arg(long, value_enum, value_name = "NAME", hide_possible_values = true)]
    pub(crate) provider: Option<ProviderArg>,
    /// The provider's address up to the operation [env: OPENAI_BASE_URL or ANTHROPIC_BASE_URL]
    #[arg(long, value_name = "URL")]
    pub(crate) base_url: Option<String>,
    /// The variable that holds the key [default: OPENAI_API_KEY or ANTHROPIC_API_KEY]
    #[arg(long, value_name = "NAME")]
    pub(crate) api_key_env: Option<String>,
    /// How long a call may take [default: 10m]
    #[arg(long, value_name = "TIME", value_parser = crate::text::time)]
    pub(crate) timeout: Option<Duration>,
    /// What a million tokens cost in USD, input/output, such as 0.15/0.60
    #[arg(long, value_name = "INPUT/OUTPUT", value_parser = parse_price)]
    pub(crate) price: Option<Price>,
}

/// A provider that a flag can name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ProviderArg {
    /// OpenAI, and every server that speaks its API
    Openai,
    /// Anthropic
    Anthropic,
    /// A stand-in inside this process
    Mock,
}

impl From<ProviderArg> for ProviderKind {
    fn from(provider: ProviderArg) -> Self {
        match provider {
            ProviderArg::Openai => Self::OpenAi,
            ProviderArg::Anthropic => Self::Anthropic,
            ProviderArg::Mock => Self::Mock,
        }
    }
}

fn parse_price(text: &str) -> Result<Price, String> {
    let dollars = |text: &str| {
        let amount: f64 = text.trim().trim_start_matches('$').parse().ok()?;
        (amount >= 0.0 && amount.is_finite()).then_some(amount)
    };
    text.split_once('/')
        .and_then(|(input, output)| {
            Some(Price {
                input: dollars(input)?,
                output: dollars(output)?,
            })
        })
        .ok_or_else(|| format!("`{text}` is not a price: write input/output, such as 0.15/0.60"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_price_has_two_parts() {
        assert_eq!(
            parse_price("0.15/0.60"),
            Ok(Price {
                input: 0.15,
                output: 0.6
            })
        );
        for text in ["0.15", "a/b", "-1/2", "1/inf"] {
            assert!(parse_price(text).is_err(), "{text}");
        }
    }
}
