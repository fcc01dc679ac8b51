//! The middle of a round: asks the shadow, the error handler and the breaker about an answer.

use std::sync::Arc;

use super::Worker;
use super::round::Round;
use crate::dispatch::answer::Glance;
use crate::dispatch::answer::Verdict;
use crate::dispatch::answered::Answered;
use crate::dispatch::breaker::{Judgement, Report, Says};
use crate::dispatch::delivery;
use crate::dispatch::failed::Failed;
use crate::dispatch::plan::Came;
use crate::ground::columns;
use crate::handler::{CallError, Cause, Decision};

impl Worker {
    /// Asks them in turn; false if the round ends here.
    pub(super) async fn judge(&mut self, round: &mut Round, answered: &mut Answered) -> bool {
        let end = self.end_of_call(&round.live);
        answered.glance = tokio::select! {
            biased;
            glance = self.ask_shadow(round) => glance,
            // The shadow is not waited for. The current revision's answer stands.
            () = end => None,
        };
        // Asked before the breaker, because a failure that the handler settles is no failure.
        match self.ask_error_handler(round, &answered.verdict).await {
            Some(decisions) => answered.decisions = decisions,
            // The call was interrupted: the batch has no effect.
            None => return false,
        }
        let Round {
            live,
            batch,
            breaker,
            probe,
            ..
        } = &mut *round;
        let failed = &answered.verdict.failed;
        let whose = live.whose(self.now());
        let says = |(index, failed): (usize, &Failed)| match answered.decisions.get(index) {
            Some(Decision::Drop(_)) => Says::Settled,
            _ if self.plan.has_reported(batch, failed) => Says::Nothing,
            _ => {
                let progress = &self.ledger.progress;
                let before = delivery::parked_before(batch, progress, failed.message);
                whose.says(before, failed)
            }
        };
        let says: Vec<Says> = failed.iter().enumerate().map(says).collect();
        let report = Report {
            revision: live.revision,
            partition: self.hold.partition,
            offsets: &batch.offsets,
            retried: batch.retried,
            failed,
            says: &says,
        };
        answered.judgement = breaker.report(&report, probe.as_mut());
        if answered.judgement == Judgement::Discard {
            self.plan.forget_reports();
            self.put_back(round, Came::Discarded);
            return false;
        }
        self.plan.report(batch, failed);
        true
    }

    /// Calls a shadow that uses state. The round's turn keeps all others from writing it.
    async fn ask_shadow(&mut self, round: &Round) -> Glance {
        let shadow = &self.echo.as_ref()?.shadow;
        let live = Arc::clone(&shadow.live);
        let home = self.home(&live).await.ok()??;
        let now = self.now();
        let echo = self.echo.as_mut()?;
        let columns = &round.batch.columns;
        echo.glance(columns, home.table, now, round.took).await
    }

    /// The error handler's decisions; `None` if the call was interrupted, so that the batch has no
    /// effect.
    async fn ask_error_handler(
        &mut self,
        round: &mut Round,
        verdict: &Verdict,
    ) -> Option<Vec<Decision>> {
        let Round { live, batch, .. } = &*round;
        let failed = &verdict.failed;
        let asks = !failed.is_empty()
            && !verdict.is_final
            && failed.iter().all(|f| f.cause != Cause::HostDied);
        let Some(handler) = live.failures.as_ref().filter(|_| asks) else {
            return Some(Vec::new());
        };
        let progress = &self.ledger.progress;
        let failures = delivery::failures(batch, verdict, progress, live.revision, self.now());
        let messages = failed.iter().map(|failed| failed.message);
        let columns = Arc::new(columns::select(&batch.columns, messages));
        let before = self.context.clock.monotonic();
        let end = self.end_of_call(live);
        let decided = tokio::select! {
            biased;
            decided = handler.handle(&failures, &columns) => decided,
            () = end => Err(CallError::Interrupted),
        };
        let problem = match decided {
            Ok(decisions) if decisions.len() == failures.len() => return Some(decisions),
            Ok(given) => format!("{} decisions for {} failures", given.len(), failures.len()),
            Err(CallError::Interrupted) => {
                let took = self.context.clock.monotonic().saturating_sub(before);
                let _ = self.interrupt(round, took);
                return None;
            }
            Err(error) => error.to_string(),
        };
        tracing::warn!(processor = %live.processor, revision = live.revision, problem, "the error handler failed; the retry policy decides");
        Some(Vec::new())
    }
}
