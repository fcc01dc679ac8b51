//! Processors: deploy, roll back, pause, delete. A change is loaded first, takes effect by one
//! commit of the catalogue, and is then passed to the workers, which adopt it at their next batch.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use millrace_engine::{CommitError, EntryKind, Expectation, Version};
use millrace_model::processor::Config;
use millrace_model::{Processor, ProcessorName, Revision, Topic, TopicId, TopicPartition};

use crate::catalogue::deciding::as_read;
use crate::catalogue::deployed::Deployed;
use crate::dispatch::input::Input;
use crate::dispatch::prepared::Prepared;
use crate::dispatch::standing::{Standing, State};
use crate::ground::backoff::may_pass;
use crate::ground::verbs::Verb;
use crate::processors::error::{ProcessorError, invalid};
use crate::processors::handle::Processors;
use crate::processors::loaded::Loaded;
use crate::processors::loading::check_patience;
use crate::processors::next_spec::{ConfigChange, NextSpec};
use crate::processors::revisions::{
    Beginning, configure, create, deploy, deploy_anew, pause, resume, told_of_records,
};
use crate::processors::turns::{Lacking, TurnError, without_trial};

/// Maximum time a pause waits for running batches. After that the pause returns, and the batches
/// end by themselves.
const PAUSE_WAIT_MS_MAX: u64 = 5_000;
/// Interval at which a pause checks for running batches.
const PAUSE_LOOK_INTERVAL: Duration = Duration::from_millis(2);

impl Processors {
    /// Loads and starts every processor of the catalogue.
    pub(crate) async fn start_processors(&self) -> Result<(), ProcessorError> {
        let change = self.inner.catalogue.change().await;
        let newest = self.inner.engine.version(EntryKind::Processor);
        self.inner.catalogue.followed().up_to(newest);
        for (key, entry) in self.inner.engine.entries(EntryKind::Processor) {
            match serde_json::from_slice::<Processor>(&entry.value) {
                Ok(mut processor) => {
                    told_of_records(&mut processor, self.inner.clock.wall());
                    self.start_processor(processor, entry.version).await;
                }
                Err(error) => {
                    let what = format!("the catalogue's entry of processor {key}: {error}");
                    return Err(ProcessorError::Catalogue(what));
                }
            }
        }
        drop(change);
        Ok(())
    }

    pub(crate) async fn start_processor(&self, processor: Processor, version: Version) {
        let (problem, trial_problem) = match self.load_and_prepare(&processor).await {
            Ok((prepared, trial_problem)) => {
                self.run(&processor, prepared).await;
                (None, trial_problem)
            }
            Err(error) if may_pass(&error) => {
                tracing::warn!(processor = %processor.name, %error, "a processor cannot be started now; it is tried again");
                self.inner.heard.of(&processor.name, None);
                (None, None)
            }
            Err(error) => {
                tracing::error!(processor = %processor.name, %error, "a processor cannot be started; the others run");
                (Some(error.to_string()), None)
            }
        };
        self.know_with(processor, version, problem, trial_problem);
    }

    /// Prepares a running processor again, because its surroundings have changed.
    pub(crate) async fn prepare_anew(&self, name: &ProcessorName) {
        let Some(known) = self
            .inner
            .catalogue
            .deployed(name)
            .filter(|known| known.problem.is_none())
        else {
            return;
        };
        match self.load_and_prepare(&known.processor).await {
            Ok((prepared, _)) => self.run(&known.processor, prepared).await,
            Err(error) => {
                tracing::error!(processor = %name, %error, "a processor continues unchanged");
            }
        }
    }

    /// Loads and prepares a processor as it is, without a decision about it. The caller holds the
    /// catalogue's lock.
    async fn load_and_prepare(
        &self,
        processor: &Processor,
    ) -> Result<(Prepared, Option<String>), ProcessorError> {
        let prepare =
            async |loaded: Arc<Loaded>| self.prepare_alone_if_need_be(processor, &loaded).await;
        self.load_between(&processor.name, prepare).await
    }

