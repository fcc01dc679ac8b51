//! What every room uses: names of headers and of processors' own topics, columns, packing,
//! partitioners, the rules of chains, tasks, the caller, and the signal that ends all calls.

pub(crate) mod backoff;
pub(crate) mod caller;
pub(crate) mod chains;
pub(crate) mod columns;
pub(crate) mod headers;
pub(crate) mod interrupting;
pub(crate) mod keys;
pub(crate) mod meters;
pub(crate) mod notes;
pub(crate) mod own_topics;
pub(crate) mod packing;
pub(crate) mod partitioner;
pub(crate) mod planted;
pub(crate) mod standing;
pub(crate) mod tasks;
pub(crate) mod text;
pub(crate) mod verbs;
