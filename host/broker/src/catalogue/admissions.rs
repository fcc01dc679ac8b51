//! Uploads that are being admitted, and those that were refused. Compiling takes seconds, so whoever uploads may leave and ask later.
//!
//! Both are of this host and its life: a host that stops while it compiles has stored nothing, and the upload is sent again.

use std::collections::VecDeque;

use millrace_model::{Advice, Advised, Digest, Timestamp};
use parking_lot::Mutex;
use tokio::sync::watch;

use crate::catalogue::handle::Catalogue;
use crate::catalogue::modules::{ModuleError, abbreviates};
use crate::ground::verbs::Verb;
use crate::handler::Compiling;

/// Refusals that are remembered; beyond it the oldest is forgotten.
pub const REFUSALS_REMEMBERED_MAX: usize = 1_000;

/// An upload that is being admitted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Admission {
    /// The SHA-256 of its bytes.
    pub digest: Digest,
    /// The tag that it will have.
    pub tag: Option<String>,
    /// Its size.
    pub byte_count: u64,
    /// When it was uploaded.
    pub since: Timestamp,
    /// When the compiler began; `None` before that, and after it.
    pub compiling_since: Option<Timestamp>,
}

/// An upload that was not admitted.
#[derive(Clone, Debug, thiserror::Error)]
#[error("the upload of module {} was refused: {why}", .digest.short())]
pub struct Refusal {
    digest: Digest,
    tag: Option<String>,
    why: String,
    advice: Advice,
}

impl Advised for Refusal {
    fn advice(&self) -> Advice {
        self.advice.clone()
    }
}

/// The uploads of this host.
#[derive(Default)]
pub(super) struct Admissions {
    table: Mutex<Table>,
    /// Counts the ends of admissions.
    ended: watch::Sender<u64>,
}

#[derive(Default)]
struct Table {
    number: u64,
    /// As many as there are callers: each door bounds its own.
    under_way: Vec<(u64, Admission)>,
    /// The newest last.
    refused: VecDeque<Refusal>,
}

/// One admission; it is over when this is dropped.
pub(super) struct Admitting {
    catalogue: Catalogue,
    number: u64,
    pub(super) digest: Digest,
    tag: Option<String>,
}

impl Admitting {
    pub(super) fn begin(
        catalogue: &Catalogue,
        digest: Digest,
        tag: Option<&String>,
        byte_count: u64,
    ) -> Self {
        let since = catalogue.inner.clock.wall();
        let mut table = catalogue.inner.admissions.table.lock();
        table.number += 1;
        let (number, tag) = (table.number, tag.cloned());
        table.refused.retain(|refusal| refusal.digest != digest);
        let admission = Admission {
            digest,
            tag: tag.clone(),
            byte_count,
            since,
            compiling_since: None,
        };
        table.under_way.push((number, admission));
        drop(table);
        Self {
            catalogue: catalogue.clone(),
            number,
            digest,
            tag,
        }
    }

    /// It is refused, which those who ask later are told.
    pub(super) fn refused(&self, error: &ModuleError) {
        let mut table = self.catalogue.inner.admissions.table.lock();
        if table.refused.len() >= REFUSALS_REMEMBERED_MAX {
            table.refused.pop_front();
        }
        table.refused.push_back(Refusal {
            digest: self.digest,
            tag: self.tag.clone(),
            why: error.to_string(),
            advice: error.advice(),
        });
    }
}

impl Drop for Admitting {
    fn drop(&mut self) {
        let admissions = &self.catalogue.inner.admissions;
        let mut table = admissions.table.lock();
        table.under_way.retain(|(number, _)| *number != self.number);
        drop(table);
        admissions.ended.send_modify(|ended| *ended += 1);
    }
}

impl Catalogue {
    /// The uploads that are being admitted on this host, oldest first.
    #[must_use]
    pub fn admissions(&self) -> Vec<Admission> {
        if self
            .caller
            .rights()
            .may_with_some(Verb::UploadModule)
            .is_err()
        {
            return Vec::new();
        }
        let all: Vec<Admission> = {
            let table = self.inner.admissions.table.lock();
            table.under_way.iter().map(|(_, one)| one.clone()).collect()
        };
        let shown = |admission: Admission| Admission {
            compiling_since: self.compiling(admission.digest).and_then(|c| c.begun_at),
            ..admission
        };
        all.into_iter().map(shown).collect()
    }

    /// The upload with this tag, digest or beginning of a digest, if it is being admitted on this host.
    #[must_use]
    pub fn admission(&self, reference: &str) -> Option<Admission> {
        let is_meant = |one: &Admission| names(reference, one.digest, one.tag.as_deref());
        self.admissions().into_iter().find(is_meant)
    }

    /// Why the newest upload with this tag, digest or beginning of a digest was refused on this host.
    #[must_use]
    pub fn refusal(&self, reference: &str) -> Option<Refusal> {
        self.caller
            .rights()
            .may_with_some(Verb::UploadModule)
            .ok()?;
        let table = self.inner.admissions.table.lock();
        let is_meant = |one: &&Refusal| names(reference, one.digest, one.tag.as_deref());
        table.refused.iter().rev().find(is_meant).cloned()
    }

    /// Waits until no upload of this reference is being admitted.
    pub async fn admission_ends(&self, reference: &str) {
        let mut ended = self.inner.admissions.ended.subscribe();
        while self.admission(reference).is_some() {
            ended.mark_unchanged();
            if self.admission(reference).is_none() || ended.changed().await.is_err() {
                return;
            }
        }
    }

    /// How far the compile of a module is, if there is one.
    #[must_use]
    pub fn compiling(&self, digest: Digest) -> Option<Compiling> {
        self.inner.modules.compiling(digest)
    }
}

/// Whether a reference means a module with this digest and tag.
fn names(reference: &str, digest: Digest, tag: Option<&str>) -> bool {
    tag == Some(reference) || abbreviates(reference, digest)
}