    /// Prepares the processor. If the revision on trial cannot be loaded, the current one still
    /// runs; the second value says why the trial does not.
    pub(super) async fn prepare_alone_if_need_be(
        &self,
        processor: &Processor,
        loaded: &Loaded,
    ) -> Result<(Prepared, Option<String>), TurnError> {
        // A trial that already runs here must not be dropped because it cannot be prepared again.
        let runs_alone = processor.trial.is_some() && !self.is_trying(&processor.name);
        let known = loaded.trial_problem(processor).filter(|_| runs_alone);
        let why = match known {
            Some(why) => why.to_owned(),
            None => match self.prepare(processor, loaded).await {
                Ok(prepared) => return Ok((prepared, None)),
                Err(TurnError::Refused(error)) if runs_alone => error.to_string(),
                Err(TurnError::NotLoaded(lacking)) => {
                    return Err(TurnError::NotLoaded(Box::new(Lacking {
                        runs_alone,
                        ..*lacking
                    })));
                }
                Err(refused) => return Err(refused),
            },
        };
        let prepared = self.prepare(&without_trial(processor), loaded).await?;
        tracing::error!(processor = %processor.name, error = why, "the revision on trial cannot be started; the current one runs alone");
        Ok((prepared, Some(why)))
    }

    /// Whether this host runs a revision on trial of the processor.
    fn is_trying(&self, name: &ProcessorName) -> bool {
        let supervisor = &self.inner.supervisor;
        supervisor.canary(name).is_some() || supervisor.shadow(name).is_some()
    }

    /// Creates the processor or its next revision, from a whole specification or from [`NextSpec`]
    /// changes to the current one. A failed deployment changes nothing. If the specification is the
    /// current one's, returns the current revision. A deleted processor that is created again
    /// continues at its progress.
    ///
    /// # Errors
    /// [`ProcessorError`].
    pub async fn deploy(
        &self,
        name: &ProcessorName,
        spec: impl Into<NextSpec>,
    ) -> Result<Processor, ProcessorError> {
        self.caller.may(Verb::DeployProcessor, name.as_str())?;
        self.deploy_as(name, spec.into(), Beginning::Current).await
    }

    /// Deploys a revision that begins in this way.
    pub(super) async fn deploy_as(
        &self,
        name: &ProcessorName,
        next: NextSpec,
        beginning: Beginning,
    ) -> Result<Processor, ProcessorError> {
        self.decide(name, async |loaded| {
            let next = next.clone();
            self.deploy_now(name, next, beginning, &loaded).await
        })
        .await
    }

    async fn deploy_now(
        &self,
        name: &ProcessorName,
        next: NextSpec,
        beginning: Beginning,
        loaded: &Loaded,
    ) -> Result<Processor, TurnError> {
        let known = match self.inner.catalogue.deployed(name) {
            Some(known) => known,
            None if beginning == Beginning::Current => {
                let processor = self.first_deployment(name, next).await?;
                return self.change(processor, loaded).await;
            }
            None => return Err(ProcessorError::Unknown(name.clone()).into()),
        };
        let config = next.config_over(&known.processor.config)?;
        let spec = next.over(name, Some(&known.processor))?;
        let mut processor = known.processor.clone();
        let (asked, seen) = (self.asked(), self.seen(&known));
        let is_deployed = deploy(&mut processor, asked, seen, spec.clone(), beginning)?;
        if !configure(&mut processor, asked, config) && !is_deployed {
            return self.refresh(known, loaded).await;
        }
        self.check_rights(&spec)?;
        // Settings alone are no new revision: what is deployed may stay, whatever this host demands
        // by now.
        if is_deployed {
            check_patience(&spec)?;
            self.check_limits(&spec)?;
            self.check_trusted(&spec).await?;
        }
        // A shadow's outputs go nowhere, so they cannot form a cycle.
        if is_deployed && beginning != Beginning::Shadow {
            self.check_chains(&processor)?;
        }
        self.change(processor, loaded).await
    }

