//! Prepares a revision: checks its specification, loads its modules, and creates the topics that it
//! owns. Loading needs no lock; the rest belongs to a turn. Nothing takes effect until the
//! catalogue has committed it.

use std::sync::Arc;

use millrace_engine::{CommitError, TopicChange, TopicError};
use millrace_model::bounds::{
    ANSWER_OUTPUT_BYTES_MAX, BATCH_MESSAGES_MAX, PARKED_MESSAGES_MAX, PROCESSOR_BATCH_BYTES_MAX,
    PROCESSOR_HOPS_MAX, PROCESSOR_TOPICS_MAX, RETRY_DELAY_MS_MAX,
};
use millrace_model::{
    Digest, Processor, ProcessorName, ProcessorSpec, Replay, Revision, Timestamp, Topic, TopicName,
    TopicSpec, Trial,
};

use crate::catalogue::deciding::heard_of;
use crate::dispatch::breaker::Back;
use crate::dispatch::input::Input;
use crate::dispatch::live::{Live, OutputTopic, OutputTopics};
use crate::dispatch::prepared::{Prepared, PreparedTrial};
use crate::ground::chains::endless_cycle;
use crate::ground::own_topics::{DEAD_LETTERS_SUFFIX, REDRIVE_SUFFIX, own_name};
use crate::ground::partitioner::PartitionerError;
use crate::ground::planted::planted;
use crate::handler::{Interface, LoadRequest};
use crate::processors::error::{ProcessorError, invalid};
use crate::processors::handle::Processors;
use crate::processors::loaded::{Loaded, Purpose};
use crate::processors::revisions::{kept, voided};
use crate::processors::turns::TurnError;

/// Maximum size of a breaker's window.
const BREAKER_MESSAGES_MAX: u64 = 10_000;
/// Maximum length of the periods of breakers and dead letters.
const DAY_MS: u64 = 24 * 60 * 60 * 1_000;
/// Maximum linger time of a batch.
const LINGER_MS_MAX: u64 = 60_000;

impl Processors {
    /// Prepares the processor's current revision and the one on trial from loaded components.
    /// Creates the topics that the processor owns, once nothing is lacking.
    pub(crate) async fn prepare(
        &self,
        processor: &Processor,
        loaded: &Loaded,
    ) -> Result<Prepared, TurnError> {
        let (topics, live) = self.prepare_one(processor, processor.current, loaded)?;
        let trial = match processor.trial {
            None => None,
            Some(Trial::Canary {
                revision, percent, ..
            }) => {
                let (_, live) = self.prepare_one(processor, revision, loaded)?;
                Some(PreparedTrial::Canary { live, percent })
            }
            Some(Trial::Shadow { revision, .. }) => {
                let (_, live) = self.prepare_one(processor, revision, loaded)?;
                let since = self.inner.clock.wall();
                Some(PreparedTrial::Shadow { live, since })
            }
        };
        let mut inputs = Vec::new();
        for topic in &topics {
            inputs.extend(self.reads_of(processor, topic).await?);
        }
        Ok(Prepared {
            live,
            trial,
            inputs,
        })
    }

    /// What the processor reads of an input topic, and where it starts in each partition.
    pub(crate) async fn reads_of(
        &self,
        processor: &Processor,
        topic: &Topic,
    ) -> Result<Vec<Input>, ProcessorError> {
        let mut inputs = self.inputs_of(&processor.name, topic).await?;
        for input in inputs.iter_mut().filter(|input| !input.is_redriven()) {
            input.first = processor.start_in(input.topic.id, input.partition);
        }
        if let Some(replay) = &processor.replay {
            limit(&mut inputs, replay);
        }
        Ok(inputs)
    }

    fn prepare_one(
        &self,
        processor: &Processor,
        number: u32,
        loaded: &Loaded,
    ) -> Result<(Vec<Topic>, Arc<Live>), TurnError> {
        let revision = kept(processor, number)?;
        check_bounds(&revision.spec)?;
        let topics = self.check_topics(&processor.name, &revision.spec)?;
        let owner = owner_of(processor, number);
        let live = self.live(&processor.name, revision, &owner, loaded)?;
        let mut live = live.ok_or_else(|| TurnError::not_loaded(processor))?;
        live.outputs.takes_all = processor.replay.is_some();
        live.made_at = processor.made_at;
        live.back = back_among(processor, number, |revision| {
            self.inner.catalogue.can_run(revision)
        });
        live.voided = voided(processor);
        Ok((topics, Arc::new(live)))
    }

