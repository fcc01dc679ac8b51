//! Makes components for `millrace build`: [`world`] writes the world of a project, [`make`] makes a component of a core module,
//! [`strip`] removes what is not needed at run time, [`surface`] says what a component imports and exports.
//!
//! Works on bytes in memory, without files or processes. It runs on a developer's machine, on the developer's own modules: the host
//! examines every upload itself and trusts nothing that was done here.

#![forbid(unsafe_code)]

mod make;
mod plain;
mod strip;
mod surface;
mod wasi;
mod world;

pub use make::{Made, MakeError, Making, make};
pub use strip::{NotWasm, stripped};
pub use surface::{Surface, surface};
pub use wasi::{WASI, needs_wasi};
pub use world::{Contract, Kind, UnknownImport, WORLD, world};