    /// Like [`deploy`](Self::deploy), with empty state. The workers stop after their batch, one
    /// commit makes the revision current and empties its state in every partition, and the workers
    /// start again. An unchanged specification also creates a revision.
    ///
    /// # Errors
    /// [`ProcessorError`]; nothing has changed then.
    pub async fn deploy_and_reset_state(
        &self,
        name: &ProcessorName,
        spec: impl Into<NextSpec>,
    ) -> Result<Processor, ProcessorError> {
        self.caller.may(Verb::DeployProcessor, name.as_str())?;
        let next: NextSpec = spec.into();
        self.decide(name, async |loaded| {
            let next = next.clone();
            self.deploy_and_reset_now(name, next, &loaded).await
        })
        .await
    }

    async fn deploy_and_reset_now(
        &self,
        name: &ProcessorName,
        next: NextSpec,
        loaded: &Loaded,
    ) -> Result<Processor, TurnError> {
        let before = self.inner.catalogue.deployed(name);
        let processor = match &before {
            Some(known) => {
                let config = next.config_over(&known.processor.config)?;
                let spec = next.over(name, Some(&known.processor))?;
                check_patience(&spec)?;
                self.check_rights(&spec)?;
                self.check_limits(&spec)?;
                self.check_trusted(&spec).await?;
                let mut processor = known.processor.clone();
                configure(&mut processor, self.asked(), config);
                deploy_anew(&mut processor, self.asked(), self.seen(known), spec)?;
                self.check_chains(&processor)?;
                processor
            }
            None => self.first_deployment(name, next).await?,
        };
        let mut expects = self.stands_on(&processor);
        let prepared = self.prepare(&processor, loaded).await?;
        expects.extend(read_by(&prepared));
        self.inner.supervisor.stop(name).await;
        if self.inner.supervisor.is_closed() {
            // A worker's last batch may still write state.
            return Err(CommitError::Closed.into());
        }
        let kept = self.keep_and_reset(name, Some(&processor), expects).await;
        let version = match kept {
            Ok(version) => version,
            Err(error) => {
                // If another host has changed the processor, its stored version is followed
                // instead.
                if let Some(before) =
                    before.filter(|before| self.inner.catalogue.is_entry_of(before))
                {
                    self.start_processor(before.processor, before.version).await;
                }
                return Err(error.into());
            }
        };
        self.run(&processor, prepared).await;
        self.know(processor.clone(), version);
        Ok(processor)
    }

    async fn first_deployment(
        &self,
        name: &ProcessorName,
        next: NextSpec,
    ) -> Result<Processor, ProcessorError> {
        let begin_at = next.begin_at();
        let config = next.config_over(&Config::default())?;
        let spec = next.over(name, None)?;
        check_patience(&spec)?;
        self.check_rights(&spec)?;
        self.check_limits(&spec)?;
        self.check_trusted(&spec).await?;
        if name.as_str().starts_with('-') {
            return invalid(format!(
                "a new processor cannot be named {name}: the command line would take it for a flag"
            ));
        }
        let start = self.start_of(name, &spec, begin_at).await?;
        let mut processor = create(name, spec, self.asked());
        processor.start = start;
        processor.config = config;
        self.check_chains(&processor)?;
        Ok(processor)
    }

    /// Changes nothing, but restarts lost workers, and starts a processor that could not be loaded
    /// before.
    async fn refresh(&self, known: Deployed, loaded: &Loaded) -> Result<Processor, TurnError> {
        let standings = self.inner.supervisor.standings(&known.processor.name);
        let lost = |(_, standing): &(Input, Standing)| matches!(standing.state, State::Stopped(_));
        if known.problem.is_none() && !standings.iter().any(lost) {
            return Ok(known.processor);
        }
        let (prepared, trial_problem) = self
            .prepare_alone_if_need_be(&known.processor, loaded)
            .await?;
        self.run(&known.processor, prepared).await;
        self.know_with(known.processor.clone(), known.version, None, trial_problem);
        Ok(known.processor)
    }