    /// Checks that this host allows the limits and the number of grants that the specification
    /// asks for. A processor deployed under larger limits continues with the host's present ones.
    pub(crate) fn check_limits(&self, spec: &ProcessorSpec) -> Result<(), ProcessorError> {
        let (asked, host) = (&spec.limits, self.inner.catalogue.guest_limits());
        let memory_max = host.guest_memory_bytes_max;
        if asked.memory_bytes_max > memory_max {
            let asked = asked.memory_bytes_max;
            return invalid(format!(
                "limits.memory_bytes_max is {asked}; this host's maximum is {memory_max} (setting \
                 guest_memory_bytes_max = {memory_max})"
            ));
        }
        let (answer, outputs_max) = (asked.answer_bytes_max, ANSWER_OUTPUT_BYTES_MAX as u64);
        if answer > outputs_max {
            return invalid(format!(
                "limits.answer_bytes_max is {answer}; the maximum for all outputs of an answer is {outputs_max}"
            ));
        }
        let lengths = spec.grants.lengths();
        match lengths.into_iter().find(|(_, count, max)| count > max) {
            None => Ok(()),
            Some((field, count, max)) => {
                invalid(format!("{field} has {count} entries; the maximum is {max}"))
            }
        }
    }

    /// The input topics. An error unless every topic that the specification names exists and may be
    /// used in this way.
    fn check_topics(
        &self,
        name: &ProcessorName,
        spec: &ProcessorSpec,
    ) -> Result<Vec<Topic>, ProcessorError> {
        let inputs = spec.topics.iter().map(|topic| self.existing(topic));
        let inputs: Vec<Topic> = inputs.collect::<Result<_, _>>()?;
        for topic in &inputs {
            let of_topic = topic.spec.name.as_str();
            if topic.spec.owner.as_ref() == Some(name) || of_topic.ends_with(REDRIVE_SUFFIX) {
                return invalid(format!(
                    "{of_topic} is reserved for its processor and cannot be read"
                ));
            }
        }
        for output in spec.output.iter().chain(&spec.grants.topics) {
            let topic = self.existing(output)?;
            if let Some(owner) = topic.spec.owner {
                return invalid(format!(
                    "{output} belongs to processor {owner}, which alone writes to it"
                ));
            }
        }
        Ok(inputs)
    }

    /// Checks that every cycle through this processor ends. This is checked when the processor
    /// changes, not when the host starts, so that deployments of earlier versions continue to run.
    pub(crate) fn check_chains(&self, processor: &Processor) -> Result<(), ProcessorError> {
        let mut all: Vec<(ProcessorName, ProcessorSpec)> = {
            let all = self.inner.catalogue.processors();
            let others = all.values().map(|known| &known.processor);
            let others = others.filter(|other| other.name != processor.name);
            others.flat_map(running).collect()
        };
        all.extend(running(processor));
        let mut own = running(processor);
        match own.find_map(|(name, spec)| endless_cycle(&name, &spec, &all)) {
            None => Ok(()),
            Some(cycle) => invalid(format!(
                "messages would cycle forever: {cycle}; set hops_max for one of these processors (`--hops-max 5`) so that it gives up messages after that many hops"
            )),
        }
    }

    fn existing(&self, topic: &TopicName) -> Result<Topic, ProcessorError> {
        Ok(self.inner.catalogue.known_topic(topic)?)
    }

    /// Loads the components that the processor would run, except those that are loaded already.
    pub(super) async fn load_all(
        &self,
        processor: &Processor,
        before: &Loaded,
    ) -> Result<Loaded, ProcessorError> {
        let mut loaded = Loaded::default();
        for number in [Some(processor.current), processor.on_trial()]
            .into_iter()
            .flatten()
        {
            let (revision, owner) = (kept(processor, number)?, owner_of(processor, number));
            let name = &processor.name;
            self.load_one(name, revision, &owner, before, &mut loaded)
                .await?;
        }
        Ok(loaded)
    }

