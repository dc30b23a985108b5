//! How single values are written: each function reads one form, and its message says what
//! would be right.

use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::time::Duration;

use http::HeaderName;
use llmq_core::{LimitSpec, parse_count, parse_duration};
use llmq_provider::{ConfigError, Dialect, Secret, check_base_url};
use toml::Value;

use super::reader::Found;
use super::settings::{KeySource, Network, StoreUrl};

type Read<T> = Result<T, String>;

/// The longest time a setting can hold: ten years.
const DURATION_MAX: Duration = Duration::from_secs(3_660 * 86_400);

pub(super) fn text(found: &Found<'_>) -> Read<String> {
    match found.value.as_str() {
        Some(text) => Ok(text.to_owned()),
        None => Err(format!("{} is not text: put it in quotes", found.value)),
    }
}

pub(super) fn non_empty(found: &Found<'_>) -> Read<String> {
    let text = text(found)?;
    if text.trim().is_empty() {
        return Err("must not be empty".to_owned());
    }
    Ok(text)
}

/// One of a few words.
pub(super) fn word<T: Copy>(words: &[(&'static str, T)]) -> impl Fn(&Found<'_>) -> Read<T> {
    move |found| {
        let given = text(found)?;
        match words.iter().find(|(word, _)| *word == given) {
            Some((_, value)) => Ok(*value),
            None => {
                let known: Vec<_> = words.iter().map(|(word, _)| format!("{word:?}")).collect();
                Err(format!("{given:?} is none of {}", known.join(", ")))
            }
        }
    }
}

pub(super) fn flag(found: &Found<'_>) -> Read<bool> {
    match found.value.as_ref() {
        Value::Boolean(value) => Ok(*value),
        Value::String(text) if found.is_text() && matches!(text.as_str(), "true" | "1") => Ok(true),
        Value::String(text) if found.is_text() && matches!(text.as_str(), "false" | "0") => {
            Ok(false)
        }
        other => Err(format!("{other} is neither true nor false")),
    }
}

pub(super) fn duration(found: &Found<'_>) -> Read<Duration> {
    let wrong = || {
        format!(
            "{} is not a length of time: write it like \"500ms\", \"60s\" or \"10m\"",
            found.value
        )
    };
    let text = found.value.as_str().ok_or_else(wrong)?;
    parse_duration(text)
        .filter(|span| *span <= DURATION_MAX)
        .ok_or_else(wrong)
}

/// A length of time that is not zero.
pub(super) fn some_duration(found: &Found<'_>) -> Read<Duration> {
    match duration(found)? {
        Duration::ZERO => Err("must be longer than nothing".to_owned()),
        span => Ok(span),
    }
}

/// A whole number, without units.
pub(super) fn integer(range: RangeInclusive<u64>) -> impl Fn(&Found<'_>) -> Read<u64> {
    move |found| {
        let number = match found.value.as_ref() {
            Value::Integer(number) => u64::try_from(*number).ok(),
            Value::String(text) if found.is_text() => text.trim().parse().ok(),
            _ => None,
        };
        number
            .filter(|number| range.contains(number))
            .ok_or_else(|| {
                let value = plain(found);
                match *range.end() {
                    u64::MAX => format!(
                        "{value} is out of range, use a whole number from {}",
                        range.start()
                    ),
                    end => format!("{value} is out of range, use {} to {end}", range.start()),
                }
            })
    }
}

/// The same for settings that hold fewer.
pub(super) fn small(range: RangeInclusive<u32>) -> impl Fn(&Found<'_>) -> Read<u32> {
    move |found| {
        let wide = u64::from(*range.start())..=u64::from(*range.end());
        u32::try_from(integer(wide)(found)?).map_err(|_| "is out of range".to_owned())
    }
}

/// A count of at least 1: a number, or text with `k` or `M`.
pub(super) fn count(found: &Found<'_>) -> Read<u64> {
    parse_count(&plain(found)).map_err(|error| error.to_string())
}

pub(super) fn number(range: RangeInclusive<f64>) -> impl Fn(&Found<'_>) -> Read<f64> {
    move |found| {
        let number = any_number(found)?;
        if range.contains(&number) {
            Ok(number)
        } else {
            let (from, to) = (range.start(), range.end());
            Err(match *to {
                f64::MAX => format!("{number} is out of range, use at least {from}"),
                _ => format!("{number} is out of range, use {from} to {to}"),
            })
        }
    }
}

/// A number whose range somebody else checks.
pub(super) fn any_number(found: &Found<'_>) -> Read<f64> {
    let number = match found.value.as_ref() {
        Value::Float(number) => Some(*number),
        // Exact up to 2^53, far beyond every setting's range.
        #[expect(
            clippy::cast_precision_loss,
            reason = "ranges are checked by the callers"
        )]
        Value::Integer(number) => Some(*number as f64),
        Value::String(text) if found.is_text() => text.trim().parse().ok(),
        _ => None,
    };
    number.ok_or_else(|| format!("{} is not a number", found.value))
}

