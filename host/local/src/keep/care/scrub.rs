//! Searches for damage: in one segment in which a reader met some, or in everything, round after
//! round.

use std::collections::{BTreeSet, VecDeque};
use std::path::Path;
use std::sync::{Arc, Weak};

use millrace_engine::damage::{DamagedState, FoundBy};
use millrace_log::pace::Pace;
use millrace_log::partition::verify::{Damage, KeptSegment, verify};
use millrace_log::run::{Met as MetInRun, Run};
use millrace_model::{GroupName, Offset, Timestamp, TopicPartition};

use super::Care;
use super::register::Met;
use crate::keep::runs::set::runs_of;

/// Bytes that opening a file counts as, because a thousand small segments are work too.
const OPEN_BYTES: u64 = 64 << 10;

/// The remaining work of a round through everything.
#[derive(Default)]
pub(super) struct Round {
    began_at: Option<Timestamp>,
    partitions: VecDeque<TopicPartition>,
    partition_count: usize,
    segments: VecDeque<(TopicPartition, KeptSegment)>,
    /// Files of state with their owners. Files that no longer exist when their turn comes were
    /// merged or dropped.
    runs: VecDeque<(TopicPartition, GroupName, Weak<Run>)>,
    /// The names of all of them.
    run_files: BTreeSet<String>,
}

impl Care {
    pub(super) fn segments(&self, id: TopicPartition) -> Vec<KeptSegment> {
        let partition = self
            .commits
            .state
            .read()
            .partitions
            .get(&id)
            .map(Arc::clone);
        partition.map_or_else(Vec::new, |partition| partition.files.read().kept())
    }

    /// A path relative to the data directory.
    pub(super) fn name(&self, path: &Path) -> String {
        let inside = path.strip_prefix(&self.dir).unwrap_or(path);
        inside.display().to_string()
    }

    /// Reads the segments in which readers met damage.
    pub(super) fn look_at_suspects(&self, pace: &Pace) {
        for (partition, from) in self.register.take_suspects() {
            let segments = self.segments(partition).into_iter();
            let mut holding = segments.filter(|s| s.offsets.start <= from && from < s.offsets.end);
            if let Some(segment) = holding.next() {
                self.look_at(partition, &segment, FoundBy::Read, pace);
            }
        }
    }

    /// Reads the round's next segment, or begins a round when it is due; false if there is nothing
    /// to do.
    pub(super) fn go_on(&self, round: &mut Round, pace: &Pace) -> bool {
        if let Some((partition, segment)) = round.segments.pop_front() {
            self.look_at(partition, &segment, FoundBy::Scrub, pace);
            return true;
        }
        if let Some(partition) = round.partitions.pop_front() {
            let segments = self.segments(partition).into_iter();
            round.segments = segments.map(|segment| (partition, segment)).collect();
            let left = round.partitions.len() as f64 / round.partition_count.max(1) as f64;
            self.scrub.lock().status.round_done = 1.0 - left;
            metrics::gauge!("millrace_scrub_round_done_ratio").set(1.0 - left);
            return true;
        }
        if let Some((partition, group, run)) = round.runs.pop_front() {
            if let Some(run) = run.upgrade() {
                self.look_at_run(partition, group, &run, pace);
            }
            return true;
        }
        if self.commits.options.scrub_bytes_per_second == 0 {
            return false;
        }
        match round.began_at.take() {
            Some(began_at) => {
                self.register.keep_state_only(&round.run_files);
                self.finish(began_at, pace);
            }
            None => return self.begin(round),
        }
        true
    }

    fn begin(&self, round: &mut Round) -> bool {
        let now = self.commits.clock.wall();
        let interval = self.commits.options.scrub_interval;
        let status = &mut self.scrub.lock().status;
        if status
            .round_finished_at
            .is_some_and(|at| at.after(interval) > now && at <= now)
        {
            return false;
        }
        let mut partitions: Vec<TopicPartition> = self
            .commits
            .state
            .read()
            .partitions
            .keys()
            .copied()
            .collect();
        partitions.sort_unstable();
        let tables = self.commits.state.read().paged_tables();
        round.run_files.clear();
        for (partition, group, table) in tables {
            for run in runs_of(&table) {
                round.run_files.insert(self.name(run.path()));
                let run = (partition, group.clone(), Arc::downgrade(&run));
                round.runs.push_back(run);
            }
        }
        round.partition_count = partitions.len();
        round.partitions = partitions.into();
        round.began_at = Some(now);
        (status.round_began_at, status.round_done) = (Some(now), 0.0);
        true
    }