    async fn load_one(
        &self,
        name: &ProcessorName,
        revision: &Revision,
        owner: &str,
        before: &Loaded,
        loaded: &mut Loaded,
    ) -> Result<(), ProcessorError> {
        let (spec, made_at) = (&revision.spec, self.made_at(name));
        let purpose = Purpose::of(revision, owner, made_at, spec.module);
        let handler = match before.processor(&purpose) {
            Some(handler) => handler,
            None => {
                let needs = Interface::MessageProcessor;
                let request = self
                    .load_request(name, owner, revision, spec.module, needs)
                    .await?;
                let handler = self.inner.modules.processor(request).await?;
                self.check_still_there(spec.module)?;
                handler
            }
        };
        loaded.add_processor(purpose, handler);
        if let Some(digest) = spec.error_handler {
            let purpose = Purpose::of(revision, owner, made_at, digest);
            let handler = match before.error_handler(&purpose) {
                Some(handler) => handler,
                None => {
                    let needs = Interface::ErrorHandler;
                    let request = self
                        .load_request(name, owner, revision, digest, needs)
                        .await?;
                    let handler = self.inner.modules.error_handler(request).await?;
                    self.check_still_there(digest)?;
                    handler
                }
            };
            loaded.add_error_handler(purpose, handler);
        }
        for topic in self.written_by(spec)? {
            let (engine, modules) = (&*self.inner.engine, &*self.inner.modules);
            let partitioner = self.inner.partitioners.of(&topic, engine, modules).await;
            let partitioner = partitioner.map_err(|error| match error {
                PartitionerError::UnknownModule(digest) => ProcessorError::UnknownModule(digest),
                PartitionerError::Admit(error) => ProcessorError::Admit(error),
                PartitionerError::Read(error) => ProcessorError::Read(error),
            })?;
            loaded.add_partitioner(topic.id, partitioner);
        }
        Ok(())
    }

    /// Loads a revision, outside of workers.
    pub(crate) async fn load(
        &self,
        name: &ProcessorName,
        revision: &Revision,
        owner: &str,
    ) -> Result<Live, ProcessorError> {
        let mut loaded = Loaded::default();
        self.load_one(name, revision, owner, &Loaded::default(), &mut loaded)
            .await?;
        // An output topic was deleted and created again meanwhile.
        let changed = || CommitError::Conflict(Arc::new(self.inner.catalogue.as_known(name)));
        let live = self.live(name, revision, owner, &loaded)?;
        Ok(live.ok_or_else(changed)?)
    }

    /// The revision with its loaded components, if none is missing. Its modules must still exist.
    fn live(
        &self,
        name: &ProcessorName,
        revision: &Revision,
        owner: &str,
        loaded: &Loaded,
    ) -> Result<Option<Live>, ProcessorError> {
        let (spec, made_at) = (&revision.spec, self.made_at(name));
        let purpose = |digest| Purpose::of(revision, owner, made_at, digest);
        self.check_module(spec.module, Interface::MessageProcessor)?;
        let Some(handler) = loaded.processor(&purpose(spec.module)) else {
            return Ok(None);
        };
        let mut failures = None;
        if let Some(digest) = spec.error_handler {
            self.check_module(digest, Interface::ErrorHandler)?;
            failures = loaded.error_handler(&purpose(digest));
            if failures.is_none() {
                return Ok(None);
            }
        }
        let mut topics = Vec::new();
        for topic in self.written_by(spec)? {
            let Some(partitioner) = loaded.partitioner(topic.id) else {
                return Ok(None);
            };
            topics.push(OutputTopic { topic, partitioner });
        }
        Ok(Some(Live {
            processor: name.clone(),
            revision: revision.number,
            made_at: Timestamp::default(),
            back: None,
            voided: Vec::new(),
            record: revision.record.clone(),
            unproven_run: revision.unproven_run,
            spec: spec.clone(),
            module: spec.module.to_string(),
            handler,
            failures,
            outputs: OutputTopics {
                topics,
                default: spec.output.is_some().then_some(0),
                takes_all: false,
            },
        }))
    }

