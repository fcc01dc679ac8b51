//! A broker on the memory engine, with handwritten handlers.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use millrace_broker::handler::{
    BatchHandler, Decision, Failure, FailureHandler, HTTP_BODY_PARTS_MAX, HttpAnswer, HttpHandler,
    HttpPart, HttpRequest, LiveConfig, LoadRequest, ModuleHost, PartitionHandler, RouteAccess,
};
use millrace_broker::{
    AdmitError, Broker, BrokerLimits, CallError, Caller, DeadLetter, DeadLetterQuery, FetchRequest,
    GuestLine, Interface, ModuleFacts, ModulePolicy, NewMessage, NewTopic, PartitionStatus, Placed,
    Session, Uploader,
};
use millrace_engine::{Engine, MemoryEngine};
use millrace_model::bounds::MESSAGE_HEADERS_MAX;
use millrace_model::columns::{Detail, OutcomeCode};
use millrace_model::processor::{Grants, RetryPolicy};
use millrace_model::{
    Answer, BatchBuilder, Clock, ColumnBatch, Digest, Durability, Header, Message, Offset,
    PartitionId, ProcessorName, ProcessorSpec, RecordBatch, SystemClock, Timestamp, TopicName,
};
use parking_lot::Mutex;
use sha2::{Digest as _, Sha256};
use tokio::sync::{Semaphore, mpsc, oneshot};

/// A handler's answer for one message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Say {
    Ack,
    /// Emits the message unchanged to the default output.
    Pass,
    Retry(Option<u64>),
    Reject(&'static str),
    /// Fails the whole call.
    Fail(CallError),
}

pub(crate) fn trap() -> Say {
    Say::Fail(CallError::Trap {
        message: "unreachable".to_owned(),
        backtrace: "poison\nprocess".to_owned(),
    })
}

/// A handler that decides message by message.
pub(crate) struct PerMessage<F>(F);

pub(crate) fn per_message<F>(answer: F) -> PerMessage<F>
where
    F: Fn(&ColumnBatch, usize) -> Say + Send + Sync + 'static,
{
    PerMessage(answer)
}

#[async_trait]
impl<F> BatchHandler for PerMessage<F>
where
    F: Fn(&ColumnBatch, usize) -> Say + Send + Sync + 'static,
{
    async fn process(&self, batch: &Arc<ColumnBatch>) -> Result<Answer, CallError> {
        let mut answer = Answer::default();
        for message in 0..batch.len() {
            let mut detail = |class: &str, after_ms| {
                answer.details.push(Detail {
                    message: message as u32,
                    after_ms,
                    class: class.to_owned(),
                    reason: format!("said {class}"),
                });
            };
            let outcome = match (self.0)(batch, message) {
                Say::Ack => OutcomeCode::Ack,
                Say::Pass => {
                    answer.sources.push(message as u32);
                    OutcomeCode::Emit
                }
                Say::Retry(after_ms) => {
                    detail("busy", after_ms);
                    OutcomeCode::Retry
                }
                Say::Reject(class) => {
                    detail(class, None);
                    OutcomeCode::Reject
                }
                Say::Fail(error) => return Err(error),
            };
            answer.outcomes.push(outcome as u8);
        }
        Ok(answer)
    }
}

/// A handler that answers whole batches.
pub(crate) struct Whole<F>(F);

pub(crate) fn whole<F>(answer: F) -> Whole<F>
where
    F: Fn(&ColumnBatch) -> Result<Answer, CallError> + Send + Sync + 'static,
{
    Whole(answer)
}

#[async_trait]
impl<F> BatchHandler for Whole<F>
where
    F: Fn(&ColumnBatch) -> Result<Answer, CallError> + Send + Sync + 'static,
{
    async fn process(&self, batch: &Arc<ColumnBatch>) -> Result<Answer, CallError> {
        (self.0)(batch)
    }
}

pub(crate) struct Decide<F>(F);

