//! Shadows: a revision is called beside the current one, and its answers only go into a report. The
//! catalogue stores which revision is the shadow. The report is in memory and starts over when the
//! host restarts.

use std::collections::BTreeMap;

use millrace_model::{Processor, ProcessorName, Trial};

use crate::dispatch::comparison::ShadowReport;
use crate::ground::verbs::Verb;
use crate::processors::error::ProcessorError;
use crate::processors::handle::Processors;
use crate::processors::loaded::Loaded;
use crate::processors::next_spec::NextSpec;
use crate::processors::revisions::{Beginning, end_shadow};
use crate::processors::turns::TurnError;

impl Processors {
    /// Creates a revision that is called with batches that the current one has settled. An existing
    /// trial ends; a revision on trial with the same specification becomes the shadow.
    ///
    /// # Errors
    /// [`ProcessorError`]; nothing has changed then.
    pub async fn deploy_shadow(
        &self,
        name: &ProcessorName,
        spec: impl Into<NextSpec>,
    ) -> Result<Processor, ProcessorError> {
        self.caller.may(Verb::DeployProcessor, name.as_str())?;
        self.deploy_as(name, spec.into(), Beginning::Shadow).await
    }

    /// Ends the shadow and discards its report.
    ///
    /// # Errors
    /// [`ProcessorError`].
    pub async fn end_shadow(&self, name: &ProcessorName) -> Result<Processor, ProcessorError> {
        self.caller.may(Verb::EndShadow, name.as_str())?;
        self.decide(name, async |loaded| {
            self.end_shadow_now(name, &loaded).await
        })
        .await
    }

    async fn end_shadow_now(
        &self,
        name: &ProcessorName,
        loaded: &Loaded,
    ) -> Result<Processor, TurnError> {
        let mut processor = self.known(name)?.processor;
        end_shadow(&mut processor, self.asked())?;
        self.change(processor, loaded).await
    }

    /// The report of the processor's shadow, since it began on this host.
    ///
    /// # Errors
    /// [`ProcessorError`].
    pub fn shadow_report(&self, name: &ProcessorName) -> Result<ShadowReport, ProcessorError> {
        self.caller.may(Verb::SeeTrial, name.as_str())?;
        let known = self.known(name)?;
        let mut report = self.inner.supervisor.shadow(name);
        if let Some(report) = report
            .as_mut()
            .filter(|_| !self.reads_all_of(&known.processor))
        {
            report.samples.clear();
        }
        report.ok_or_else(|| match (known.processor.trial, known.trial_problem) {
            (Some(Trial::Shadow { revision, .. }), Some(why)) => ProcessorError::TrialNotLoaded {
                name: name.clone(),
                revision,
                why,
            },
            _ => ProcessorError::NoTrial(name.clone()),
        })
    }
}

/// A sentence about the shadow's differences; `None` if there were none.
pub(super) fn wrong_of_shadow(report: &ShadowReport) -> Option<String> {
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
