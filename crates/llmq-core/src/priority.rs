use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// How urgent a job is: 0 to 100, higher goes first.
///
/// Four of the numbers have names: `low` 30, `normal` 50, `high` 70, `critical` 90.
///
/// ```
/// use llmq_core::Priority;
/// assert!(Priority::HIGH > Priority::NORMAL);
/// assert_eq!("high".parse(), Ok(Priority::HIGH));
/// assert_eq!("55".parse::<Priority>().unwrap().value(), 55);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Priority(u8);

impl Priority {
    /// 30: batches and `llmq run`.
    pub const LOW: Self = Self(30);
    /// 50: accepted jobs.
    pub const NORMAL: Self = Self(50);
    /// 70: interactive calls.
    pub const HIGH: Self = Self(70);
    /// 90: before everything else.
    pub const CRITICAL: Self = Self(90);

    const NAMES: [(&'static str, Self); 4] = [
        ("low", Self::LOW),
        ("normal", Self::NORMAL),
        ("high", Self::HIGH),
        ("critical", Self::CRITICAL),
    ];

    /// A priority from its number; `None` above 100.
    #[must_use]
    pub fn new(value: u8) -> Option<Self> {
        (value <= 100).then_some(Self(value))
    }

    /// The number, 0 to 100.
    #[must_use]
    pub fn value(self) -> u8 {
        self.0
    }

    /// The next named priority above this one, but never `critical`: what a line that has
    /// waited long rises to.
    ///
    /// ```
    /// use llmq_core::Priority;
    /// assert_eq!(Priority::LOW.raised(), Priority::NORMAL);
    /// assert_eq!(Priority::HIGH.raised(), Priority::HIGH);
    /// ```
    #[must_use]
    pub fn raised(self) -> Self {
        [Self::LOW, Self::NORMAL, Self::HIGH]
            .into_iter()
            .find(|named| *named > self)
            .unwrap_or(self)
    }
}

impl Default for Priority {
    fn default() -> Self {
        Self::NORMAL
    }
}

impl fmt::Display for Priority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match Self::NAMES.iter().find(|(_, named)| named == self) {
            Some((name, _)) => f.write_str(name),
            None => write!(f, "{}", self.0),
        }
    }
}

/// The text is no priority.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a priority: use low, normal, high, critical or a number from 0 to 100")]
pub struct ParsePriorityError(String);

impl FromStr for Priority {
    type Err = ParsePriorityError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if let Some((_, named)) = Self::NAMES.iter().find(|(name, _)| *name == text) {
            return Ok(*named);
        }
        text.parse()
            .ok()
            .and_then(Self::new)
            .ok_or_else(|| ParsePriorityError(text.to_owned()))
    }
}

impl Serialize for Priority {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u8(self.0)
    }
}

impl<'de> Deserialize<'de> for Priority {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Written {
            Number(i64),
            Name(String),
        }
        let text = match Written::deserialize(deserializer)? {
            Written::Number(number) => number.to_string(),
            Written::Name(name) => name,
        };
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers_read_back() {
        for text in ["low", "normal", "high", "critical", "0", "100", "55"] {
            assert_eq!(text.parse::<Priority>().unwrap().to_string(), text);
        }
        assert_eq!("70".parse(), Ok(Priority::HIGH));
        assert_eq!(
            serde_json::from_str::<Priority>("\"low\"").unwrap(),
            Priority::LOW
        );
        assert_eq!(serde_json::from_str::<Priority>("42").unwrap().value(), 42);
    }

    #[test]
    fn what_is_out_of_range_is_refused() {
        for text in ["101", "-1", "urgent", ""] {
            assert!(text.parse::<Priority>().is_err(), "{text}");
        }
        assert!(serde_json::from_str::<Priority>("300").is_err());
    }

    #[test]
    fn waiting_never_makes_critical() {
        for value in 0..=100 {
            let priority = Priority::new(value).unwrap();
            let raised = priority.raised();
            assert!(raised >= priority);
            assert!(raised < Priority::CRITICAL || raised == priority);
        }
        assert_eq!(Priority::new(0).unwrap().raised(), Priority::LOW);
    }
}
