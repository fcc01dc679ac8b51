//! Delayed messages: accepted with a time of delivery, stored with their partition, and in the
//! topic from that time on.

pub(crate) mod agenda;
pub(crate) mod cancelling;
pub(crate) mod delayed;
pub(crate) mod delivering;
pub(crate) mod moving;
pub(crate) mod stored;
