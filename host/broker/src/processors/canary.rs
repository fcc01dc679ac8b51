//! Canaries: a revision takes a share of the keys while another one stays current. Each change is one commit of the catalogue.

use std::collections::BTreeMap;

use metrics::counter;
use millrace_model::{Canary, ChangeKind, Processor, ProcessorName, ProcessorSpec};
use serde::Serialize;

use crate::dispatch::comparison::ShadowReport;
use crate::dispatch::sides::{Side, SideStatus};
use crate::processors::error::{ProcessorError, invalid};
use crate::processors::handle::Processors;
use crate::processors::loading::check_patience;
use crate::processors::next_spec::NextSpec;
use crate::processors::revisions::{
    begin_anew, end_trials, kept, make_void, on_trial, tried_already, unproven_run,
};

/// How a canary compares with the current revision.
#[derive(Clone, Debug, Serialize)]
pub struct CanaryStatus {
    /// The canary's share of the keys.
    pub percent: u32,
    /// The results of its messages, since it began on this host.
    pub canary: SideStatus,
    /// The results of all other messages in that time.
    pub current: SideStatus,
    /// Why it takes no more messages and is about to be withdrawn.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trouble: Option<String>,
}

impl Processors {
    /// Creates a revision that takes the messages of `percent` of the keys, while the current one keeps the others. An existing canary
    /// ends; one with the same specification gets the new share.
    ///
    /// # Errors
    /// [`ProcessorError`]; nothing has changed then.
    pub async fn deploy_canary(
        &self,
        name: &ProcessorName,
        spec: impl Into<NextSpec>,
        percent: u32,
    ) -> Result<Processor, ProcessorError> {
        let next: NextSpec = spec.into();
        self.inner
            .catalogue
            .decide(|| self.deploy_next_canary(name, next.clone(), percent))
            .await
    }

    async fn deploy_next_canary(
        &self,
        name: &ProcessorName,
        next: NextSpec,
        percent: u32,
    ) -> Result<Processor, ProcessorError> {
        let known = self.known(name)?;
        let spec = next.over(name, Some(&known.processor))?;
        let mut processor = known.processor;
        check_percent(percent)?;
        check_patience(&spec)?;
        check_beside(&processor, &spec)?;
        self.check_limits(&spec)?;
        let revision = self.tried(&mut processor, spec);
        let same = processor
            .canary
            .clone()
            .filter(|_| known.trial_problem.is_none());
        if same.is_some_and(|canary| (canary.revision, canary.percent) == (revision, percent)) {
            return Ok(processor);
        }
        self.begin_canary(&mut processor, revision, percent);
        self.check_chains(&processor)?;
        self.change(processor).await
    }

    /// Changes the canary's share; 0 withdraws it.
    ///
    /// # Errors
    /// [`ProcessorError`].
    pub async fn set_canary(
        &self,
        name: &ProcessorName,
        percent: u32,
    ) -> Result<Processor, ProcessorError> {
        self.inner
            .catalogue
            .decide(|| self.set_canary_now(name, percent))
            .await
    }

    async fn set_canary_now(
        &self,
        name: &ProcessorName,
        percent: u32,
    ) -> Result<Processor, ProcessorError> {
        let mut processor = self.known(name)?.processor;
        let Some(canary) = processor.canary.clone() else {
            return Err(ProcessorError::NoTrial(name.clone()));
        };
        if percent == 0 {
            self.withdraw(&mut processor, None);
        } else if percent != canary.percent {
            check_percent(percent)?;
            self.begin_canary(&mut processor, canary.revision, percent);
        }
        self.change(processor).await
    }

    /// Makes the revision on trial current. The history records the results of its trial.
    ///
    /// # Errors
    /// [`ProcessorError::TrialFails`] if it is about to be withdrawn, and [`ProcessorError`].
    pub async fn promote(&self, name: &ProcessorName) -> Result<Processor, ProcessorError> {
        self.inner
            .catalogue
            .decide(|| self.promote_on_trial(name, false))
            .await
    }

