//! Principals: who may call, what each may do, and the tokens, passwords and identities that prove it. The catalogue has one entry for each
//! principal; every host
//! of a store knows them all.

pub(crate) mod attempts;
pub(crate) mod book;
pub(crate) mod checking;
pub(crate) mod error;
pub(crate) mod first;
pub(crate) mod handle;
pub(crate) mod identities;
pub(crate) mod keeping;
pub(crate) mod passwords;
pub(crate) mod presented;
pub(crate) mod proving;
pub(crate) mod scram;
pub(crate) mod secret;
pub(crate) mod tokens;
pub(crate) mod verifying;
