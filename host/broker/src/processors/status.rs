//! The status of processors: what is deployed, and the state of each input partition.

use std::collections::HashMap;
use std::sync::Arc;

use millrace_engine::Ends;
use millrace_model::{
    Offset, PartitionId, Processor, ProcessorName, Progress, Timestamp, Topic, TopicName,
    TopicPartition,
};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::catalogue::deployed::Deployed;
use crate::catalogue::left_behind::LeftBehind;
use crate::dispatch::breaker::BreakerStatus;
use crate::dispatch::input::Input;
use crate::dispatch::standing::State;
use crate::ground::standing::Forbidden;
use crate::ground::verbs::Verb;
use crate::handler::GuestLine;
use crate::processors::canary::CanaryStatus;
use crate::processors::handle::Processors;
use crate::processors::revisions::gone_back_from;

/// A processor and its status.
#[derive(Clone, Debug, Serialize)]
pub struct ProcessorStatus {
    /// The processor.
    pub processor: Processor,
    /// The status of each input partition.
    pub partitions: Vec<PartitionStatus>,
    /// The state of its breaker; `None` if the processor cannot be started.
    pub breaker: Option<BreakerStatus>,
    /// The status of its canary; `None` without a canary.
    pub canary: Option<CanaryStatus>,
    /// Why the revision on trial does not run; `None` if it does, or without a trial.
    pub trial_problem: Option<String>,
    /// Messages that wait in topics that the current revision does not read.
    pub left_behind: Vec<LeftBehind>,
    /// The revision that a rollback would return to.
    pub way_back: Option<u32>,
    /// Why the host's last attempt to roll back the current revision failed.
    pub way_back_problem: Option<String>,
    /// The revision from which the host rolled back, if that was the last change and the revision
    /// is still kept.
    pub gone_back_from: Option<u32>,
}

/// A worker's lag.
#[derive(Clone, Debug)]
pub struct Lag {
    /// The processor.
    pub processor: ProcessorName,
    /// The input topic.
    pub topic: TopicName,
    /// The partition.
    pub partition: PartitionId,
    /// Messages not read yet, as in [`PartitionStatus::lag`].
    pub messages: u64,
}

/// A processor's status in one partition.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct PartitionStatus {
    /// The input topic.
    pub topic: TopicName,
    /// The partition.
    pub partition: PartitionId,
    /// The next offset to read.
    pub next: Offset,
    /// The offset that the next message will have.
    pub end: Offset,
    /// Messages not read yet. If a disk error prevents counting them, the distance in offsets,
    /// which is an upper bound.
    pub lag: u64,
    /// Number of parked messages below `next`.
    pub parked: usize,
    /// The revision that processed the last batch; 0 before the first.
    pub revision: u32,
    /// `running`, `paused`, `waiting: reason`, `stopped: reason`, or `done` when a replay is
    /// settled. Of a partition that another host works, `at host` and that host's name.
    pub state: String,
    /// The host that works on it, by its address, or by its id if it gave none; absent if there is
    /// only one, or if that is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// While `waiting`: until when, in milliseconds since the Unix epoch, if known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waiting_until: Option<Timestamp>,
    /// How long the current call has been running, in milliseconds; absent between calls.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub calling_ms: Option<u64>,
}

/// Progress that was read in one step; `None` of a processor that has none.
pub(crate) struct Committed(HashMap<ProcessorName, ByPartition>);

impl Committed {
    pub(crate) fn of(&self, name: &ProcessorName) -> Option<&ByPartition> {
        self.0.get(name)
    }
}

/// The most that was known of each partition when a status was made; a partition of a processor has one entry. What is shown never goes
/// back, whichever of several readers is faster, and whether the store answers.
#[derive(Default)]
pub(super) struct LastShown(Mutex<HashMap<ProcessorName, HashMap<TopicPartition, Shown>>>);

pub(crate) type ByPartition = HashMap<TopicPartition, Arc<Progress>>;

/// How far a processor is in a partition.
#[derive(Clone)]
struct Shown {
    /// Where it goes on, as committed.
    next: Offset,
    progress: Arc<Progress>,
}

/// What is known of a processor's progress in a partition.
enum Known {
    At(Shown),
    NotBegun,
    /// The store does not answer, and this host has never shown it.
    Unknown,
}

impl LastShown {
    fn of(&self, name: &ProcessorName, partition: TopicPartition) -> Option<Shown> {
        self.0.lock().get(name)?.get(&partition).cloned()
    }