    /// When the existing processor of this name was created.
    fn made_at(&self, name: &ProcessorName) -> Option<Timestamp> {
        let known = self.inner.catalogue.processors();
        known.get(name).map(|known| known.processor.made_at)
    }

    /// Checks that a module still exists after it was loaded. If it was deleted meanwhile, data
    /// that the load stored for it is deleted too.
    fn check_still_there(&self, digest: Digest) -> Result<(), ProcessorError> {
        if self.inner.catalogue.module_of(digest).is_none() {
            self.inner.modules.forget(digest);
            return Err(ProcessorError::UnknownModule(digest));
        }
        Ok(())
    }

    /// Checks that the modules of a new revision may be deployed. Revisions that are deployed already are not asked: a key that is
    /// withdrawn must neither stop them nor close the way back.
    pub(super) async fn check_trusted(&self, spec: &ProcessorSpec) -> Result<(), ProcessorError> {
        for digest in [Some(spec.module), spec.error_handler]
            .into_iter()
            .flatten()
        {
            self.inner.catalogue.check_trusted(digest).await?;
        }
        Ok(())
    }

    /// Checks that a module exists and exports the required interface.
    fn check_module(&self, digest: Digest, needs: Interface) -> Result<(), ProcessorError> {
        let module = self.inner.catalogue.module_of(digest);
        let module = module.ok_or(ProcessorError::UnknownModule(digest))?;
        let has = module.facts.exports;
        match has.contains(&needs) {
            true => Ok(()),
            false => Err(ProcessorError::WrongInterface { digest, needs, has }),
        }
    }

    async fn load_request(
        &self,
        name: &ProcessorName,
        owner: &str,
        revision: &Revision,
        digest: Digest,
        needs: Interface,
    ) -> Result<LoadRequest, ProcessorError> {
        self.check_module(digest, needs)?;
        let bytes = self.inner.engine.module(digest).await?;
        Ok(LoadRequest {
            digest,
            bytes: bytes.ok_or(ProcessorError::UnknownModule(digest))?,
            owner: owner.to_owned(),
            revision: revision.number,
            limits: revision.spec.limits.clone(),
            grants: revision.spec.grants.clone(),
            config: self.inner.catalogue.config_of(name),
            access: None,
        })
    }

    /// The topics that a revision may write to, its default output first.
    fn written_by(&self, spec: &ProcessorSpec) -> Result<Vec<Topic>, ProcessorError> {
        let mut topics: Vec<Topic> = Vec::new();
        for name in spec.output.iter().chain(&spec.grants.topics) {
            if topics.iter().all(|known| known.spec.name != *name) {
                topics.push(self.existing(name)?);
            }
        }
        Ok(topics)
    }

    /// The partitions of an input topic, and those of its redrive topic.
    async fn inputs_of(
        &self,
        name: &ProcessorName,
        topic: &Topic,
    ) -> Result<Vec<Input>, ProcessorError> {
        let dead_letters = self.own_topic(name, topic, DEAD_LETTERS_SUFFIX).await?;
        let redrive = self.own_topic(name, topic, REDRIVE_SUFFIX).await?;
        let input = |read: &Topic, partition| Input {
            topic: read.clone(),
            partition,
            origin: topic.spec.name.clone(),
            dead_letters: dead_letters.clone(),
            range: None,
            first: None,
            times: None,
        };
        let inputs = [topic, &redrive].into_iter().flat_map(|read| {
            let partitions = read.partitions();
            partitions.map(move |partition| input(read, partition.partition))
        });
        Ok(inputs.collect())
    }

