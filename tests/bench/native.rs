//! A module host that runs one module natively, to compare whole paths.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use millrace_broker::handler::{
    AdmitError, BatchHandler, CallError, FailureHandler, GuestLine, LoadRequest, ModuleFacts,
    ModuleHost, PartitionHandler, Uploader,
};
use millrace_model::columns::OutcomeCode;
use millrace_model::{Answer, ColumnBatch, Digest, ProcessorName};
use millrace_wasm::WasmHost;

/// Admits modules like the real host; every processor is [`Upper`], whatever its module.
pub(crate) struct NativeModules(pub(crate) Arc<WasmHost>);

#[async_trait]
impl ModuleHost for NativeModules {
    async fn admit(&self, bytes: Bytes, uploader: Uploader) -> Result<ModuleFacts, AdmitError> {
        self.0.admit(bytes, uploader).await
    }

    async fn processor(&self, _: LoadRequest) -> Result<Arc<dyn BatchHandler>, AdmitError> {
        Ok(Arc::new(Upper))
    }

    async fn partitioner(
        &self,
        request: LoadRequest,
    ) -> Result<Arc<dyn PartitionHandler>, AdmitError> {
        self.0.partitioner(request).await
    }

    async fn error_handler(
        &self,
        request: LoadRequest,
    ) -> Result<Arc<dyn FailureHandler>, AdmitError> {
        self.0.error_handler(request).await
    }

    fn forget(&self, digest: Digest) {
        self.0.forget(digest);
    }

    fn logs(&self, processor: &ProcessorName) -> Vec<GuestLine> {
        self.0.logs(processor)
    }
}

/// The guest `uppercase`, written natively and as efficiently as possible.
struct Upper;

#[async_trait]
impl BatchHandler for Upper {
    async fn process(&self, batch: &Arc<ColumnBatch>) -> Result<Answer, CallError> {
        let base = batch.data.len() as u32;
        let mut answer = Answer {
            outcomes: vec![OutcomeCode::Emit as u8; batch.len()],
            sources: (0..batch.len() as u32).collect(),
            data: Vec::with_capacity(batch.data.len()),
            ..Answer::default()
        };
        for message in 0..batch.len() {
            let value = batch.value(message).unwrap_or_default();
            answer
                .values
                .extend([base + answer.data.len() as u32, value.len() as u32]);
            answer.data.extend(value.iter().map(u8::to_ascii_uppercase));
        }
        Ok(answer)
    }
}
