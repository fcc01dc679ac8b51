//! The catalogue: all topics, modules and processors. Topics and modules are created, changed and
//! deleted here; every room's changes to entries are decided here.

pub(crate) mod admissions;
mod configs;
pub(crate) mod deciding;
pub(crate) mod deployed;
pub(crate) mod entries;
pub(crate) mod growth;
pub(crate) mod handle;
pub(crate) mod left_behind;
pub(crate) mod lifetime;
pub(crate) mod modules;
pub(crate) mod policy;
pub(crate) mod signatures;
pub(crate) mod tags;
pub(crate) mod topics;
pub(crate) mod unknown;
pub(crate) mod way_back;