    /// The larger of what is known now and what was shown.
    fn raise(&self, name: &ProcessorName, partition: TopicPartition, now: Shown) -> Shown {
        let mut all = self.0.lock();
        let of_processor = all.entry(name.clone()).or_default();
        let shown = of_processor.entry(partition).or_insert_with(|| now.clone());
        if now.next >= shown.next {
            *shown = now;
        }
        shown.clone()
    }

    /// Keeps only those of processors that exist.
    fn keep(&self, exists: impl Fn(&ProcessorName) -> bool) {
        self.0.lock().retain(|name, _| exists(name));
    }

    /// Another of that name may come, and begins anew.
    pub(super) fn forget(&self, name: &ProcessorName) {
        self.0.lock().remove(name);
    }
}

impl Processors {
    /// All processors, by name.
    pub async fn processors(&self) -> Vec<ProcessorStatus> {
        let deployed: Vec<Deployed> = self
            .inner
            .catalogue
            .processors()
            .values()
            .filter(|known| self.sees(&known.processor.name))
            .cloned()
            .collect();
        let is_there = |name: &ProcessorName| self.inner.catalogue.deployed(name).is_some();
        self.inner.last_shown.keep(is_there);
        let topics = self.inner.catalogue.topics();
        let names = deployed.iter().map(|known| &known.processor.name);
        let committed = self.committed_at_once(names).await;
        let mut statuses = Vec::with_capacity(deployed.len());
        for deployed in deployed {
            statuses.push(self.status(deployed, &topics, committed.as_ref()).await);
        }
        statuses
    }

    /// What all of them have committed, if the engine says it in one step.
    async fn committed_at_once(
        &self,
        names: impl Iterator<Item = &ProcessorName>,
    ) -> Option<Committed> {
        let engine = &self.inner.engine;
        if engine.health().await.is_err() {
            return None;
        }
        let mut all: HashMap<ProcessorName, ByPartition> =
            names.map(|name| (name.clone(), HashMap::new())).collect();
        let groups: Vec<_> = all.keys().map(ProcessorName::group).collect();
        for one in engine.progress_at_once(&groups).await.ok()?? {
            let name = one.group.as_processor();
            if let Some(read) = name.and_then(|name| all.get_mut(&name)) {
                read.insert(one.partition, Arc::new(one.progress));
            }
        }
        Some(Committed(all))
    }

    /// A processor as deployed, without its status.
    #[must_use]
    pub fn deployed_as(&self, name: &ProcessorName) -> Option<Processor> {
        let deployed = self.inner.catalogue.deployed(name);
        let seen = deployed.filter(|_| self.sees(name));
        seen.map(|deployed| deployed.processor)
    }

    /// A processor and its status; `None` if it does not exist.
    pub async fn processor(&self, name: &ProcessorName) -> Option<ProcessorStatus> {
        let deployed = self
            .inner
            .catalogue
            .deployed(name)
            .filter(|_| self.sees(name))?;
        let committed = self.committed_at_once([name].into_iter()).await;
        let topics = self.inner.catalogue.topics();
        Some(self.status(deployed, &topics, committed.as_ref()).await)
    }

    /// Whether the caller may see a processor.
    fn sees(&self, name: &ProcessorName) -> bool {
        self.caller.sees(Verb::SeeProcessor, name.as_str())
    }

    /// Log lines that are kept of the processor's guests, newest last.
    ///
    /// # Errors
    /// [`Forbidden`].
    pub fn logs(&self, name: &ProcessorName) -> Result<Vec<GuestLine>, Forbidden> {
        self.caller.may(Verb::ReadLogs, name.as_str())?;
        Ok(self.inner.modules.logs(name))
    }

    /// Number of the guests' log lines that the rate limit has dropped since the host started.
    #[must_use]
    pub fn log_lines_dropped(&self, name: &ProcessorName) -> u64 {
        self.inner.modules.lines_dropped(name)
    }

    async fn status(
        &self,
        deployed: Deployed,
        topics: &[Topic],
        committed: Option<&Committed>,
    ) -> ProcessorStatus {
        let name = &deployed.processor.name;
        let committed = committed.and_then(|committed| committed.of(name));
        let partitions = match deployed.problem {
            // It has no workers yet.
            None if self.inner.heard.waits(name) && self.inner.supervisor.gate(name).is_none() => {
                let reason = "its component is being loaded".to_owned();
                let state = State::Waiting(reason, None);
                self.without_workers(&deployed.processor, &state, committed)
                    .await
            }
            None => self.standings(name, committed).await,
            Some(problem) => {
                let state = State::Stopped(problem);
                self.without_workers(&deployed.processor, &state, committed)
                    .await
            }
        };
        let breaker = self.inner.supervisor.gate(name).map(|gate| gate.status());
        let is_open = breaker
            .as_ref()
            .is_some_and(|breaker| breaker.state == "open");
        let catalogue = &self.inner.catalogue;
        let left_behind = catalogue.left_behind_in(name, topics, committed).await;
        let left_behind = left_behind.unwrap_or_else(|error| {
            tracing::warn!(processor = %name, %error, "messages left waiting cannot be read");
            Vec::new()
        });
        ProcessorStatus {
            breaker,
            canary: self.canary_status(&deployed.processor),
            left_behind,
            way_back: self
                .inner
                .catalogue
                .way_back(&deployed.processor)
                .map(|back| back.number),
            // The problem only matters while the breaker is open.
            way_back_problem: deployed.way_back_problem.filter(|_| is_open),
            gone_back_from: gone_back_from(&deployed.processor),
            trial_problem: deployed.trial_problem,
            processor: deployed.processor,
            partitions,
        }
    }

