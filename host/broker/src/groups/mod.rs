//! Readers outside the host: named consumers and their leases, consumer groups and their positions.

pub(crate) mod consumers;
pub(crate) mod error;
pub(crate) mod handle;
pub(crate) mod kept;
pub(crate) mod leases;
pub(crate) mod position_entry;
pub(crate) mod positions;
pub(crate) mod rights;
pub(crate) mod rules;
pub(crate) mod shapes;
pub(crate) mod stored;