    /// Takes no further batches until [`resume`](Self::resume). Waits a few seconds at most for
    /// running ones, on any host.
    ///
    /// # Errors
    /// [`ProcessorError`].
    pub async fn pause(&self, name: &ProcessorName) -> Result<Processor, ProcessorError> {
        self.caller.may(Verb::PauseProcessor, name.as_str())?;
        let processor = self.inner.catalogue.decide(|| self.pause_now(name)).await?;
        let rests = |(_, standing): &(Input, Standing)| {
            let state = &standing.state;
            !matches!(
                state,
                State::Running | State::Waiting(..) | State::Done | State::Held
            )
        };
        let wait = async {
            while !self.inner.supervisor.standings(name).iter().all(rests) {
                tokio::time::sleep(PAUSE_LOOK_INTERVAL).await;
            }
            let holdings = self.inner.hosts.holdings(&name.group());
            holdings.rest(self.worked_at_elsewhere(&processor)).await;
        };
        // Longer calls end by themselves; the status shows them.
        let _ = tokio::time::timeout(Duration::from_millis(PAUSE_WAIT_MS_MAX), wait).await;
        Ok(processor)
    }

    /// Partitions of a paused processor where, as far as this host knows, another host may still be
    /// working.
    fn worked_at_elsewhere(&self, processor: &Processor) -> Vec<TopicPartition> {
        let standings = self.inner.supervisor.standings(&processor.name);
        // Redriven messages need no check of their own: they are under the same lease.
        let here = standings
            .iter()
            .filter(|(input, standing)| standing.state == State::Paused && !input.is_redriven());
        let here: HashSet<TopicPartition> = here
            .filter_map(|(input, _)| input.topic.partition(input.partition))
            .collect();
        let topics = processor.current().into_iter().flat_map(|r| &r.spec.topics);
        let topics = topics.filter_map(|name| self.inner.catalogue.topic(name));
        let all = topics.flat_map(|topic| topic.partitions().collect::<Vec<_>>());
        all.filter(|partition| !here.contains(partition)).collect()
    }

    /// Changes the settings that its component reads, without a new revision: every call that
    /// begins afterwards sees them.
    ///
    /// # Errors
    /// [`ProcessorError`].
    pub async fn configure(
        &self,
        name: &ProcessorName,
        change: ConfigChange,
    ) -> Result<Processor, ProcessorError> {
        self.caller.may(Verb::DeployProcessor, name.as_str())?;
        let decide = || self.configure_now(name, change.clone());
        self.inner.catalogue.decide(decide).await
    }

    async fn configure_now(
        &self,
        name: &ProcessorName,
        change: ConfigChange,
    ) -> Result<Processor, ProcessorError> {
        let known = self.known(name)?;
        let mut processor = known.processor;
        // Settings decide what a component does with what it is granted.
        if let Some(current) = processor.current() {
            self.check_rights(&current.spec)?;
        }
        let config = change.over(&processor.config)?;
        if !configure(&mut processor, self.asked(), config) {
            return Ok(processor);
        }
        let version = self.keep(&processor).await?;
        self.know_with(
            processor.clone(),
            version,
            known.problem,
            known.trial_problem,
        );
        Ok(processor)
    }

    async fn pause_now(&self, name: &ProcessorName) -> Result<Processor, ProcessorError> {
        let known = self.known(name)?;
        let mut processor = known.processor;
        pause(&mut processor, self.asked());
        let version = self.keep(&processor).await?;
        self.inner.supervisor.pause(name);
        self.know_with(
            processor.clone(),
            version,
            known.problem,
            known.trial_problem,
        );
        Ok(processor)
    }

