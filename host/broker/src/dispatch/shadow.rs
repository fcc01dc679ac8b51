//! A shadow: a revision that is called with the current one's batches after they are settled, and
//! whose answers only go into a report. Each worker has a short queue to it; a batch that finds the
//! queue full is skipped and counted. Nothing waits for a shadow, with one exception: a shadow that
//! reads state must be called before the commit, and gets about as long as the current revision
//! took.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use millrace_engine::state::{StateAttempt, StateTable};
use millrace_model::bounds::SHADOW_QUEUE_BATCHES_MAX;
use millrace_model::{ColumnBatch, Timestamp};
use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::dispatch::answer::{Glance, Verdict};
use crate::dispatch::answered::Answered;
use crate::dispatch::batcher::Batch;
use crate::dispatch::comparison::{Compared, ShadowReport};
use crate::dispatch::input::Input;
use crate::dispatch::live::Live;
use crate::dispatch::settled::SettledBatch;
use crate::ground::columns;
use crate::handler::CallError;

/// Maximum number of calls for one batch: enough to find one message that crashes a batch of a
/// thousand.
const CALLS_MAX: usize = 24;
/// After a timeout, a shadow rests for this many times its limit of a call.
const REST_FACTOR: u32 = 9;
/// Minimum time limit of a call before the commit.
const GLANCE_MIN: Duration = Duration::from_millis(5);
/// Number of batches that are skipped after a call that was too late.
const LATE_SKIPS: u32 = 100;

/// A shadow revision.
pub(crate) struct Shadow {
    pub(crate) live: Arc<Live>,
    pub(crate) report: Arc<Mutex<ShadowReport>>,
}

impl Shadow {
    /// A shadow with an empty report.
    pub(crate) fn new(live: Arc<Live>, since: Timestamp) -> Self {
        let report = ShadowReport::new(live.revision, since);
        Self {
            report: Arc::new(Mutex::new(report)),
            live,
        }
    }

    fn uses_state(&self) -> bool {
        self.live.handler.uses_state()
    }
}

/// One worker's queue to the shadow.
pub(crate) struct Echo {
    pub(crate) shadow: Arc<Shadow>,
    queue: mpsc::Sender<SettledBatch>,
    /// A call before a commit that was too late and is still running.
    late: Option<AbortOnDrop>,
    skips: u32,
    /// The task that compares batches. Dropping it interrupts a running call.
    _listener: AbortOnDrop,
}