pub(crate) fn decide<F>(answer: F) -> Decide<F>
where
    F: Fn(&[Failure], &ColumnBatch) -> Result<Vec<Decision>, CallError> + Send + Sync + 'static,
{
    Decide(answer)
}

#[async_trait]
impl<F> FailureHandler for Decide<F>
where
    F: Fn(&[Failure], &ColumnBatch) -> Result<Vec<Decision>, CallError> + Send + Sync + 'static,
{
    async fn handle(
        &self,
        failures: &[Failure],
        messages: &Arc<ColumnBatch>,
    ) -> Result<Vec<Decision>, CallError> {
        (self.0)(failures, messages)
    }
}

pub(crate) struct Assign<F>(F);

pub(crate) fn assign<F>(answer: F) -> Assign<F>
where
    F: Fn(u32, &ColumnBatch) -> Result<Vec<u32>, CallError> + Send + Sync + 'static,
{
    Assign(answer)
}

#[async_trait]
impl<F> PartitionHandler for Assign<F>
where
    F: Fn(u32, &ColumnBatch) -> Result<Vec<u32>, CallError> + Send + Sync + 'static,
{
    async fn assign(
        &self,
        partitions: u32,
        messages: &Arc<ColumnBatch>,
    ) -> Result<Vec<u32>, CallError> {
        (self.0)(partitions, messages)
    }
}

#[derive(Clone)]
pub(crate) enum Export {
    Processor(Arc<dyn BatchHandler>),
    Partitioner(Arc<dyn PartitionHandler>),
    ErrorHandler(Arc<dyn FailureHandler>),
    /// Answers no request; what it may do besides is kept for the test.
    Route,
    /// Answers requests.
    Page(Arc<Page>),
    /// Exports a processor, but fails to load.
    Broken,
    /// Exports a processor and an error handler, and loads when it may.
    Slow(Arc<SlowLoad>),
    /// Like a module whose start never ends, either when it is uploaded or when it is loaded.
    Stuck {
        at_upload: bool,
    },
}

/// A processor whose loads begin, and wait until they may end.
pub(crate) struct SlowLoad {
    handler: Arc<dyn BatchHandler>,
    begun: Semaphore,
    may_end: Semaphore,
    /// What its next loads end with.
    pub(crate) load_errors: Mutex<Vec<AdmitError>>,
}

impl SlowLoad {
    pub(crate) fn of(handler: impl BatchHandler) -> Arc<Self> {
        Arc::new(Self {
            handler: Arc::new(handler),
            begun: Semaphore::new(0),
            may_end: Semaphore::new(0),
            load_errors: Mutex::default(),
        })
    }

    async fn load(&self) -> Result<Arc<dyn BatchHandler>, AdmitError> {
        self.begun.add_permits(1);
        self.may_end.acquire().await.unwrap().forget();
        match self.load_errors.lock().pop() {
            Some(error) => Err(error),
            None => Ok(Arc::clone(&self.handler)),
        }
    }

    /// Waits until another load has begun.
    pub(crate) async fn begins(&self) {
        self.begun.acquire().await.unwrap().forget();
    }

    /// Lets a load end.
    pub(crate) fn end(&self) {
        self.may_end.add_permits(1);
    }

    /// How many hold what was loaded.
    pub(crate) fn held(&self) -> usize {
        Arc::strong_count(&self.handler) - 1
    }
}

/// Answers every request with its text.
pub(crate) struct Page {
    text: &'static str,
    /// What its next loads end with.
    pub(crate) load_errors: Mutex<Vec<AdmitError>>,
    /// How its calls fail.
    pub(crate) failure: Mutex<Option<CallError>>,
    /// Taken by each load that has begun.
    pub(crate) may_load: Semaphore,
    pub(crate) begun: AtomicUsize,
}

impl Page {
    pub(crate) fn of(text: &'static str) -> Arc<Self> {
        let page = Self::slow(text);
        page.may_load.add_permits(1_000);
        page
    }

