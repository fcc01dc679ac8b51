//! What a worker's first commit rests on, where there are other hosts: that the processor is still deployed as this one knows it. Whoever emptied
//! its state, or deleted it, has taken the work from all workers for that moment; one whose host has not heard of it must not go on.

use millrace_engine::{EntryKind, Expectation};
use millrace_model::Processor;

use super::{Context, Trouble};
use crate::dispatch::Live;

/// What is to be expected; nothing on the only host.
pub(super) fn expected(context: &Context, live: &Live) -> Result<Option<Expectation>, Trouble> {
    if context.hosts.are_one() {
        return Ok(None);
    }
    let (kind, name) = (EntryKind::Processor, live.processor.as_str());
    let entry = context.engine.entry(kind, name);
    let value = entry.as_ref().map(|entry| &entry.value);
    let processor = value.and_then(|value| serde_json::from_slice::<Processor>(value).ok());
    match processor.is_some_and(|processor| processor.current == live.revision) {
        true => Ok(Some(Expectation::entry(kind, name, entry.as_ref()))),
        false => Err(Trouble::Wait(
            "this host does not run yet what is deployed".to_owned(),
        )),
    }
}
