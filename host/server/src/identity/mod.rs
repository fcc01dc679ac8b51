//! Users of an identity provider: callers who come with a signed JWT (RFC 7519) of an organisation's provider instead of a token of this
//! host.
//!
//! [`verifying`] decides, without clock and network, what a JWT proves, by the [`keys`] of its provider and by its [`settings`].
//! [`providers`] keeps the keys fresh, and remembers what was proved, so that most requests cost a lookup. The broker
//! ([`Access::prove_as`](millrace_broker::Access::prove_as)) makes a caller of it.

pub(crate) mod bounds;
mod claims;
mod fetching;
mod jwt;
mod keys;
mod patterns;
mod providers;
mod refusal;
mod remembered;
pub(crate) mod settings;
mod verifying;

pub(crate) use providers::{Identified, Identity};