    /// Resumes after [`pause`](Self::pause). Lost workers are started again, and a processor with
    /// an open breaker tries a message at once. `accept_dead_letters` closes the breaker and lets
    /// up to this many dead letters through before the breaker and the bound of dead letters apply
    /// again. Another revision ends that.
    ///
    /// # Errors
    /// [`ProcessorError`].
    pub async fn resume(
        &self,
        name: &ProcessorName,
        accept_dead_letters: Option<u64>,
    ) -> Result<Processor, ProcessorError> {
        self.caller.may(Verb::PauseProcessor, name.as_str())?;
        self.decide(name, async |loaded| {
            self.resume_now(name, accept_dead_letters, &loaded).await
        })
        .await
    }

    async fn resume_now(
        &self,
        name: &ProcessorName,
        accept_dead_letters: Option<u64>,
        loaded: &Loaded,
    ) -> Result<Processor, TurnError> {
        let mut processor = self.known(name)?.processor;
        resume(&mut processor, self.asked(), accept_dead_letters);
        // A trial that cannot be loaded must not stop the current revision.
        let (prepared, trial_problem) = self.prepare_alone_if_need_be(&processor, loaded).await?;
        let version = self.keep(&processor).await?;
        self.run(&processor, prepared).await;
        self.know_with(processor.clone(), version, None, trial_problem);
        if let Some(gate) = self.inner.supervisor.gate(name) {
            gate.resume(accept_dead_letters);
        }
        Ok(processor)
    }

    /// Deletes the processor. Its dead-letter topics, progress and state stay: created again under
    /// the same name, it continues.
    ///
    /// # Errors
    /// [`ProcessorError`].
    pub async fn delete_processor(&self, name: &ProcessorName) -> Result<(), ProcessorError> {
        self.caller.may(Verb::DeleteProcessor, name.as_str())?;
        self.inner.catalogue.decide(|| self.delete_now(name)).await
    }

    async fn delete_now(&self, name: &ProcessorName) -> Result<(), ProcessorError> {
        self.known(name)?;
        let key = name.to_string();
        let expects = vec![self.inner.catalogue.as_known(name)];
        let write =
            self.inner
                .catalogue
                .write_entry::<Processor>(EntryKind::Processor, key, None, expects);
        let version = write.await?;
        self.forget_processor(name).await;
        self.inner.catalogue.followed().own(version);
        Ok(())
    }

    /// Like [`delete_processor`](Self::delete_processor), and deletes its state in the same commit.
    ///
    /// # Errors
    /// [`ProcessorError`]; nothing has changed then.
    pub async fn delete_processor_and_state(
        &self,
        name: &ProcessorName,
    ) -> Result<(), ProcessorError> {
        self.caller.may(Verb::DeleteProcessor, name.as_str())?;
        self.inner
            .catalogue
            .decide(|| self.delete_now_with_state(name))
            .await
    }

    async fn delete_now_with_state(&self, name: &ProcessorName) -> Result<(), ProcessorError> {
        let known = self.known(name)?;
        self.inner.supervisor.stop(name).await;
        if self.inner.supervisor.is_closed() {
            // A worker's last batch may still write state.
            return Err(CommitError::Closed.into());
        }
        let expects = vec![self.inner.catalogue.as_known(name)];
        match self.keep_and_reset(name, None, expects).await {
            Ok(version) => {
                self.forget_processor(name).await;
                self.inner.catalogue.followed().own(version);
                Ok(())
            }
            Err(error) => {
                // If another host has changed the processor, its stored version is followed
                // instead.
                if self.inner.catalogue.is_entry_of(&known) {
                    self.start_processor(known.processor, known.version).await;
                }
                Err(error.into())
            }
        }
    }

    pub(crate) fn known(&self, name: &ProcessorName) -> Result<Deployed, ProcessorError> {
        let deployed = self.inner.catalogue.deployed(name);
        deployed.ok_or_else(|| ProcessorError::Unknown(name.clone()))
    }

    /// Starts redriving dead letters that are due after a rollback.
    pub(super) fn have_sent_what_is_due(&self, name: &ProcessorName) {
        if let Some(sends) = self.sends_again() {
            sends.send_what_is_due(name);
        }
    }

