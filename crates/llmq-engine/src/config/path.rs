use std::fmt;

/// The way to a setting: as people read it, and as an environment variable.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct KeyPath {
    shown: String,
    variable: String,
}

/// Variables with a name of their own beside the one that follows from their path.
const ALIASES: [(&str, &str); 2] = [
    ("quota.daily_request_limit", "LLMQ_DAILY_REQUEST_LIMIT"),
    ("quota.pause_duration_hours", "LLMQ_PAUSE_DURATION_HOURS"),
];

impl KeyPath {
    pub(super) fn child(&self, key: &str) -> Self {
        let dot = if self.shown.is_empty() { "" } else { "." };
        let bare = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-';
        let shown = if !key.is_empty() && key.bytes().all(bare) {
            format!("{}{dot}{key}", self.shown)
        } else {
            format!("{}{dot}{key:?}", self.shown)
        };
        Self {
            shown,
            variable: self.variable_child(key),
        }
    }

    pub(super) fn index(&self, index: usize) -> Self {
        Self {
            shown: format!("{}[{index}]", self.shown),
            variable: self.variable_child(&index.to_string()),
        }
    }

    /// The names under which the environment may hold it, the shorter one first.
    pub(super) fn variables(&self) -> impl Iterator<Item = &str> {
        let alias = ALIASES.iter().find(|(path, _)| *path == self.shown);
        alias
            .map(|(_, name)| *name)
            .into_iter()
            .chain(std::iter::once(self.variable.as_str()))
    }

    pub(super) fn as_str(&self) -> &str {
        &self.shown
    }

    fn variable_child(&self, key: &str) -> String {
        let start = if self.variable.is_empty() {
            "LLMQ"
        } else {
            &self.variable
        };
        let word = |c: char| {
            if c.is_ascii_alphanumeric() {
                c.to_ascii_uppercase()
            } else {
                '_'
            }
        };
        format!("{start}_{}", key.chars().map(word).collect::<String>())
    }
}

impl fmt::Display for KeyPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shown)
    }
}