    /// Loads when it may.
    pub(crate) fn slow(text: &'static str) -> Arc<Self> {
        Arc::new(Self {
            text,
            load_errors: Mutex::default(),
            failure: Mutex::default(),
            may_load: Semaphore::new(0),
            begun: AtomicUsize::new(0),
        })
    }

    async fn load(self: Arc<Self>) -> Result<Arc<dyn HttpHandler>, AdmitError> {
        self.begun.fetch_add(1, Ordering::SeqCst);
        self.may_load.acquire().await.unwrap().forget();
        match self.load_errors.lock().pop() {
            Some(error) => Err(error),
            None => Ok(Arc::new(Shown(Arc::clone(&self)))),
        }
    }
}

/// A loaded page.
struct Shown(Arc<Page>);

#[async_trait]
impl HttpHandler for Shown {
    async fn handle(
        &self,
        _: HttpRequest,
        answer: oneshot::Sender<HttpAnswer>,
    ) -> Result<(), CallError> {
        if let Some(failure) = self.0.failure.lock().clone() {
            return Err(failure);
        }
        let (parts, body) = mpsc::channel(HTTP_BODY_PARTS_MAX);
        let headers = vec![(
            "page".to_owned(),
            Bytes::from_static(self.0.text.as_bytes()),
        )];
        let head = HttpAnswer {
            status: 200,
            headers,
            body,
        };
        let _ = answer.send(head);
        let _ = parts.send(HttpPart::End).await;
        Ok(())
    }
}

/// The machine's clock, set forward or back.
#[derive(Default)]
pub(crate) struct SetClock {
    clock: SystemClock,
    set_ms: AtomicI64,
}

impl SetClock {
    pub(crate) fn step(&self, by_ms: i64) {
        self.set_ms.fetch_add(by_ms, Ordering::SeqCst);
    }
}

impl Clock for SetClock {
    fn wall(&self) -> Timestamp {
        let set_ms = self.set_ms.load(Ordering::SeqCst);
        Timestamp(self.clock.wall().0.saturating_add_signed(set_ms))
    }

    fn monotonic(&self) -> Duration {
        self.clock.monotonic()
    }

    fn thread(&self) -> Duration {
        self.clock.thread()
    }
}

/// Modules whose bytes are their names.
#[derive(Default)]
pub(crate) struct Modules {
    exports: Mutex<HashMap<Digest, Export>>,
    /// Those of which nothing is to be stored any more, each time that it was said.
    pub(crate) forgotten: Mutex<Vec<Digest>>,
    /// The settings that each processor's component was loaded with, by its owner.
    pub(crate) configs: Mutex<HashMap<String, LiveConfig>>,
    /// What the component of each route may do besides answering, by the route's path.
    pub(crate) accesses: Mutex<HashMap<String, Arc<dyn RouteAccess>>>,
}

impl Modules {
    pub(crate) fn know(&self, name: &str, export: Export) {
        self.exports.lock().insert(digest(name), export);
    }

    /// The same exports for another host.
    pub(crate) fn know_all_of(&self, other: &Self) {
        self.exports.lock().clone_from(&other.exports.lock());
    }

    fn export(&self, digest: Digest) -> Result<Export, AdmitError> {
        let export = self.exports.lock().get(&digest).cloned();
        export.ok_or_else(|| AdmitError::NotAComponent("nobody knows it".to_owned()))
    }
}

pub(crate) fn digest(name: &str) -> Digest {
    Digest(Sha256::digest(name).into())
}