    /// Checks the modules, which come last, and ends the round.
    fn finish(&self, began_at: Timestamp, pace: &Pace) {
        match self.modules.verify(pace) {
            Ok(found) => found
                .into_iter()
                .for_each(|(digest, sound)| self.register.note_module(digest, !sound)),
            Err(_) if self.is_stopping() => return,
            Err(error) => unread("modules", &error),
        }
        let now = self.commits.clock.wall();
        let took = began_at.until(now).as_secs_f64();
        metrics::gauge!("millrace_scrub_round_seconds").set(took);
        metrics::counter!("millrace_scrub_rounds_total").increment(1);
        tracing::debug!(seconds = took, "everything that is kept was read through");
        let status = &mut self.scrub.lock().status;
        (status.round_began_at, status.round_done) = (None, 0.0);
        status.round_finished_at = Some(now);
    }

    fn look_at(&self, partition: TopicPartition, segment: &KeptSegment, by: FoundBy, pace: &Pace) {
        let read = || {
            pace(OPEN_BYTES)?;
            verify(&*self.disk, segment, pace)
        };
        let found = match read() {
            // Reads it again, because files may have changed places during the first read.
            Ok(found) if !found.is_empty() && self.stands(partition, segment) => read(),
            found => found,
        };
        match found {
            Ok(found) if self.stands(partition, segment) => {
                self.note_found(partition, segment, found, by)
            }
            Ok(_) => {}
            Err(_) if self.is_stopping() => {}
            Err(error) => unread(&self.name(&segment.path), &error),
        }
    }

    fn look_at_run(&self, partition: TopicPartition, group: GroupName, run: &Run, pace: &Pace) {
        let mut reason = None;
        let examined = run.examine(pace, &mut |met| {
            if let MetInRun::Fault(fault) = met {
                reason.get_or_insert_with(|| fault.to_string());
            }
        });
        let file = self.name(run.path());
        match examined {
            Ok(()) => {
                let damaged = reason.map(|reason| DamagedState {
                    group,
                    partition,
                    file: file.clone(),
                    reason,
                    found_at: self.commits.clock.wall(),
                });
                self.register.note_state(file, damaged);
            }
            Err(_) if self.is_stopping() => {}
            Err(error) => unread(&file, &error),
        }
    }

    fn stands(&self, partition: TopicPartition, segment: &KeptSegment) -> bool {
        segment.stands_in(&self.segments(partition))
    }

    fn start_of(&self, id: TopicPartition) -> Offset {
        let state = self.commits.state.read();
        let partition = state.partitions.get(&id);
        partition.map_or(Offset::MAX, |partition| partition.ends().start)
    }

    fn note_found(
        &self,
        partition: TopicPartition,
        segment: &KeptSegment,
        mut found: Vec<Damage>,
        found_by: FoundBy,
    ) {
        // Messages that are no longer kept are not a loss.
        let start = self.start_of(partition);
        found.retain(|damage| damage.offsets.end > start);
        let file = self.name(&segment.path);
        let found_at = self.commits.clock.wall();
        let met = |damage: &Damage| Met {
            partition,
            from: damage.offsets.start,
            to: damage.offsets.end,
            kind: damage.kind,
            file: file.clone(),
            found_at,
            found_by,
        };
        self.register
            .replace(partition, &segment.offsets, found, met);
    }
}

/// Logs a file that could not be read. It may be readable next time; if not, readers get the error
/// as well.
fn unread(file: &str, error: &std::io::Error) {
    metrics::counter!("millrace_scrub_errors_total").increment(1);
    tracing::error!(file, %error, "a file could not be read");
}