    fn know(&self, processor: Processor, version: Version) {
        self.know_with(processor, version, None, None);
    }

    pub(crate) fn know_with(
        &self,
        processor: Processor,
        version: Version,
        problem: Option<String>,
        trial_problem: Option<String>,
    ) {
        let name = processor.name.clone();
        self.inner.catalogue.learn(name.clone(), |before| {
            // The problem belongs to the current revision, and is dropped when another one becomes
            // current.
            let before = before.filter(|known| known.processor.current == processor.current);
            let deployed = Deployed {
                way_back_problem: before.and_then(|known| known.way_back_problem.clone()),
                processor,
                version,
                problem,
                trial_problem,
            };
            let gate = self.inner.supervisor.gate(&name);
            if let (Some(gate), Some(current)) = (gate, deployed.processor.current()) {
                gate.follow(current.number, &current.record);
            }
            deployed
        });
        // The version is recorded only now: earlier, changes in between would count as known.
        self.inner.catalogue.followed().own(version);
    }

    /// Commits a processor whose decision depends only on the processor itself; returns its
    /// version.
    pub(crate) async fn keep(&self, processor: &Processor) -> Result<Version, CommitError> {
        let expects = vec![self.inner.catalogue.as_known(&processor.name)];
        self.keep_on(processor, expects).await
    }

    async fn keep_on(
        &self,
        processor: &Processor,
        expects: Vec<Expectation>,
    ) -> Result<Version, CommitError> {
        let key = processor.name.to_string();
        let write =
            self.inner
                .catalogue
                .write_entry(EntryKind::Processor, key, Some(processor), expects);
        write.await
    }

    /// The expectations of a change of a processor: on itself, on all other processors, and on the
    /// topics and modules of the revisions that will run.
    fn stands_on(&self, processor: &Processor) -> Vec<Expectation> {
        let engine = &self.inner.engine;
        let trial = processor.on_trial();
        let trial = trial.and_then(|number| processor.revision(number));
        let mut expects = vec![
            self.inner.catalogue.as_known(&processor.name),
            self.inner.catalogue.all_as_known(),
        ];
        for Revision { spec, .. } in processor.current().into_iter().chain(trial) {
            let topics = spec
                .topics
                .iter()
                .chain(&spec.output)
                .chain(&spec.grants.topics);
            expects.extend(topics.map(|name| Expectation::Topic {
                name: name.clone(),
                topic: engine.topic(name),
            }));
            let modules = [Some(spec.module), spec.error_handler];
            let modules = modules.into_iter().flatten();
            expects.extend(modules.map(|digest| self.inner.catalogue.module_as_now(digest)));
        }
        expects
    }

    /// Ends a turn: commits, then tells the workers. A failure before the commit changes nothing.
    pub(crate) async fn change(
        &self,
        processor: Processor,
        loaded: &Loaded,
    ) -> Result<Processor, TurnError> {
        let mut expects = self.stands_on(&processor);
        let prepared = self.prepare(&processor, loaded).await?;
        expects.extend(read_by(&prepared));
        let version = self.keep_on(&processor, expects).await?;
        self.run(&processor, prepared).await;
        self.know(processor.clone(), version);
        Ok(processor)
    }

    pub(super) async fn run(&self, processor: &Processor, prepared: Prepared) {
        // A new processor's first call may begin before it is known.
        self.inner.catalogue.configure(processor);
        let supervisor = &self.inner.supervisor;
        supervisor.apply(prepared, processor.paused).await;
    }
}

/// Expects that the topics that the processor reads, and its dead-letter topics, are the ones that
/// were found.
fn read_by(prepared: &Prepared) -> Vec<Expectation> {
    let inputs = prepared.inputs.iter();
    let topics = inputs.flat_map(|input| [&input.topic, &input.dead_letters]);
    let by_id: BTreeMap<TopicId, &Topic> = topics.map(|topic| (topic.id, topic)).collect();
    by_id.into_values().map(as_read).collect()
}