    /// Like [`promote`](Self::promote), even if the revision is about to be withdrawn.
    ///
    /// # Errors
    /// [`ProcessorError`].
    pub async fn promote_anyway(&self, name: &ProcessorName) -> Result<Processor, ProcessorError> {
        self.inner
            .catalogue
            .decide(|| self.promote_on_trial(name, true))
            .await
    }

    async fn promote_on_trial(
        &self,
        name: &ProcessorName,
        anyway: bool,
    ) -> Result<Processor, ProcessorError> {
        let mut processor = self.known(name)?.processor;
        let Some(revision) = on_trial(&processor) else {
            return Err(ProcessorError::NoTrial(name.clone()));
        };
        self.promote_to(&mut processor, revision, anyway)?;
        self.check_chains(&processor)?;
        self.change(processor).await
    }

    /// Makes the revision on trial current, unless its trial has failed.
    pub(crate) fn promote_to(
        &self,
        processor: &mut Processor,
        revision: u32,
        anyway: bool,
    ) -> Result<(), ProcessorError> {
        kept(processor, revision)?;
        let canary = self.canary_status(processor);
        let canary = canary.filter(|status| status.canary.revision == revision);
        if let Some(why) = canary.as_ref().and_then(|status| status.trouble.clone())
            && !anyway
        {
            return Err(ProcessorError::TrialFails {
                name: processor.name.clone(),
                revision,
                why,
            });
        }
        let shadow = self.inner.supervisor.shadow(&processor.name);
        let shadow = shadow.filter(|report| report.revision == revision);
        let found = canary.and_then(|status| wrong_of_canary(&status));
        let found = found.or_else(|| shadow.and_then(|report| wrong_of_shadow(&report)));
        self.leave(processor);
        let before = processor.current;
        let unproven_run = unproven_run(processor);
        let now = self.inner.clock.wall();
        for promoted in processor.revisions.iter_mut() {
            if promoted.number == revision {
                begin_anew(promoted, before, now);
                promoted.unproven_run = unproven_run;
            }
        }
        end_trials(processor);
        processor.current = revision;
        let found = found.map_or_else(String::new, |found| format!("; on trial {found}"));
        let text = format!("takes over from revision {before}{found}");
        self.record(processor, ChangeKind::Promote, revision, Some(text));
        Ok(())
    }

    fn begin_canary(&self, processor: &mut Processor, revision: u32, percent: u32) {
        self.end_other_trial(processor, revision);
        processor.canary = Some(Canary {
            revision,
            percent,
            since: self.inner.clock.wall(),
        });
        let text = format!("{percent} % of the keys");
        self.record(processor, ChangeKind::Canary, revision, Some(text));
    }

    /// The number of the revision to try: that of the one on trial if it is the same.
    pub(crate) fn tried(&self, processor: &mut Processor, spec: ProcessorSpec) -> u32 {
        if let Some(number) = tried_already(processor, &spec) {
            return number;
        }
        let number = self.add_revision(processor, spec);
        if let Some(added) = processor.revisions.last_mut() {
            added.trial = true;
        }
        number
    }

    /// Puts another revision on trial, or the same one in another way.
    pub(crate) fn end_other_trial(&self, processor: &mut Processor, revision: u32) {
        match on_trial(processor) == Some(revision) {
            true => end_trials(processor),
            false => self.end_trial(processor, &format!("in favour of revision {revision}")),
        }
    }

    /// Ends the trial; the current revision takes all messages again.
    pub(crate) fn withdraw(&self, processor: &mut Processor, why: Option<String>) {
        if let Some(revision) = on_trial(processor) {
            end_trials(processor);
            make_void(processor, revision);
            self.record(processor, ChangeKind::Withdraw, revision, why);
        }
    }

    /// Withdraws a canary whose breaker has opened, if it is still the one.
    pub(crate) async fn withdraw_by_itself(
        &self,
        name: &ProcessorName,
        revision: u32,
        why: String,
    ) -> Result<(), ProcessorError> {
        self.inner
            .catalogue
            .decide(|| self.withdraw_now(name, revision, &why))
            .await
    }

