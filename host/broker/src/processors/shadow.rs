//! Shadows: a revision is called beside the current one, and its answers only count for a report. The catalogue stores which revision
//! it is; the report is in memory, and starts over when the host restarts.

use millrace_model::{ChangeKind, Processor, ProcessorName, Shadow};

use crate::dispatch::comparison::ShadowReport;
use crate::processors::canary::check_beside;
use crate::processors::error::ProcessorError;
use crate::processors::handle::Processors;
use crate::processors::loading::check_patience;
use crate::processors::next_spec::NextSpec;

impl Processors {
    /// Creates a revision that is called with the current one's settled batches. An existing trial ends; a revision on trial with the
    /// same specification becomes the shadow.
    ///
    /// # Errors
    /// [`ProcessorError`]; nothing has changed then.
    pub async fn deploy_shadow(
        &self,
        name: &ProcessorName,
        spec: impl Into<NextSpec>,
    ) -> Result<Processor, ProcessorError> {
        let next: NextSpec = spec.into();
        self.inner
            .catalogue
            .decide(|| self.deploy_next_shadow(name, next.clone()))
            .await
    }

    async fn deploy_next_shadow(
        &self,
        name: &ProcessorName,
        next: NextSpec,
    ) -> Result<Processor, ProcessorError> {
        let known = self.known(name)?;
        let spec = next.over(name, Some(&known.processor))?;
        let mut processor = known.processor;
        check_patience(&spec)?;
        check_beside(&processor, &spec)?;
        self.check_limits(&spec)?;
        let revision = self.tried(&mut processor, spec);
        let same = processor.shadow.as_ref().map(|shadow| shadow.revision);
        if same == Some(revision) && known.trial_problem.is_none() {
            return Ok(processor);
        }
        self.end_other_trial(&mut processor, revision);
        processor.shadow = Some(Shadow {
            revision,
            since: self.inner.clock.wall(),
        });
        self.record(&mut processor, ChangeKind::Shadow, revision, None);
        self.change(processor).await
    }

    /// Ends the shadow and discards its report.
    ///
    /// # Errors
    /// [`ProcessorError`].
    pub async fn end_shadow(&self, name: &ProcessorName) -> Result<Processor, ProcessorError> {
        self.inner
            .catalogue
            .decide(|| self.end_shadow_now(name))
            .await
    }

    async fn end_shadow_now(&self, name: &ProcessorName) -> Result<Processor, ProcessorError> {
        let mut processor = self.known(name)?.processor;
        if processor.shadow.is_none() {
            return Err(ProcessorError::NoTrial(name.clone()));
        }
        self.withdraw(&mut processor, None);
        self.change(processor).await
    }

    /// The report of the processor's shadow, since it began on this host.
    ///
    /// # Errors
    /// [`ProcessorError`].
    pub fn shadow_report(&self, name: &ProcessorName) -> Result<ShadowReport, ProcessorError> {
        let known = self.known(name)?;
        let report = self.inner.supervisor.shadow(name);
        report.ok_or_else(|| match (known.processor.shadow, known.trial_problem) {
            (Some(shadow), Some(why)) => ProcessorError::TrialNotLoaded {
                name: name.clone(),
                revision: shadow.revision,
                why,
            },
            _ => ProcessorError::NoTrial(name.clone()),
        })
    }
}
