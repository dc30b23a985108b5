/// A queue: the line in which calls for one public model name wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct QueueId(pub(crate) u32);

/// An upstream: one provider account, endpoint and provider model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct UpstreamId(pub(crate) u32);

/// A limit, whoever shares it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LimitId(pub(crate) u32);

/// A tenant: who a call is charged to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TenantId(pub(crate) u32);

/// A ticket: one call's place in line. Never used twice within one dispatcher.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TicketId(u64);

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct LaneId(pub(crate) u32);

impl TicketId {
    /// The slot in the upper half would be reused; the sequence number in the lower half is not.
    pub(crate) fn new(slot: usize, seq: u64) -> Self {
        let slot = u64::try_from(slot).unwrap_or(u64::MAX);
        Self((slot << 36) | (seq & ((1 << 36) - 1)))
    }

    pub(crate) fn slot(self) -> usize {
        usize::try_from(self.0 >> 36).unwrap_or(usize::MAX)
    }

    /// The number, for logs.
    #[must_use]
    pub fn value(self) -> u64 {
        self.0
    }
}

macro_rules! index {
    ($($id:ident),*) => {$(
        impl $id {
            pub(crate) fn index(self) -> usize {
                self.0 as usize
            }

            pub(crate) fn at(index: usize) -> Self {
                Self(u32::try_from(index).expect("fewer than 2^32 of a kind are ever made"))
            }
        }
    )*};
}

index!(QueueId, UpstreamId, LimitId, TenantId, LaneId);