/// A size in bytes: a number, or text such as `32MB`.
pub(super) fn bytes(found: &Found<'_>) -> Read<u64> {
    const UNITS: [(&str, u64); 9] = [
        ("KiB", 1 << 10),
        ("MiB", 1 << 20),
        ("GiB", 1 << 30),
        ("TiB", 1 << 40),
        ("kB", 1_000),
        ("KB", 1_000),
        ("MB", 1_000_000),
        ("GB", 1_000_000_000),
        ("TB", 1_000_000_000_000),
    ];
    let text = plain(found);
    let unit = UNITS.iter().find(|(unit, _)| text.ends_with(unit));
    let digits = match unit {
        Some((unit, _)) => text.strip_suffix(unit),
        None => Some(text.strip_suffix('B').unwrap_or(&text)),
    };
    digits
        .and_then(|digits| digits.trim().replace('_', "").parse::<u64>().ok())
        .and_then(|number| number.checked_mul(unit.map_or(1, |(_, size)| *size)))
        .filter(|size| *size > 0)
        .ok_or_else(|| format!("{text:?} is not a size: write it like \"32MB\" or \"4GB\""))
}

pub(super) fn address(found: &Found<'_>) -> Read<SocketAddr> {
    parse_address(&text(found)?)
}

/// Where to listen, such as `127.0.0.1:8080` or `localhost:8080`.
///
/// # Errors
///
/// The text is no address with a port; says how to write one.
pub fn parse_address(text: &str) -> Result<SocketAddr, String> {
    let address = match text.strip_prefix("localhost:") {
        Some(port) => format!("127.0.0.1:{port}"),
        None => text.to_owned(),
    };
    let wrong = |_| format!("{text:?} is not an address: write it like \"127.0.0.1:8080\"");
    address.parse().map_err(wrong)
}

/// An `http` or `https` address that calls in `dialect` can go to.
pub(super) fn base_url(found: &Found<'_>, dialect: Dialect) -> Read<String> {
    let url = text(found)?;
    let rest = url
        .strip_prefix("https://")
        .or_else(|| url.strip_prefix("http://"));
    match rest.map(|rest| rest.split(['/', '?']).next().unwrap_or_default()) {
        None => Err("must begin with https:// or http://".to_owned()),
        Some("") => Err("names no server".to_owned()),
        Some(authority) if authority.contains('@') => {
            Err("holds a user name or password: give the key as api_key".to_owned())
        }
        Some(_) => match check_base_url(dialect, &url) {
            Ok(()) => Ok(url),
            Err(error) => Err(error.to_string()),
        },
    }
}

/// `{ env = "NAME" }`, or the key itself.
pub(super) fn key(found: &Found<'_>) -> Read<KeySource> {
    match found.value.as_ref() {
        Value::String(key) if !key.trim().is_empty() => {
            let key = Secret::new(key);
            if key.fits_header() {
                Ok(KeySource::Literal(key))
            } else {
                Err(ConfigError::Key.to_string())
            }
        }
        Value::Table(table) if table.len() == 1 => match table.get("env") {
            Some(Value::String(name)) if !name.trim().is_empty() => {
                Ok(KeySource::Env(name.clone()))
            }
            _ => Err(KEY_FORM.to_owned()),
        },
        // The value is not repeated: it may be the key in a wrong place.
        _ => Err(KEY_FORM.to_owned()),
    }
}

const KEY_FORM: &str = "must be { env = \"NAME\" } with the name of a variable, or the key as text";