#[async_trait]
impl ModuleHost for Modules {
    async fn admit(&self, bytes: Bytes, _: Uploader) -> Result<ModuleFacts, AdmitError> {
        let digest = digest(&String::from_utf8_lossy(&bytes));
        let exports = match self.export(digest)? {
            Export::Stuck { at_upload: true } => std::future::pending().await,
            Export::Processor(_) | Export::Broken | Export::Stuck { .. } => {
                vec![Interface::MessageProcessor]
            }
            Export::Slow(_) => vec![Interface::MessageProcessor, Interface::ErrorHandler],
            Export::Partitioner(_) => vec![Interface::Partitioner],
            Export::ErrorHandler(_) => vec![Interface::ErrorHandler],
            Export::Route | Export::Page(_) => vec![Interface::HttpHandler],
        };
        Ok(ModuleFacts {
            digest,
            byte_count: bytes.len() as u64,
            exports,
            imports: Vec::new(),
            compile_ms: 0,
            waited_ms: 0,
            metadata: Default::default(),
        })
    }

    async fn processor(&self, request: LoadRequest) -> Result<Arc<dyn BatchHandler>, AdmitError> {
        self.configs.lock().insert(request.owner, request.config);
        match self.export(request.digest)? {
            Export::Processor(handler) => Ok(handler),
            Export::Slow(slow) => slow.load().await,
            Export::Stuck { .. } => std::future::pending().await,
            _ => Err(AdmitError::Start("it traps".to_owned())),
        }
    }

    async fn partitioner(
        &self,
        request: LoadRequest,
    ) -> Result<Arc<dyn PartitionHandler>, AdmitError> {
        match self.export(request.digest)? {
            Export::Partitioner(handler) => Ok(handler),
            _ => Err(AdmitError::Start("it traps".to_owned())),
        }
    }

    async fn error_handler(
        &self,
        request: LoadRequest,
    ) -> Result<Arc<dyn FailureHandler>, AdmitError> {
        match self.export(request.digest)? {
            Export::ErrorHandler(handler) => Ok(handler),
            Export::Slow(slow) => {
                slow.load().await?;
                let follow =
                    |failures: &[Failure], _: &_| Ok(vec![Decision::Policy; failures.len()]);
                Ok(Arc::new(decide(follow)))
            }
            _ => Err(AdmitError::Start("it traps".to_owned())),
        }
    }

    async fn http_handler(&self, request: LoadRequest) -> Result<Arc<dyn HttpHandler>, AdmitError> {
        match (self.export(request.digest)?, request.access) {
            (Export::Route, Some(access)) => {
                self.accesses.lock().insert(request.owner, access);
                Ok(Arc::new(Silent))
            }
            (Export::Page(page), _) => page.load().await,
            _ => Err(AdmitError::Start("it traps".to_owned())),
        }
    }

    fn forget(&self, digest: Digest) {
        self.forgotten.lock().push(digest);
    }

    fn logs(&self, _processor: &ProcessorName) -> Vec<GuestLine> {
        Vec::new()
    }
}

/// Answers no request.
struct Silent;

#[async_trait]
impl HttpHandler for Silent {
    async fn handle(
        &self,
        _: HttpRequest,
        _: oneshot::Sender<HttpAnswer>,
    ) -> Result<(), CallError> {
        Ok(())
    }
}

pub(crate) fn topic(name: &str) -> TopicName {
    TopicName::parse(name).unwrap()
}

pub(crate) fn processor(name: &str) -> ProcessorName {
    ProcessorName::parse(name).unwrap()
}

pub(crate) fn message(key: &str, value: &str) -> NewMessage {
    let key = (!key.is_empty()).then(|| Bytes::from(key.to_owned()));
    NewMessage {
        partition: None,
        message: Message {
            key,
            value: Some(value.to_owned().into()),
            headers: vec![Header {
                name: "colour".into(),
                value: Some("red".into()),
            }],
            timestamp: Timestamp(77),
        },
        deliver_at: None,
    }
}

pub(crate) fn text(bytes: Option<&[u8]>) -> String {
    String::from_utf8_lossy(bytes.unwrap_or_default()).into_owned()
}

pub(crate) struct Rig {
    pub(crate) broker: Broker,
    pub(crate) session: Session,
    pub(crate) engine: Arc<MemoryEngine>,
    pub(crate) modules: Arc<Modules>,
}