struct AbortOnDrop(JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Echo {
    /// Makes `echo` a queue to the present shadow. An existing queue to the same shadow stays.
    pub(crate) fn follow(echo: &mut Option<Self>, shadow: Option<&Arc<Shadow>>) {
        let heard = echo.as_ref().map(|echo| Arc::as_ptr(&echo.shadow));
        if heard != shadow.map(Arc::as_ptr) {
            *echo = shadow.cloned().map(Self::new);
        }
    }

    /// Starts the queue.
    fn new(shadow: Arc<Shadow>) -> Self {
        let (queue, settled) = mpsc::channel(SHADOW_QUEUE_BATCHES_MAX);
        let listener = tokio::spawn(listen(Arc::clone(&shadow), settled));
        Self {
            shadow,
            queue,
            late: None,
            skips: 0,
            _listener: AbortOnDrop(listener),
        }
    }

    /// Passes a settled batch to the shadow unless its queue is full.
    pub(crate) fn offer(&self, input: &Input, live: &Arc<Live>, batch: &Batch, answered: Answered) {
        let messages = batch.len();
        let unseen = self.shadow.uses_state() && answered.glance.is_none();
        let settled = SettledBatch {
            topic: input.topic.spec.name.clone(),
            partition: input.partition,
            columns: Arc::clone(&batch.columns),
            offsets: batch.offsets.clone(),
            live: Arc::clone(live),
            verdict: Verdict {
                state: None,
                ..answered.verdict
            },
            glance: answered.glance,
        };
        if unseen || self.queue.try_send(settled).is_err() {
            self.shadow.report.lock().skip(messages);
        }
    }

    /// Calls a shadow that uses state before the commit, while the state is still what the current
    /// revision's batch saw. Waits as long as that revision took and a little more; `None` without
    /// an answer by then.
    pub(crate) async fn glance(
        &mut self,
        columns: &Arc<ColumnBatch>,
        table: Arc<StateTable>,
        now: Timestamp,
        took: Duration,
    ) -> Glance {
        self.late.take_if(|late| late.0.is_finished());
        if self.late.is_some() || self.skips > 0 {
            self.skips = self.skips.saturating_sub(1);
            return None;
        }
        let (live, columns) = (Arc::clone(&self.shadow.live), Arc::clone(columns));
        let (answer, answered) = tokio::sync::oneshot::channel();
        let attempt = StateAttempt::new(table, now, columns.len()).at_one_moment();
        let call = AbortOnDrop(tokio::spawn(async move {
            let called = live.handler.process_with_state(&columns, Box::new(attempt));
            let verdict = match called.await {
                Ok((answer, _)) => checked(&live, answer, &columns),
                Err(error) => Err(error),
            };
            // A late answer is discarded.
            let _ = answer.send(verdict);
        }));
        match tokio::time::timeout(took.max(GLANCE_MIN), answered).await {
            Ok(answered) => answered.ok(),
            Err(_) => {
                self.late = Some(call);
                self.skips = LATE_SKIPS;
                None
            }
        }
    }
}

fn checked(
    live: &Live,
    answer: millrace_model::Answer,
    columns: &ColumnBatch,
) -> Result<Verdict, CallError> {
    let outputs_max = live.spec.limits.answer_outputs_max as usize;
    Verdict::of(answer, columns, &live.outputs, outputs_max)
}

/// Compares batches until the worker has ended.
async fn listen(shadow: Arc<Shadow>, mut queue: mpsc::Receiver<SettledBatch>) {
    while let Some(mut settled) = queue.recv().await {
        if queue.is_closed() {
            return;
        }
        let timed_out = match settled.glance.take() {
            Some(answer) => {
                let whole = 0..settled.offsets.len();
                judge(&shadow, &settled, whole, &settled.columns, answer);
                false
            }
            None => replay(&shadow, &settled).await,
        };
        if timed_out {
            let call_ms_max = shadow.live.spec.limits.call_ms_max;
            tokio::time::sleep(Duration::from_millis(call_ms_max) * REST_FACTOR).await;
        }
    }
}

/// Calls the shadow with the batch. If that fails, calls it with each half, and so on, so that one
/// bad message does not hide all others. Returns whether a call timed out.
async fn replay(shadow: &Shadow, settled: &SettledBatch) -> bool {
    let mut ranges = VecDeque::new();
    ranges.push_back(0..settled.offsets.len());
    let mut calls = 0;
    while let Some(range) = ranges.pop_front() {
        let columns = match range.len() == settled.offsets.len() {
            true => Arc::clone(&settled.columns),
            false => Arc::new(columns::select(&settled.columns, range.clone())),
        };
        calls += 1;
        let live = &shadow.live;
        let answer = live.handler.process(&columns).await;
        let answer = answer.and_then(|answer| checked(live, answer, &columns));
        let (timed_out, splits) = match &answer {
            Err(CallError::Timeout(_)) => (true, false),
            Err(CallError::Interrupted) => return false,
            Err(CallError::Unavailable(_) | CallError::Host(_)) | Ok(_) => (false, false),
            Err(_) => (false, range.len() > 1 && calls < CALLS_MAX),
        };
        if splits {
            let middle = range.start + range.len() / 2;
            ranges.push_front(middle..range.end);
            ranges.push_front(range.start..middle);
            if let Err(error) = &answer {
                shadow.report.lock().call_failed(error);
            }
            continue;
        }
        judge(shadow, settled, range, &columns, answer);
        if timed_out {
            let left: usize = ranges.iter().map(Range::len).sum();
            shadow.report.lock().skip(left);
            return true;
        }
    }
    false
}

/// Compares the shadow's answer for a part of the batch.
fn judge(
    shadow: &Shadow,
    settled: &SettledBatch,
    range: Range<usize>,
    columns: &ColumnBatch,
    answer: Result<Verdict, CallError>,
) {
    let mut report = shadow.report.lock();
    let verdict = match answer {
        Ok(verdict) => verdict,
        Err(error) => {
            report.call_failed(&error);
            let says_nothing = matches!(
                error,
                CallError::Unavailable(_) | CallError::Interrupted | CallError::Host(_)
            );
            if range.len() > 1 || says_nothing {
                report.not_answered(range.len());
                return;
            }
            Verdict::alone(&error, None)
        }
    };
    report.compare(&Compared {
        settled,
        range,
        shadow: &shadow.live,
        columns,
        verdict: &verdict,
    });
}
