use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// Names one kind of thing in a store, as a UUID of version 7: the order of ids is that in which
/// they were made, to the millisecond.
macro_rules! id {
    ($(#[$meta:meta])* $name:ident) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(Uuid);

        impl $name {
            /// A new one, later than those made before.
            #[must_use]
            #[expect(clippy::new_without_default, reason = "each one is another; none is the default")]
            pub fn new() -> Self {
                Self(Uuid::now_v7())
            }

            /// The one with these bits.
            #[must_use]
            pub const fn from_uuid(id: Uuid) -> Self {
                Self(id)
            }

            /// Its bits.
            #[must_use]
            pub const fn as_uuid(self) -> Uuid {
                self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl FromStr for $name {
            type Err = uuid::Error;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                Uuid::from_str(text).map(Self)
            }
        }
    };
}

id! {
    /// A job. What callers see as `queue_id`.
    JobId
}
id! {
    /// A batch of jobs.
    BatchId
}
id! {
    /// A file's content.
    FileId
}
id! {
    /// A webhook endpoint.
    EndpointId
}
