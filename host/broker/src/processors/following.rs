//! Follows changes of processors that other hosts commit: stops them, or makes them known. [`super::heard`] starts them.

use std::collections::HashSet;

use millrace_engine::{Entry, EntryKind};
use millrace_model::{Processor, ProcessorName, Topic, Trial};

use crate::catalogue::deployed::Deployed;
use crate::processors::handle::Processors;
use crate::processors::waiting_gauge::none_waiting;

impl Processors {
    /// Applies changes of processors that other hosts committed. The caller holds the catalogue's
    /// lock.
    pub(crate) async fn catch_up(&self) {
        if !self.inner.catalogue.is_followed() {
            self.take_over_all().await;
        }
    }

    async fn take_over_all(&self) {
        let newest = self.inner.engine.version(EntryKind::Processor);
        let entries = self.inner.engine.entries(EntryKind::Processor);
        let kept: HashSet<&str> = entries.iter().map(|(key, _)| key.as_str()).collect();
        let gone: Vec<ProcessorName> = {
            let known = self.inner.catalogue.processors();
            let names = known.keys().filter(|name| !kept.contains(name.as_str()));
            names.cloned().collect()
        };
        for name in gone {
            self.forget_processor(&name).await;
        }
        for (key, entry) in &entries {
            let known = ProcessorName::parse(key).ok();
            let known = known.and_then(|name| self.inner.catalogue.deployed(&name));
            if known.is_none_or(|known| known.version != entry.version) {
                self.take_over(key, entry).await;
            }
        }
        self.inner.catalogue.followed().up_to(newest);
    }

    /// Makes a processor known as another host has stored it. If it runs otherwise now, it is started afterwards.
    async fn take_over(&self, key: &str, entry: &Entry) {
        let processor = match serde_json::from_slice::<Processor>(&entry.value) {
            Ok(processor) => processor,
            Err(error) => {
                let why = format!(
                    "another host, perhaps with a newer version, wrote an entry that this one cannot read: {error}"
                );
                tracing::error!(processor = key, why, "a processor has stopped on this host");
                if let Ok(name) = ProcessorName::parse(key) {
                    self.stop_here(&name, why).await;
                }
                return;
            }
        };
        let name = processor.name.clone();
        let known = self.inner.catalogue.deployed(&name);
        let resumed = known.as_ref().and_then(|known| {
            let resumes = &processor.resumes;
            let is_meant = resumes.revision == processor.current;
            resumes.since(&known.processor.resumes).filter(|_| is_meant)
        });
        match known {
            // The same revisions run on. A revision with a problem is loaded again below, because
            // the problem may be gone.
            Some(known)
                if known.problem.is_none()
                    && runs_alike(&known.processor, &processor)
                    && !self.inner.heard.waits(&name) =>
            {
                self.know_with(processor, entry.version, None, known.trial_problem);
                self.resume_here(&name, resumed);
                self.have_sent_what_was_left(&name);
                return;
            }
            _ if processor.paused => self.inner.supervisor.pause(&name),
            _ => {}
        }
        self.know_with(processor, entry.version, None, None);
        self.inner.heard.of(&name, resumed);
    }

    pub(super) fn have_sent_what_was_left(&self, name: &ProcessorName) {
        if let Some(sends) = self.sends_again() {
            sends.send_what_was_left(name);
        }
    }

    /// Applies other hosts' changes once, unless this host already knows them all.
    pub(crate) async fn follow_once(&self) {
        if !self.inner.catalogue.is_followed() {
            let _change = self.inner.catalogue.change().await;
            self.catch_up().await;
        }
    }

    /// Gives new partitions of a topic to the processors that read it.
    pub(crate) async fn enlarge(&self, topic: &Topic) {
        for Deployed { processor, .. } in self.inner.catalogue.readers_of(&topic.spec.name) {
            let current = processor.current();
            if !current.is_some_and(|r| r.spec.topics.contains(&topic.spec.name)) {
                continue;
            }
            match self.reads_of(&processor, topic).await {
                Ok(inputs) => self.inner.supervisor.enlarge(&processor.name, inputs),
                Err(error) => {
                    tracing::error!(processor = %processor.name, topic = %topic.spec.name, %error, "a processor does not read the new partitions yet; deploy or resume it to try again");
                }
            }
        }
    }

    /// Another host resumed the processor and may have accepted dead letters: this host's breaker
    /// follows.
    pub(super) fn resume_here(&self, name: &ProcessorName, resumed: Option<u64>) {
        if let Some(accepted) = resumed
            && let Some(gate) = self.inner.supervisor.gate(name)
        {
            gate.resume((accepted > 0).then_some(accepted));
        }
    }

    /// Stops the processor here: another host has stored it in a form that this host cannot read.
    async fn stop_here(&self, name: &ProcessorName, why: String) {
        self.inner.heard.forget(name);
        self.inner
            .catalogue
            .amend(name, |known| known.problem = Some(why));
        self.inner.supervisor.stop(name).await;
    }

    /// Stops and removes a processor that is no longer in the catalogue.
    pub(crate) async fn forget_processor(&self, name: &ProcessorName) {
        self.inner.heard.forget(name);
        self.inner.supervisor.stop(name).await;
        self.inner.catalogue.unlearn(name);
        self.inner.last_shown.forget(name);
        none_waiting(name);
        self.inner.modules.forget_logs(name);
    }
}

/// Whether both would run the same revisions in the same way.
fn runs_alike(one: &Processor, other: &Processor) -> bool {
    // A processor that was deleted and created again starts with the same numbers.
    let revision = |processor: &Processor, number| {
        let revision = processor.revision(number);
        revision.map(|r| (r.number, r.deployed_at, r.spec.clone()))
    };
    let what_runs = |processor: &Processor| {
        let trial = processor.on_trial();
        let trial = trial.and_then(|number| revision(processor, number));
        let share = processor.trial.as_ref().and_then(Trial::percent);
        (revision(processor, processor.current), trial, share)
    };
    one.paused == other.paused && one.replay == other.replay && what_runs(one) == what_runs(other)
}