    /// A topic that the processor owns, with as many partitions as its input; created if it does
    /// not exist.
    pub(crate) async fn own_topic(
        &self,
        name: &ProcessorName,
        input: &Topic,
        suffix: &str,
    ) -> Result<Topic, ProcessorError> {
        let own = own_name(&input.spec.name, name, suffix).map_err(|error| {
            let own = format!("{}.{name}{suffix}", input.spec.name);
            ProcessorError::InvalidSpec(format!("topic {own}: {error}"))
        })?;
        let topic = match self.inner.catalogue.topic(&own) {
            Some(topic) => topic,
            None => match self.make_own_topic(name, input, own.clone()).await {
                // Another host was faster, for the same processor or another one.
                Err(TopicError::Exists(_)) => {
                    let made =
                        heard_of(&*self.inner.engine, || self.inner.catalogue.topic(&own)).await;
                    made.ok_or_else(|| TopicError::Exists(own.clone()))?
                }
                made => return Ok(made?),
            },
        };
        if topic.spec.owner.as_ref() != Some(name) {
            return invalid(format!(
                "topic {own} exists but does not belong to this processor; delete it or choose another processor name"
            ));
        }
        let (has, needs) = (topic.spec.partitions, input.spec.partitions);
        if has > needs {
            return invalid(format!(
                "topic {own} has {has} partitions but {} has {needs}; delete {own} first",
                input.spec.name
            ));
        }
        if has < needs {
            // The input was deleted and created again with more partitions.
            let change = TopicChange {
                partitions: Some(needs),
                ..TopicChange::default()
            };
            return Ok(self.inner.engine.change_topic(&own, change).await?);
        }
        Ok(topic)
    }

    async fn make_own_topic(
        &self,
        name: &ProcessorName,
        input: &Topic,
        own: TopicName,
    ) -> Result<Topic, TopicError> {
        let spec = TopicSpec {
            name: own,
            partitions: input.spec.partitions,
            durability: input.spec.durability,
            partitioner: None,
            owner: Some(name.clone()),
            created_at: self.inner.clock.wall(),
            settings: Default::default(),
        };
        self.inner.engine.create_topic(spec, Vec::new()).await
    }
}

/// Limits the inputs to what a replay reads, including its redriven messages.
fn limit(inputs: &mut Vec<Input>, replay: &Replay) {
    let range_of = |input: &Input| {
        let of = &input.topic.spec.name;
        let mut ranges = replay.ranges.iter();
        ranges.find(|range| range.partition == input.partition && range.topic == *of)
    };
    for input in inputs.iter_mut() {
        input.range = range_of(input).map(|range| (range.first, range.end));
        input.times = input.range.map(|_| replay.from..replay.until);
    }
    inputs.retain(|input| input.is_redriven() || input.range.is_some());
}

/// The revisions that the processor's messages reach: the current one, and the canary.
fn running(processor: &Processor) -> impl Iterator<Item = (ProcessorName, ProcessorSpec)> {
    let numbers = [Some(processor.current), canary_of(processor)];
    let revisions = numbers.into_iter().flatten();
    let revisions = revisions.filter_map(|number| processor.revision(number));
    // A replay's input is fixed, so it ends by itself.
    let revisions = revisions.filter(|_| processor.replay.is_none());
    revisions.map(|revision| (processor.name.clone(), revision.spec.clone()))
}

/// The name under which a revision's components log. A shadow's lines are kept apart, so they take
/// no room from the others.
fn owner_of(processor: &Processor, number: u32) -> String {
    match processor.trial {
        Some(Trial::Shadow { revision, .. }) if revision == number => {
            format!("{}/shadow", processor.name)
        }
        _ => processor.name.to_string(),
    }
}

/// The number of the canary.
fn canary_of(processor: &Processor) -> Option<u32> {
    match processor.trial {
        Some(Trial::Canary { revision, .. }) => Some(revision),
        Some(Trial::Shadow { .. }) | None => None,
    }
}

/// The revision to go back to from this one. For a canary it is the current one.
#[cfg(test)]
pub(crate) fn back_from(processor: &Processor, number: u32) -> Option<Back> {
    back_among(processor, number, |_| true)
}

