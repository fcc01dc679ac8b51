//! The catalogue: what exists. Topics and modules are made, changed and deleted here, and every room's changes of entries are decided here.

pub(crate) mod deciding;
pub(crate) mod deployed;
pub(crate) mod entries;
pub(crate) mod growth;
pub(crate) mod handle;
pub(crate) mod left_behind;
pub(crate) mod lifetime;
pub(crate) mod modules;
pub(crate) mod topics;
pub(crate) mod unknown;
pub(crate) mod way_back;
