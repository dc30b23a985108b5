use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

/// Where a store lies: `sqlite:PATH`, or `memory:` for one that ends with the process.
///
/// ```
/// use llmq_store_sqlite::Place;
/// assert_eq!("sqlite:llmq.db".parse(), Ok(Place::File("llmq.db".into())));
/// assert_eq!("sqlite:///var/lib/llmq.db".parse(), Ok(Place::File("/var/lib/llmq.db".into())));
/// assert_eq!("memory:".parse(), Ok(Place::Memory));
/// assert!("sqlite:".parse::<Place>().is_err());
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// A file, made if there is none.
    File(PathBuf),
    /// Nowhere: what is recorded ends with the process.
    Memory,
}

/// Not the address of an embedded store.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not an embedded store: use sqlite:PATH, such as sqlite:llmq.db, or memory:")]
pub struct ParsePlaceError(String);

impl FromStr for Place {
    type Err = ParsePlaceError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == "memory:" {
            return Ok(Self::Memory);
        }
        let path = text.strip_prefix("sqlite:");
        // Other programs write `sqlite://PATH`.
        let path = path.map(|path| path.strip_prefix("//").unwrap_or(path));
        match path {
            Some(path) if !path.is_empty() => Ok(Self::File(path.into())),
            _ => Err(ParsePlaceError(text.to_owned())),
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "sqlite:{}", path.display()),
            Self::Memory => f.write_str("memory:"),
        }
    }
}