impl Rig {
    /// A rig with topics `in` and `out` of this many partitions.
    pub(crate) async fn start(partitions: u32) -> Self {
        let clock = Arc::new(SystemClock::new());
        let rig = Self::on(MemoryEngine::new(clock), Arc::new(Modules::default())).await;
        rig.topic("in", partitions).await;
        rig.topic("out", partitions).await;
        rig
    }

    /// A broker on existing data, after a host that was killed.
    pub(crate) async fn on(engine: Arc<MemoryEngine>, modules: Arc<Modules>) -> Self {
        Self::by(Arc::new(SystemClock::new()), engine, modules).await
    }

    /// A broker with its own clock.
    pub(crate) async fn by(
        clock: Arc<dyn Clock>,
        engine: Arc<MemoryEngine>,
        modules: Arc<Modules>,
    ) -> Self {
        Self::within(clock, engine, modules, BrokerLimits::default()).await
    }

    pub(crate) async fn within(
        clock: Arc<dyn Clock>,
        engine: Arc<MemoryEngine>,
        modules: Arc<Modules>,
        limits: BrokerLimits,
    ) -> Self {
        Self::beside(clock, engine.restarted(), modules, limits).await
    }

    /// A broker as another host, beside the existing ones.
    pub(crate) async fn beside(
        clock: Arc<dyn Clock>,
        engine: Arc<MemoryEngine>,
        modules: Arc<Modules>,
        limits: BrokerLimits,
    ) -> Self {
        Self::under(ModulePolicy::default(), clock, engine, modules, limits).await
    }

    /// A broker with its own rules for modules.
    pub(crate) async fn under(
        policy: ModulePolicy,
        clock: Arc<dyn Clock>,
        engine: Arc<MemoryEngine>,
        modules: Arc<Modules>,
        limits: BrokerLimits,
    ) -> Self {
        let (e, m) = (Arc::clone(&engine), Arc::clone(&modules));
        let broker = Broker::start_under(clock, e, m, limits, policy)
            .await
            .unwrap();
        Self {
            session: broker.session(Caller::unnamed()),
            broker,
            engine,
            modules,
        }
    }

    /// The verbs for a caller with this name.
    pub(crate) fn named(&self, name: &str) -> Session {
        self.broker.session(Caller::unnamed().named(name))
    }

    pub(crate) async fn topic(&self, name: &str, partitions: u32) {
        let new = NewTopic {
            name: topic(name),
            partitions,
            durability: Durability::Os,
            partitioner: None,
            settings: Default::default(),
        };
        self.session.catalogue().create_topic(new).await.unwrap();
    }

    pub(crate) async fn upload(&self, name: &str, export: Export) -> Digest {
        self.modules.know(name, export);
        let bytes = Bytes::from(name.to_owned());
        let module = self
            .session
            .catalogue()
            .upload_module(bytes, None)
            .await
            .unwrap();
        module.facts.digest
    }

    pub(crate) async fn upload_handler(&self, name: &str, handler: impl BatchHandler) -> Digest {
        self.upload(name, Export::Processor(Arc::new(handler)))
            .await
    }

    /// Deploys processor `p` from `in` to `out`.
    pub(crate) async fn deploy(&self, spec: ProcessorSpec) {
        self.session
            .processors()
            .deploy(&processor("p"), spec)
            .await
            .unwrap();
    }

    /// A broker whose processor `p` decides message by message.
    pub(crate) async fn deployed(
        partitions: u32,
        change: impl FnOnce(&mut ProcessorSpec),
        decide: impl Fn(&ColumnBatch, usize) -> Say + Send + Sync + 'static,
    ) -> Self {
        let rig = Self::start(partitions).await;
        let module = rig.upload_handler("m", PerMessage(decide)).await;
        let mut spec = spec(module);
        change(&mut spec);
        rig.deploy(spec).await;
        rig
    }

    pub(crate) async fn produce(&self, messages: &[(&str, &str)]) -> Vec<Placed> {
        let messages = messages.iter().map(|(key, value)| message(key, value));
        self.session
            .messages()
            .produce(&topic("in"), messages.collect())
            .await
            .unwrap()
    }

