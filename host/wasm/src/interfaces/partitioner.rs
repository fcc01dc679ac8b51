//! `partitioner`: messages in, one partition for each out.

use std::sync::Arc;

use async_trait::async_trait;
use millrace_broker::handler::{CallError, Interface, PartitionHandler};
use millrace_model::ColumnBatch;

use super::BatchColumns;
use crate::call::{GuestCall, Returned};
use crate::pool::{Guest, Pool};

type Params<'a> = (u32, BatchColumns<'a>);
type Return = (Vec<u32>,);

/// One call of `assign`.
pub(crate) struct Assign {
    pub(crate) partitions: u32,
    pub(crate) messages: Arc<ColumnBatch>,
}

impl GuestCall for Assign {
    type Output = Vec<u32>;
    const INTERFACE: Interface = Interface::Partitioner;
    const FUNCTION: &'static str = "assign";

    fn check(guest: &Guest) -> wasmtime::Result<()> {
        guest
            .function
            .typed::<Params<'_>, Return>(&guest.store)
            .map(drop)
    }

    async fn make(self, guest: &mut Guest) -> wasmtime::Result<Returned<Vec<u32>>> {
        let function = guest.function.typed::<Params<'_>, Return>(&guest.store)?;
        let params = (self.partitions, BatchColumns::of(&self.messages));
        let (assigned,) = function.call_async(&mut guest.store, params).await?;
        Ok(Returned::Answer(assigned))
    }
}

/// A module in the form of the broker's partitioner.
pub(crate) struct Partitioner(pub(crate) Arc<Pool>);

#[async_trait]
impl PartitionHandler for Partitioner {
    async fn assign(
        &self,
        partitions: u32,
        messages: &Arc<ColumnBatch>,
    ) -> Result<Vec<u32>, CallError> {
        let messages = Arc::clone(messages);
        self.0
            .call(Assign {
                partitions,
                messages,
            })
            .await
    }
}