    /// The lag of this host's workers.
    pub async fn lags(&self) -> Vec<Lag> {
        let mut lags = Vec::new();
        for processor in self.inner.catalogue.processor_names() {
            for (input, standing) in self.inner.supervisor.standings(&processor) {
                if let Some(next) = standing.next.filter(|_| standing.state.is_here()) {
                    let end = self.ends_of(&input).end;
                    lags.push(Lag {
                        processor: processor.clone(),
                        topic: input.topic.spec.name.clone(),
                        partition: input.partition,
                        messages: self.lag(&input.topic, input.partition, next, end).await,
                    });
                }
            }
        }
        lags
    }

    /// The current start and end of a worker's input.
    fn ends_of(&self, input: &Input) -> Ends {
        let ends = self.inner.catalogue.ends(&input.topic, input.partition);
        let ends = ends.unwrap_or_default();
        input.range.map_or(ends, |(first, end)| Ends {
            start: first,
            end: end.min(ends.end),
        })
    }

    async fn lag(&self, topic: &Topic, partition: PartitionId, next: Offset, end: Offset) -> u64 {
        let Some(partition) = topic.partition(partition) else {
            return 0;
        };
        let counted = self.inner.engine.count(partition, next, end).await;
        counted.unwrap_or_else(|error| {
            tracing::debug!(%partition, %error, "what a processor has still to read cannot be counted");
            end.0.saturating_sub(next.0)
        })
    }

    async fn standings(
        &self,
        name: &ProcessorName,
        committed: Option<&ByPartition>,
    ) -> Vec<PartitionStatus> {
        let mut shown = Vec::new();
        let this = self.inner.hosts.this_among_others();
        for (input, standing) in self.inner.supervisor.standings(name) {
            let Ends { start, end } = self.ends_of(&input);
            // An empty redrive topic is not shown.
            if input.is_redriven() && end == Offset::default() {
                continue;
            }
            let state = standing.state.to_string();
            let host = match &standing.state {
                State::Elsewhere(host) => Some(host.clone()),
                State::Held => None,
                _ => this.clone(),
            };
            let waiting_until = standing.state.until();
            let monotonic = self.inner.clock.monotonic();
            let calling = standing
                .calling
                .map(|since| monotonic.saturating_sub(since));
            let Some(partition) = input.topic.partition(input.partition) else {
                continue;
            };
            // A worker that waits for the store to begin again knows only how far it once was.
            let shown_before = self.inner.last_shown.of(name, partition);
            let shown_before = shown_before.map(|shown| shown.next);
            let is_known = |next: &Offset| standing.state.is_here() && shown_before <= Some(*next);
            let Some(next) = standing.next.filter(is_known) else {
                // A new worker's position is at least its predecessor's. For a worker on another
                // host, committed progress is shown.
                let reads = (input.range, input.first);
                let known = standing.next.map(|next| Shown {
                    next,
                    progress: standing.progress,
                });
                let known = self.read_progress(name, partition, known, committed).await;
                let status = self.committed(&input.topic, partition, known, state, reads);
                shown.extend(
                    status
                        .await
                        .map(|status| PartitionStatus { host, ..status }),
                );
                continue;
            };
            let now = Shown {
                next,
                progress: Arc::clone(&standing.progress),
            };
            let next = self.inner.last_shown.raise(name, partition, now).next;
            // What is not kept any more it passes over.
            let next = next.max(start);
            // It may have read what this host has not heard of otherwise.
            let end = end.max(next);
            shown.push(PartitionStatus {
                topic: input.topic.spec.name.clone(),
                partition: input.partition,
                next,
                end,
                lag: self.lag(&input.topic, input.partition, next, end).await,
                parked: standing.parked,
                revision: standing.revision,
                state,
                host,
                waiting_until,
                calling_ms: calling.map(|time| time.as_millis() as u64),
            });
        }
        shown
    }