    /// All messages of a topic, partition by partition.
    pub(crate) async fn messages(&self, name: &str) -> Vec<Message> {
        let mut messages = Vec::new();
        let partitions = self
            .session
            .catalogue()
            .topic(&topic(name))
            .unwrap()
            .spec
            .partitions;
        for partition in 0..partitions {
            let mut from = Offset(0);
            loop {
                let request = FetchRequest {
                    topic: topic(name),
                    partition: PartitionId(partition),
                    from,
                    messages_max: 100_000,
                    bytes_max: 64 << 20,
                    wait: Duration::ZERO,
                };
                let fetched = self.session.messages().fetch(request).await.unwrap();
                if fetched.messages.is_empty() {
                    break;
                }
                from = fetched.next;
                messages.extend(fetched.messages.into_iter().map(|f| f.message));
            }
        }
        messages
    }

    pub(crate) async fn values(&self, name: &str) -> Vec<String> {
        let messages = self.messages(name).await;
        messages.iter().map(|m| text(m.value.as_deref())).collect()
    }

    /// Dead letters of `p` that were not redriven.
    pub(crate) async fn letters(&self) -> Vec<DeadLetter> {
        let name = processor("p");
        let page = self
            .session
            .dead_letters()
            .dead_letters(&name, DeadLetterQuery::default());
        page.await.unwrap().letters
    }

    /// Waits until the topic holds these values, in any order.
    pub(crate) async fn hold(&self, name: &str, values: &[&str]) {
        let mut wanted: Vec<String> = values.iter().map(|&v| v.to_owned()).collect();
        wanted.sort();
        let mut held = Vec::new();
        for _ in 0..5_000 {
            held = self.values(name).await;
            held.sort();
            if held == wanted {
                return;
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        panic!("{name} holds {held:?}, not {wanted:?}");
    }

    /// Waits until a partition of `p` meets the condition; returns the status.
    pub(crate) async fn until(
        &self,
        what: impl Fn(&[PartitionStatus]) -> bool,
    ) -> Vec<PartitionStatus> {
        let mut last = Vec::new();
        for _ in 0..5_000 {
            if let Some(status) = self.session.processors().processor(&processor("p")).await {
                last = status.partitions;
                if what(&last) {
                    return last;
                }
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        panic!("it never came to that: {last:?}");
    }

    /// Waits until no work is left.
    pub(crate) async fn settled(&self) {
        self.until(|all| all.iter().all(|one| one.lag == 0 && one.parked == 0))
            .await;
    }

    pub(crate) fn engine(&self) -> Arc<dyn Engine> {
        Arc::clone(&self.engine) as Arc<dyn Engine>
    }
}

/// A specification from `in` to `out` with quick retries.
pub(crate) fn spec(module: Digest) -> ProcessorSpec {
    ProcessorSpec {
        topics: vec![topic("in")],
        module,
        output: Some(topic("out")),
        grants: Grants::default(),
        order: Default::default(),
        batch: Default::default(),
        retry: RetryPolicy {
            attempts_max: 3,
            delay_first_ms: 2,
            delay_max_ms: 10,
        },
        error_handler: None,
        limits: Default::default(),
        breaker: Default::default(),
        dead_letters: Default::default(),
        auto_rollback: false,
        auto_redrive: false,
        hops_max: None,
    }
}

/// A batch with a valid checksum whose last record is unreadable.
pub(crate) fn unreadable_after(values: &[&str]) -> RecordBatch {
    let mut builder = BatchBuilder::with_capacity(0);
    for value in values {
        builder.push(&message("k", value).message);
    }
    let headers = std::iter::repeat_n((&b"h"[..], None), 2 * MESSAGE_HEADERS_MAX);
    let count = 2 * MESSAGE_HEADERS_MAX;
    builder.push_parts(Timestamp(77), None, None, count, headers);
    builder.finish().unwrap()
}