/// A key as it may be shown: the name of its variable, or three stars.
pub(super) fn masked_key(value: &Value) -> String {
    match value {
        Value::Table(_) => value.to_string(),
        _ => "\"***\"".to_owned(),
    }
}

pub(super) fn store_url(found: &Found<'_>) -> Read<StoreUrl> {
    let url = text(found)?;
    StoreUrl::parse(&url).ok_or_else(|| "is no store: use sqlite:PATH or memory:".to_owned())
}

/// A store's address without the password in it.
pub(super) fn masked_url(value: &Value) -> String {
    let text = value.as_str().unwrap_or_default();
    let shown = match (text.split_once("://"), text.rfind('@')) {
        (Some((scheme, _)), Some(at)) => format!("{scheme}://***{}", &text[at..]),
        _ => text.to_owned(),
    };
    Value::String(shown).to_string()
}

/// A list of texts; from outside also separated by commas.
pub(super) fn texts(found: &Found<'_>) -> Read<Vec<String>> {
    match found.value.as_ref() {
        Value::Array(items) => items
            .iter()
            .map(|item| {
                let text = item.as_str().filter(|text| !text.is_empty());
                text.map(str::to_owned)
                    .ok_or_else(|| format!("{item} is not text: put it in quotes"))
            })
            .collect(),
        Value::String(list) if found.is_text() => Ok(list
            .split(',')
            .map(|item| item.trim().to_owned())
            .filter(|item| !item.is_empty())
            .collect()),
        other => Err(format!(
            "{other} is not a list: write it like [\"…\", \"…\"]"
        )),
    }
}

/// Headers that choose whose limits are charged.
pub(super) fn account_headers(found: &Found<'_>) -> Read<Vec<HeaderName>> {
    const KNOWN: [&str; 3] = [
        "openai-organization",
        "openai-project",
        "anthropic-workspace-id",
    ];
    let one = |name: String| match KNOWN.iter().find(|known| name.eq_ignore_ascii_case(known)) {
        Some(known) => Ok(HeaderName::from_static(known)),
        None => Err(format!("{name:?} is none of {}", KNOWN.join(", "))),
    };
    texts(found)?.into_iter().map(one).collect()
}

/// A list of web origins as browsers write them (RFC 6454 §6.2), or `*` for every one.
pub(super) fn origins(found: &Found<'_>) -> Read<Vec<String>> {
    let origins = texts(found)?;
    for origin in &origins {
        let host = origin.split_once("://").map(|(scheme, host)| {
            let is_word = |text: &str| !text.is_empty() && !text.contains([' ', '/', '?', '#']);
            is_word(scheme) && is_word(host) && *origin == origin.to_ascii_lowercase()
        });
        if origin != "*" && host != Some(true) {
            return Err(format!(
                "\"{origin}\" is not an origin: write it like \"https://app.example.com\", in \
                 small letters and without a path, or \"*\" for every one"
            ));
        }
    }
    Ok(origins)
}

/// A list of limits in full, such as `requests=200/2s`.
pub(super) fn limits(found: &Found<'_>) -> Read<Vec<LimitSpec>> {
    let read = |text: String| {
        text.parse()
            .map_err(|error: llmq_core::ParseLimitError| error.to_string())
    };
    texts(found)?.into_iter().map(read).collect()
}

pub(super) fn networks(found: &Found<'_>) -> Read<Vec<Network>> {
    let read = |text: String| {
        network(&text)
            .ok_or_else(|| format!("{text:?} is not a network: write it like \"10.0.0.0/8\""))
    };
    texts(found)?.into_iter().map(read).collect()
}

fn network(text: &str) -> Option<Network> {
    let (address, prefix) = match text.split_once('/') {
        Some((address, prefix)) => (address, Some(prefix)),
        None => (text, None),
    };
    let address: IpAddr = address.parse().ok()?;
    let longest = if address.is_ipv4() { 32 } else { 128 };
    let prefix = match prefix {
        Some(prefix) => prefix.parse().ok().filter(|prefix| *prefix <= longest)?,
        None => longest,
    };
    Some(Network { address, prefix })
}

/// A value as text without its quotes.
fn plain(found: &Found<'_>) -> String {
    match found.value.as_ref() {
        Value::String(text) => text.trim().to_owned(),
        other => other.to_string(),
    }
}
