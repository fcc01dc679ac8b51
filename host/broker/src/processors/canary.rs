//! Canaries: a revision takes a share of the keys while another one stays current. Each change is
//! one commit of the catalogue.

use metrics::counter;
use millrace_model::{Processor, ProcessorName};
use serde::{Deserialize, Serialize};

use crate::dispatch::comparison::ShadowReport;
use crate::dispatch::sides::{Side, SideStatus};
use crate::ground::verbs::Verb;
use crate::processors::error::ProcessorError;
use crate::processors::handle::Processors;
use crate::processors::loaded::Loaded;
use crate::processors::next_spec::NextSpec;
use crate::processors::revisions::{Beginning, change_share, promote, withdraw_failing};
use crate::processors::turns::TurnError;

/// How a canary compares with the current revision.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct CanaryStatus {
    /// The canary's share of the keys.
    pub percent: u32,
    /// The results of its messages, since it began on this host.
    pub canary: SideStatus,
    /// The results of all other messages in that time.
    pub current: SideStatus,
    /// Why it takes no more messages and is about to be withdrawn; `None` otherwise.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trouble: Option<String>,
}

/// What hosts have seen of the revision on trial, added up: each host counts only its own part.
#[derive(Clone, Debug, Default)]
pub struct TrialSeen {
    /// How its canary compares with the current revision; `None` without a canary.
    pub canary: Option<CanaryStatus>,
    /// How its shadow does; `None` without a shadow.
    pub shadow: Option<ShadowReport>,
}

impl Processors {
    /// Creates a revision that takes the messages of `percent` of the keys. The current revision
    /// keeps the others. An existing canary with the same specification continues with the new
    /// share; any other trial ends.
    ///
    /// # Errors
    /// [`ProcessorError`]; nothing has changed then.
    pub async fn deploy_canary(
        &self,
        name: &ProcessorName,
        spec: impl Into<NextSpec>,
        percent: u32,
    ) -> Result<Processor, ProcessorError> {
        self.caller.may(Verb::DeployProcessor, name.as_str())?;
        self.deploy_as(name, spec.into(), Beginning::Canary { percent })
            .await
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
        self.caller.may(Verb::DeployProcessor, name.as_str())?;
        self.decide(name, async |loaded| {
            self.set_canary_now(name, percent, &loaded).await
        })
        .await
    }

    async fn set_canary_now(
        &self,
        name: &ProcessorName,
        percent: u32,
        loaded: &Loaded,
    ) -> Result<Processor, TurnError> {
        let mut processor = self.known(name)?.processor;
        change_share(&mut processor, self.asked(), percent)?;
        self.change(processor, loaded).await
    }

    /// Makes the revision on trial current. The history records the trial's results.
    ///
    /// # Errors
    /// [`ProcessorError::TrialFails`] if the revision is about to be withdrawn; otherwise as
    /// [`ProcessorError`] says.
    pub async fn promote(&self, name: &ProcessorName) -> Result<Processor, ProcessorError> {
        self.caller.may(Verb::DeployProcessor, name.as_str())?;
        let seen = self.trial_seen(name);
        self.promote_seen(name, seen, false).await
    }

    /// Like [`promote`](Self::promote), even if the revision is about to be withdrawn.
    ///
    /// # Errors
    /// [`ProcessorError`].
    pub async fn promote_anyway(&self, name: &ProcessorName) -> Result<Processor, ProcessorError> {
        self.caller.may(Verb::DeployProcessor, name.as_str())?;
        let seen = self.trial_seen(name);
        self.promote_seen(name, seen, true).await
    }

    /// Like [`promote`](Self::promote), by what is given as seen, which may include what other hosts have seen; `anyway` even if the
    /// revision is about to be withdrawn.
    ///
    /// # Errors
    /// As [`promote`](Self::promote).
    pub async fn promote_seen(
        &self,
        name: &ProcessorName,
        seen: TrialSeen,
        anyway: bool,
    ) -> Result<Processor, ProcessorError> {
        self.caller.may(Verb::DeployProcessor, name.as_str())?;
        self.decide(name, async |loaded| {
            self.promote_now(name, &seen, anyway, &loaded).await
        })
        .await
    }

    async fn promote_now(
        &self,
        name: &ProcessorName,
        seen: &TrialSeen,
        anyway: bool,
        loaded: &Loaded,
    ) -> Result<Processor, TurnError> {
        let known = self.known(name)?;
        let mut processor = known.processor.clone();
        let seen = self.seen_by(&known, seen);
        promote(&mut processor, self.asked(), seen, anyway)?;
        if let Some(now) = processor.current() {
            let before = known.processor.current().map(|before| &before.spec);
            self.check_further_rights(before, &now.spec)?;
        }
        self.check_chains(&processor)?;
        self.change(processor, loaded).await
    }

    /// Withdraws a canary whose breaker has opened, if it is still on trial.
    pub(crate) async fn withdraw_by_itself(
        &self,
        name: &ProcessorName,
        revision: u32,
        why: String,
    ) -> Result<(), ProcessorError> {
        self.decide(name, async |loaded| {
            self.withdraw_now(name, revision, &why, &loaded).await
        })
        .await
    }

    async fn withdraw_now(
        &self,
        name: &ProcessorName,
        revision: u32,
        why: &str,
        loaded: &Loaded,
    ) -> Result<(), TurnError> {
        let mut processor = self.known(name)?.processor;
        if !withdraw_failing(&mut processor, self.asked(), revision, why) {
            return Ok(());
        }
        self.change(processor, loaded).await?;
        counter!("millrace_canaries_withdrawn_total", "processor" => name.to_string()).increment(1);
        tracing::error!(processor = %name, revision, why, "a canary was withdrawn; its messages go to the current revision");
        Ok(())
    }

    /// How the processor's canary does; `None` without a canary.
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

/// A sentence about the canary's failures; `None` if there were none.
pub(super) fn wrong_of_canary(status: &CanaryStatus) -> Option<String> {
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