    async fn withdraw_now(
        &self,
        name: &ProcessorName,
        revision: u32,
        why: &str,
    ) -> Result<(), ProcessorError> {
        let mut processor = self.known(name)?.processor;
        if on_trial(&processor) != Some(revision) {
            return Ok(());
        }
        let note = format!("withdrawn by the host: {why}");
        for bad in processor.revisions.iter_mut() {
            if bad.number == revision {
                bad.note = Some(note.clone());
            }
        }
        self.by_itself()
            .withdraw(&mut processor, Some(why.to_owned()));
        self.change(processor).await?;
        counter!("millrace_canaries_withdrawn_total", "processor" => name.to_string()).increment(1);
        tracing::error!(processor = %name, revision, why, "a canary was withdrawn; its messages go to the current revision");
        Ok(())
    }

    /// How the processor's canary does; `None` if there is none.
    pub(crate) fn canary_status(&self, processor: &Processor) -> Option<CanaryStatus> {
        let canary = self.inner.supervisor.canary(&processor.name)?;
        Some(CanaryStatus {
            percent: canary.percent,
            canary: canary.tally.status(Side::Canary, canary.live.revision),
            current: canary.tally.status(Side::Current, processor.current),
            trouble: canary.gate.status().text,
        })
    }
}

/// The canary's failures; `None` if there were none.
fn wrong_of_canary(status: &CanaryStatus) -> Option<String> {
    let SideStatus {
        messages,
        failed,
        failed_calls,
        asked_again,
        ..
    } = status.canary;
    let is_wrong = failed + failed_calls + asked_again > 0;
    is_wrong.then(|| {
        let would = match asked_again {
            0 => String::new(),
            asked_again => format!(", and would have given up {asked_again} of them"),
        };
        format!("it had {failed} failed attempts and {failed_calls} failed calls over {messages} messages{would}")
    })
}

/// The shadow's differences; `None` if there were none.
fn wrong_of_shadow(report: &ShadowReport) -> Option<String> {
    let otherwise = report.compared.saturating_sub(report.alike);
    let is_wrong = otherwise > 0 || !report.failed_calls.is_empty();
    is_wrong.then(|| {
        let counts = |counts: &BTreeMap<String, u64>| {
            let counts = counts.iter().map(|(what, count)| format!("{what} {count}"));
            counts.collect::<Vec<_>>().join(", ")
        };
        let mut text = format!(
            "{otherwise} of {} messages had different results",
            report.compared
        );
        if !report.outcomes.is_empty() {
            text += &format!(" ({})", counts(&report.outcomes));
        }
        if !report.failed_calls.is_empty() {
            text += &format!(
                ", and calls failed: {}; they left {} messages without an answer",
                counts(&report.failed_calls),
                report.not_answered
            );
        }
        text
    })
}

fn check_percent(percent: u32) -> Result<(), ProcessorError> {
    match percent {
        1..=99 => Ok(()),
        _ => invalid(format!(
            "a canary's share is 1 to 99 %, not {percent} %. To give it all keys, promote it; to give it none, withdraw it (a share of 0)"
        )),
    }
}

/// Whether further revisions may be deployed.
pub(crate) fn check_no_replay(processor: &Processor) -> Result<(), ProcessorError> {
    match &processor.replay {
        None => Ok(()),
        Some(replay) => invalid(format!(
            "{} is a replay of {}; deploy to that one, or delete the replay first",
            processor.name, replay.of
        )),
    }
}

/// Whether a revision can run on trial.
pub(crate) fn check_beside(
    processor: &Processor,
    spec: &ProcessorSpec,
) -> Result<(), ProcessorError> {
    check_no_replay(processor)?;
    let current = &kept(processor, processor.current)?.spec;
    if current == spec {
        return invalid(format!(
            "it is the same as the current revision {}; there is nothing to try",
            processor.current
        ));
    }
    let mut topics = [current.topics.clone(), spec.topics.clone()];
    topics.iter_mut().for_each(|topics| topics.sort());
    if topics[0] != topics[1] || current.order != spec.order {
        return invalid(
            "a revision on trial reads the same topics in the same order as the current one; to change those, deploy it without --canary or --shadow".to_owned(),
        );
    }
    Ok(())
}
