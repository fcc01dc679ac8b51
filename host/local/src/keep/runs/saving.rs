//! Writes the changes of paged tables as runs, and says which runs the checkpoint must name.

use std::collections::BTreeSet;
use std::io;
use std::sync::{Arc, Weak};

use millrace_engine::state::keeper::{KeepTable as _, Layer, LayersStep, Stored, TableStep};
use millrace_engine::state::{StateSize, StateTable};
use millrace_log::run::{Run, RunFacts, RunWriter};
use millrace_model::TopicId;

use super::set::{RunSet, items_max, write};
use super::{Known, RunFiles};
use crate::decide::state::{Changes, TableKey};
use crate::ground::keep_error::KeepError;
use crate::keep::checkpoint::{PagedTable, RunsStep, StoredRun};

/// Written and synced runs, which count once the checkpoint's step is durable.
pub(crate) struct Plan {
    pub(crate) step: RunsStep,
    installs: Vec<Install>,
    written: Vec<u64>,
}

/// The new runs of a table.
struct Install {
    key: TableKey,
    table: Weak<StateTable>,
    layers: Vec<Arc<Layer>>,
    before: Option<Arc<RunSet>>,
    set: Arc<RunSet>,
    stored: Vec<StoredRun>,
    size: StateSize,
}

impl RunFiles {
    /// Writes the runs of a checkpoint, durable on return.
    ///
    /// # Errors
    /// [`KeepError`]; the written files are removed again, unless the disk failed.
    pub(crate) fn write(&mut self, changes: &Changes) -> Result<Plan, KeepError> {
        let mut plan = Plan {
            step: RunsStep::default(),
            installs: Vec::new(),
            written: Vec::new(),
        };
        match self.write_all(changes, &mut plan) {
            Ok(()) => Ok(plan),
            Err(error) => {
                self.abandon(plan);
                Err(error.into())
            }
        }
    }

    fn write_all(&mut self, changes: &Changes, plan: &mut Plan) -> io::Result<()> {
        let removed = changes.removed.iter().map(|removed| removed.topic);
        let removed: BTreeSet<TopicId> = removed.collect();
        self.take_merged();
        for (partition, name, step) in &changes.tables {
            let key = (*partition, name.clone());
            if removed.contains(&partition.topic) {
                continue;
            }
            match step {
                TableStep::Layers(layers) => self.write_table(key, layers, plan)?,
                TableStep::Rows(_) if self.tables.contains_key(&key) => {
                    self.cancel_merge(&key);
                    plan.step.tables.push((key, None));
                }
                TableStep::Rows(_) => {}
            }
        }
        let gone = self.tables.keys();
        let gone = gone.filter(|(partition, _)| removed.contains(&partition.topic));
        let gone = gone.chain(&self.strange);
        gone.clone().for_each(|key| self.cancel_merge(key));
        plan.step.tables.extend(gone.map(|key| (key.clone(), None)));
        self.install_merged(plan)?;
        plan.step.next_run = self.next_number;
        if !plan.written.is_empty() {
            self.disk.sync_dir(&self.dir)?;
        }
        Ok(())
    }

    /// Installs the result of a merge for a table without other changes.
    fn install_merged(&self, plan: &mut Plan) -> io::Result<()> {
        let merged = self.merged.as_ref().map(|merged| &merged.job.key);
        let Some((key, known)) = merged.and_then(|key| self.tables.get_key_value(key)) else {
            return Ok(());
        };
        if plan.step.tables.iter().any(|(other, _)| other == key) {
            return Ok(());
        }
        let (mut runs, mut stored) = (known.set.runs().to_vec(), known.stored.clone());
        self.with_merged(key, &mut runs, &mut stored)?;
        let table = PagedTable {
            size: known.size,
            runs: stored.clone(),
            replaces_rows: false,
        };
        plan.step.tables.push((key.clone(), Some(table)));
        plan.installs.push(Install {
            key: key.clone(),
            table: known.table.clone(),
            layers: Vec::new(),
            before: Some(Arc::clone(&known.set)),
            set: RunSet::of(runs),
            stored,
            size: known.size,
        });
        Ok(())
    }