    /// The status of a processor without workers, from committed progress.
    async fn without_workers(
        &self,
        processor: &Processor,
        state: &State,
        committed: Option<&ByPartition>,
    ) -> Vec<PartitionStatus> {
        let topics = processor.current().map(|r| r.spec.topics.clone());
        let state = state.to_string();
        let mut partitions = Vec::new();
        for topic in topics
            .iter()
            .flatten()
            .filter_map(|name| self.inner.catalogue.topic(name))
        {
            for partition in topic.partitions() {
                let range = processor.replay.as_ref().map(|replay| {
                    let place = (&topic.spec.name, partition.partition);
                    replay
                        .ranges
                        .iter()
                        .find(|r| (&r.topic, r.partition) == place)
                });
                let range = match range {
                    None => None,
                    Some(Some(range)) => Some((range.first, range.end)),
                    Some(None) => continue,
                };
                let name = &processor.name;
                let reads = (range, processor.start_in(topic.id, partition.partition));
                let known = self.read_progress(name, partition, None, committed).await;
                let status = self.committed(&topic, partition, known, state.clone(), reads);
                let host = self.inner.hosts.wanted_at(&name.group(), partition);
                partitions.extend(
                    status
                        .await
                        .map(|status| PartitionStatus { host, ..status }),
                );
            }
        }
        partitions
    }

    /// A processor's committed progress in a partition. If the store does not answer, the most that is known: what was shown last, or what
    /// this host's worker knew.
    async fn read_progress(
        &self,
        name: &ProcessorName,
        partition: TopicPartition,
        known: Option<Shown>,
        committed: Option<&ByPartition>,
    ) -> Known {
        let (engine, last) = (&self.inner.engine, &self.inner.last_shown);
        let shown = |progress: Arc<Progress>| Shown {
            next: progress.next,
            progress,
        };
        let mut read = None;
        let mut is_read = false;
        if let Some(committed) = committed {
            is_read = true;
            read = committed.get(&partition).cloned().map(shown);
        } else if engine.health().await.is_ok()
            && let Ok(progress) = engine.progress(&name.group(), partition).await
        {
            is_read = true;
            read = progress.map(Arc::new).map(shown);
        }
        let most = [last.of(name, partition), known, read];
        let most = most.into_iter().flatten().max_by_key(|shown| shown.next);
        match most {
            Some(most) => Known::At(last.raise(name, partition, most)),
            None if is_read => Known::NotBegun,
            None => Known::Unknown,
        }
    }

    /// A processor's status in one partition by its committed progress; `None` if that is not known. The processor reads this range, or
    /// everything from an offset on.
    async fn committed(
        &self,
        topic: &Topic,
        partition: TopicPartition,
        known: Known,
        state: String,
        (range, first): (Option<(Offset, Offset)>, Option<Offset>),
    ) -> Option<PartitionStatus> {
        let mut ends = self.inner.engine.ends(partition).ok()?;
        if let Some((first, end)) = range {
            (ends.start, ends.end) = (first, end.min(ends.end));
        }
        let (next, progress) = match known {
            // What was not kept it will pass over.
            Known::At(shown) => (shown.next.max(ends.start), shown.progress),
            // It will begin there.
            Known::NotBegun => {
                let next = first.map_or(ends.start, |first| first.max(ends.start));
                (next, Arc::default())
            }
            Known::Unknown => return None,
        };
        let end = ends.end.max(next);
        Some(PartitionStatus {
            topic: topic.spec.name.clone(),
            partition: partition.partition,
            next,
            end,
            lag: self.lag(topic, partition.partition, next, end).await,
            parked: progress.parked.len(),
            revision: progress.revision,
            state,
            host: None,
            waiting_until: None,
            calling_ms: None,
        })
    }
}

#[cfg(test)]
mod tests {
    use millrace_model::TopicId;

    use super::*;

    #[test]
    fn what_is_shown_of_progress_never_goes_back_until_its_processor_is_deleted() {
        let last = LastShown::default();
        let name: ProcessorName = "count".parse().expect("a name");
        let partition = TopicPartition {
            topic: TopicId(1),
            partition: PartitionId(0),
        };
        let shown = |next| {
            let now = Shown {
                next: Offset(next),
                progress: Arc::default(),
            };
            last.raise(&name, partition, now).next.0
        };
        assert_eq!([5, 3, 5, 8, 7].map(shown), [5, 5, 5, 8, 8]);
        last.keep(|known| *known == name);
        assert_eq!(shown(6), 8);
        last.forget(&name);
        assert_eq!(shown(6), 6);
    }
}