/// The revision to go back to from this one, among those that can run. For a canary it is the
/// current one.
fn back_among(
    processor: &Processor,
    number: u32,
    can_run: impl Fn(&Revision) -> bool,
) -> Option<Back> {
    let back = match canary_of(processor) == Some(number) {
        true => processor.current(),
        false if planted!(BackToTheOneBefore) => processor.revision(number - 1),
        false => processor.way_back_among(number, can_run),
    };
    let proven = processor.revisions.iter();
    let proven = proven.filter(|r| r.number != number && r.record.proven && !r.trial);
    let proven = proven.max_by_key(|r| (r.number == processor.current, r.record.left_as, r.number));
    // If none is proven, the first revision sets the usual rejections: it had no predecessor to
    // compare with.
    let mut first = processor.revisions.iter();
    let first = first.find(|r| r.number < number && !r.trial && r.record.worked_at.is_some());
    let proven = proven.or_else(|| first.filter(|r| r.record.stopped.is_none()));
    back.map(|back| Back {
        revision: back.number,
        record: back.record.clone(),
        same_handler: processor
            .revision(number)
            .is_some_and(|r| r.spec.error_handler == back.spec.error_handler),
        usual: proven.map_or_else(Vec::new, |proven| proven.record.rejections.clone()),
    })
}

/// Checks that a new revision's retry delays are within the maximum wait. Delays of existing
/// revisions are shortened to it.
pub(crate) fn check_patience(spec: &ProcessorSpec) -> Result<(), ProcessorError> {
    match spec.retry.delay_max_ms {
        0..=RETRY_DELAY_MS_MAX => Ok(()),
        given => invalid(format!(
            "retry.delay_max_ms is {given}; it must be 0 to {RETRY_DELAY_MS_MAX} (thirty days)"
        )),
    }
}

fn check_bounds(spec: &ProcessorSpec) -> Result<(), ProcessorError> {
    let repeats = |(index, topic)| spec.topics[..index].contains(topic);
    if spec.topics.is_empty() || spec.topics.iter().enumerate().any(repeats) {
        return invalid("topics must name at least one input topic, and each only once".to_owned());
    }
    let messages_max = PARKED_MESSAGES_MAX.min(BATCH_MESSAGES_MAX) as u64;
    let (batch, retry, limits) = (&spec.batch, &spec.retry, &spec.limits);
    let delay_first_max = retry.delay_max_ms;
    let (breaker, dead_letters) = (&spec.breaker, &spec.dead_letters);
    let bounds: [(&str, u64, u64, u64); 15] = [
        (
            "hops_max",
            spec.hops_max.unwrap_or(1).into(),
            1,
            PROCESSOR_HOPS_MAX.into(),
        ),
        (
            "topics",
            spec.topics.len() as u64,
            1,
            PROCESSOR_TOPICS_MAX as u64,
        ),
        (
            "batch.messages_max",
            batch.messages_max.into(),
            1,
            messages_max,
        ),
        (
            "batch.bytes_max",
            batch.bytes_max.into(),
            1,
            PROCESSOR_BATCH_BYTES_MAX.into(),
        ),
        ("batch.linger_ms", batch.linger_ms, 0, LINGER_MS_MAX),
        (
            "retry.attempts_max",
            retry.attempts_max.into(),
            1,
            u32::MAX.into(),
        ),
        (
            "retry.delay_first_ms",
            retry.delay_first_ms,
            0,
            delay_first_max,
        ),
        (
            "breaker.failures_min",
            breaker.failures_min.into(),
            2,
            BREAKER_MESSAGES_MAX,
        ),
        (
            "breaker.failed_percent",
            breaker.failed_percent.into(),
            1,
            100,
        ),
        (
            "breaker.window_messages",
            breaker.window_messages.into(),
            breaker.failures_min.into(),
            BREAKER_MESSAGES_MAX,
        ),
        ("breaker.window_ms", breaker.window_ms, 1, DAY_MS),
        (
            "breaker.probe_first_ms",
            breaker.probe_first_ms,
            1,
            breaker.probe_max_ms,
        ),
        ("breaker.probe_max_ms", breaker.probe_max_ms, 1, DAY_MS),
        (
            "dead_letters.max",
            dead_letters.max.into(),
            1,
            u32::MAX.into(),
        ),
        ("dead_letters.per_ms", dead_letters.per_ms, 1, DAY_MS),
    ];
    for (field, given, min, max) in bounds.into_iter().chain(limits.ranges()) {
        if given < min || given > max {
            return invalid(format!("{field} is {given}; it must be {min} to {max}"));
        }
    }
    Ok(())
}