    fn write_table(&mut self, key: TableKey, from: &LayersStep, plan: &mut Plan) -> io::Result<()> {
        let is_whole = from.is_whole();
        // A complete layer replaces everything below it, whatever the previous checkpoint says.
        let known = self.tables.get(&key).filter(|_| !is_whole);
        let (before, mut stored) = match known {
            Some(known) => (Some(Arc::clone(&known.set)), known.stored.clone()),
            None => (None, Vec::new()),
        };
        let mut runs = before
            .as_ref()
            .map_or(Vec::new(), |set| set.runs().to_vec());
        self.with_merged(&key, &mut runs, &mut stored)?;
        let number = self.next_number;
        self.next_number += 1;
        plan.written.push(number);
        if let Some(facts) = self.write_run(number, from, runs.is_empty())? {
            runs.push(Arc::new(self.open_written(number)?));
            stored.push(StoredRun::of(&facts, self.cipher.as_deref()));
        } else {
            self.remove(number)?;
        }
        let table = PagedTable {
            size: from.size,
            runs: stored.clone(),
            replaces_rows: before.is_none(),
        };
        plan.step.tables.push((key.clone(), Some(table)));
        plan.installs.push(Install {
            key,
            table: from.table.clone(),
            layers: from.layers.clone(),
            before,
            set: RunSet::of(runs),
            stored,
            size: from.size,
        });
        Ok(())
    }

    /// Writes the layers as a run; `None` if they are empty.
    fn write_run(
        &self,
        number: u64,
        from: &LayersStep,
        are_oldest: bool,
    ) -> io::Result<Option<RunFacts>> {
        let path = self.path(number);
        let items = items_max(from);
        let mut writer = RunWriter::create(&*self.disk, &path, number, items, self.cipher.clone())?;
        match write(from, are_oldest, &mut writer)? {
            true => writer.finish().map(Some),
            false => Ok(None),
        }
    }

    pub(super) fn open_written(&self, number: u64) -> io::Result<Run> {
        let opened = Run::open(&*self.disk, &self.path(number), number, self.cipher.clone());
        opened.map_err(io::Error::other)
    }

    /// Call it when the checkpoint that names these runs is durable: tables now read from them, and
    /// files that are no longer named are removed.
    pub(crate) fn commit(&mut self, plan: Plan) {
        let before: BTreeSet<u64> = self.named().collect();
        let gone = plan.step.tables.into_iter();
        for (key, _) in gone.filter(|(_, table)| table.is_none()) {
            self.tables.remove(&key);
        }
        self.strange.clear();
        for install in plan.installs {
            let Install {
                key,
                table,
                layers,
                before,
                set,
                stored,
                size,
            } = install;
            if let Some(table) = table.upgrade() {
                let before = before.map(|before| before as Arc<dyn Stored>);
                let set = Arc::clone(&set);
                table.install(&layers, before.as_ref(), set);
            }
            let known = Known {
                set,
                stored,
                size,
                table,
            };
            self.tables.insert(key, known);
        }
        // The merge is included, or its table has other runs now.
        let merged = self.merged.take();
        let after: BTreeSet<u64> = self.named().collect();
        let merged = merged.filter(|merged| merged.facts.is_some());
        let useless = merged.map(|merged| merged.job.number);
        self.leaving
            .extend(useless.filter(|number| !after.contains(number)));
        self.leaving.extend(before.difference(&after));
        self.remove_leaving();
    }

    /// Call it when the checkpoint was not made and never will be.
    pub(crate) fn abandon(&mut self, plan: Plan) {
        self.leaving.extend(plan.written);
        self.remove_leaving();
    }
}
