//! The development loop: `new` writes a project, `build` makes a component of it, `test` runs it against samples, `dev` runs it on a
//! host and swaps it whenever a source is saved.
//!
//! In the order of a project's life: [`carried`] has what the binary brings along, [`project`] reads `millrace.toml`, [`toolchain`] runs
//! the language's tools, [`build`] makes the component, [`samples`] reads messages, [`requests`] requests, and both with expectations, [`rehearse`]
//! calls the component with messages and [`answer`] with requests, [`compare`] finds differences, [`watch`] notices saved files.

mod answer;
pub(super) mod build;
mod carried;
mod compare;
pub(super) mod dev;
pub(super) mod new;
mod project;
mod rehearse;
mod requests;
mod samples;
pub(super) mod test;
mod toolchain;
mod watch;
