//! Makes written frames durable, on the syncers' threads and others: each call runs a sync, then
//! makes the covered transactions visible and answers them.

use std::io;

use millrace_engine::contract::CommitError;
use millrace_log::Journal;
use millrace_log::journal::JournalSync;

use crate::write::commits::{Commits, PoisonOnPanic};
use crate::write::pipeline::{Work, Written};

impl Commits {
    /// A syncer's thread.
    pub(crate) fn sync_until_stopped(&self, who: usize) {
        let _poison = PoisonOnPanic(self);
        while let Some(work) = self.pipeline.next_work() {
            match work {
                Work::Sync => {
                    let sync = self.journal.lock().begin_sync(who);
                    self.pipeline.note_begun(sync.sequence());
                    // Refused callers have already been answered.
                    let _ = self.finish_sync(sync);
                }
                Work::Prepare(preparation) => {
                    // On a full disk, all space is for the checkpoint.
                    if !self.reserve.is_full()
                        && let Err(error) = preparation.run()
                    {
                        self.poison(&error.to_string());
                    }
                    self.pipeline.end_preparation();
                }
            }
        }
    }

    /// Runs a sync that [`Pipeline::sync_soon`] assigned to the caller, and shows and answers the
    /// transactions that it covers.
    pub(crate) fn finish_sync(&self, sync: JournalSync) -> Result<(), CommitError> {
        let ran = self.run_sync(sync);
        self.pipeline.end_sync();
        ran
    }

    /// Makes everything written durable and visible, with the journal locked; nothing waits
    /// afterwards.
    pub(crate) fn settle(&self, journal: &mut Journal, who: usize) -> Result<(), CommitError> {
        let sync = journal.begin_sync(who);
        self.pipeline.note_begun(sync.sequence());
        self.run_sync(sync)
    }

    fn run_sync(&self, sync: JournalSync) -> Result<(), CommitError> {
        let began_at = self.clock.monotonic();
        let sequence = sync.run().map_err(|error| self.refuse(&error))?;
        let took = self.clock.monotonic().saturating_sub(began_at);
        metrics::histogram!("millrace_journal_sync_seconds").record(took.as_secs_f64());
        self.show_synced(sequence)
    }

    fn refuse(&self, error: &io::Error) -> CommitError {
        self.poison(&error.to_string());
        self.poisoned().unwrap_or(CommitError::Closed)
    }

    fn show_synced(&self, sequence: u64) -> Result<(), CommitError> {
        let ready = {
            let _whole = self.state.write();
            self.pipeline.take_synced(sequence)
        };
        let Some(ready) = ready else {
            return Err(self.poisoned().unwrap_or(CommitError::Closed));
        };
        ready.into_iter().for_each(Written::tell);
        self.pipeline.note_shown(sequence);
        Ok(())
    }
}
