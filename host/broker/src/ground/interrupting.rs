//! Ends all guest calls when the host stops. All calls and loads of modules go through here, and end with [`CallError::Interrupted`] or
//! [`AdmitError::Stopping`] once the host has no more time for them. Dropping a call's future interrupts the guest, without its
//! cooperation.
//!
//! Calls whose results are no longer needed while the host runs are ended by the worker, see [`pointless`](crate::dispatch::worker).

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use millrace_engine::state::StateAttempt;
use millrace_model::{Answer, ColumnBatch, Digest, GuestLimits, ProcessorName, RoutePath};
use tokio::sync::{oneshot, watch};

use crate::handler::{
    AdmitError, BatchHandler, CallError, Called, Compiling, Decision, Failure, FailureHandler,
    GuestLine, HttpAnswer, HttpHandler, HttpRequest, LoadRequest, ModuleFacts, ModuleHost,
    PartitionHandler, Uploader,
};

/// The signal that ends all calls.
#[derive(Clone, Debug)]
pub(crate) struct Interrupt(watch::Sender<bool>);

impl Default for Interrupt {
    fn default() -> Self {
        Self(watch::Sender::new(false))
    }
}

impl Interrupt {
    /// From now on no guest is called; running calls are interrupted.
    pub(crate) fn all(&self) {
        self.0.send_replace(true);
    }

    /// Whether the signal was given.
    pub(crate) fn is_given(&self) -> bool {
        *self.0.borrow()
    }

    /// The result of `work`; `None` if it was interrupted, or began too late.
    async fn unless<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        let mut interrupted = self.0.subscribe();
        if *interrupted.borrow() {
            return None;
        }
        tokio::select! {
            biased;
            done = work => Some(done),
            _ = interrupted.wait_for(|interrupted| *interrupted) => None,
        }
    }

    async fn call<T>(
        &self,
        work: impl Future<Output = Result<T, CallError>>,
    ) -> Result<T, CallError> {
        let done = self.unless(work).await;
        done.unwrap_or(Err(CallError::Interrupted))
    }

    async fn load<T>(
        &self,
        work: impl Future<Output = Result<T, AdmitError>>,
    ) -> Result<T, AdmitError> {
        let done = self.unless(work).await;
        done.unwrap_or(Err(AdmitError::Stopping))
    }
}

/// A handler whose calls can be interrupted.
pub(crate) struct Interruptible<T: ?Sized> {
    inner: Arc<T>,
    interrupt: Interrupt,
}

impl<T: ?Sized> Interruptible<T> {
    pub(crate) fn new(inner: Arc<T>, interrupt: Interrupt) -> Arc<Self> {
        Arc::new(Self { inner, interrupt })
    }

    fn over<U: ?Sized>(&self, inner: Arc<U>) -> Arc<Interruptible<U>> {
        Interruptible::new(inner, self.interrupt.clone())
    }
}

#[async_trait]
impl ModuleHost for Interruptible<dyn ModuleHost> {
    async fn admit(&self, bytes: Bytes, uploader: Uploader) -> Result<ModuleFacts, AdmitError> {
        let admitted = self.inner.admit(bytes, uploader);
        self.interrupt.load(admitted).await
    }

    fn limits(&self) -> GuestLimits {
        self.inner.limits()
    }

    fn compiling(&self, digest: Digest) -> Option<Compiling> {
        self.inner.compiling(digest)
    }

    async fn processor(&self, request: LoadRequest) -> Result<Arc<dyn BatchHandler>, AdmitError> {
        let loaded = self.interrupt.load(self.inner.processor(request)).await?;
        Ok(self.over(loaded))
    }

    async fn partitioner(
        &self,
        request: LoadRequest,
    ) -> Result<Arc<dyn PartitionHandler>, AdmitError> {
        let loaded = self.interrupt.load(self.inner.partitioner(request)).await?;
        Ok(self.over(loaded))
    }

    async fn error_handler(
        &self,
        request: LoadRequest,
    ) -> Result<Arc<dyn FailureHandler>, AdmitError> {
        let loading = self.inner.error_handler(request);
        let loaded = self.interrupt.load(loading).await?;
        Ok(self.over(loaded))
    }

    async fn http_handler(&self, request: LoadRequest) -> Result<Arc<dyn HttpHandler>, AdmitError> {
        let loading = self.inner.http_handler(request);
        let loaded = self.interrupt.load(loading).await?;
        Ok(self.over(loaded))
    }

    fn forget(&self, digest: Digest) {
        self.inner.forget(digest);
    }

    fn logs(&self, processor: &ProcessorName) -> Vec<GuestLine> {
        self.inner.logs(processor)
    }

    fn lines_dropped(&self, processor: &ProcessorName) -> u64 {
        self.inner.lines_dropped(processor)
    }

    fn forget_logs(&self, processor: &ProcessorName) {
        self.inner.forget_logs(processor);
    }

    fn route_logs(&self, route: &RoutePath) -> Vec<GuestLine> {
        self.inner.route_logs(route)
    }

    fn forget_route_logs(&self, route: &RoutePath) {
        self.inner.forget_route_logs(route);
    }
}

#[async_trait]
impl HttpHandler for Interruptible<dyn HttpHandler> {
    async fn handle(
        &self,
        request: HttpRequest,
        answer: oneshot::Sender<HttpAnswer>,
    ) -> Result<(), CallError> {
        self.interrupt
            .call(self.inner.handle(request, answer))
            .await
    }
}

#[async_trait]
impl BatchHandler for Interruptible<dyn BatchHandler> {
    async fn process(&self, batch: &Arc<ColumnBatch>) -> Result<Answer, CallError> {
        self.interrupt.call(self.inner.process(batch)).await
    }

    fn uses_state(&self) -> bool {
        self.inner.uses_state()
    }

    async fn process_with_state(
        &self,
        batch: &Arc<ColumnBatch>,
        state: Box<StateAttempt>,
    ) -> Result<(Answer, Box<StateAttempt>), CallError> {
        let call = self.inner.process_with_state(batch, state);
        self.interrupt.call(call).await
    }

    async fn call(&self, batch: &Arc<ColumnBatch>, state: Option<Box<StateAttempt>>) -> Called {
        let called = self.interrupt.unless(self.inner.call(batch, state)).await;
        called.unwrap_or(Called {
            outcome: Err(CallError::Interrupted),
            used: None,
        })
    }
}

#[async_trait]
impl PartitionHandler for Interruptible<dyn PartitionHandler> {
    async fn assign(
        &self,
        partitions: u32,
        messages: &Arc<ColumnBatch>,
    ) -> Result<Vec<u32>, CallError> {
        let call = self.inner.assign(partitions, messages);
        self.interrupt.call(call).await
    }
}

#[async_trait]
impl FailureHandler for Interruptible<dyn FailureHandler> {
    async fn handle(
        &self,
        failures: &[Failure],
        messages: &Arc<ColumnBatch>,
    ) -> Result<Vec<Decision>, CallError> {
        let call = self.inner.handle(failures, messages);
        self.interrupt.call(call).await
    }
}
