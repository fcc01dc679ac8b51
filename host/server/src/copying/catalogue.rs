//! Copies modules and entries: processors, routes, schedules, and the records beside them.

use bytes::Bytes;
use millrace_engine::{CommitError, EntryKind, EntryWrite, ReadError, Transaction};
use millrace_model::{Digest, Durability};

use super::{Copy, CopyError, keys};

/// Entries, and their bytes, that are written at once.
const ENTRIES_MAX: usize = 1000;
const ENTRIES_BYTES: usize = 1 << 20;
/// Known damage is of files of the source, so it is not copied. Processors come last: they begin to work when a host sees them.
pub(super) const KINDS: [EntryKind; 7] = [
    EntryKind::Module,
    EntryKind::Newest,
    EntryKind::Redriven,
    EntryKind::Principal,
    EntryKind::Route,
    EntryKind::Schedule,
    EntryKind::Processor,
];

impl Copy<'_> {
    /// Returns the modules that the source itself cannot read.
    pub(super) async fn copy_modules(&self) -> Result<Vec<String>, CopyError> {
        let modules = self.source.entries(EntryKind::Module);
        self.watcher.begins("modules", modules.len() as u64);
        let mut damaged = Vec::new();
        for (key, _) in modules {
            self.watcher.advances(1);
            let Ok(digest) = key.parse::<Digest>() else {
                continue;
            };
            let known = self.target.module(digest).await;
            if matches!(known, Ok(Some(_))) {
                continue;
            }
            match self.source.module(digest).await {
                Ok(Some(bytes)) => self.target.put_module(digest, bytes).await?,
                Ok(None) => damaged.push(format!("module {digest}, whose bytes are missing")),
                Err(ReadError::ModuleDamaged(_)) => damaged.push(format!("module {digest}")),
                Err(error) => return Err(CopyError::Source(error)),
            }
        }
        Ok(damaged)
    }

    pub(super) async fn copy_entries(&self) -> Result<(), CopyError> {
        self.watcher.begins("catalogue", KINDS.len() as u64);
        for kind in KINDS {
            let mut writes = Vec::new();
            let mut bytes = 0;
            for key in keys([self.source, self.target], kind) {
                let value = self.source.entry(kind, &key).map(|entry| entry.value);
                let known = self.target.entry(kind, &key).map(|entry| entry.value);
                if value == known {
                    continue;
                }
                bytes += key.len() + value.as_ref().map_or(0, Bytes::len);
                writes.push(EntryWrite { kind, key, value });
                if writes.len() >= ENTRIES_MAX || bytes >= ENTRIES_BYTES {
                    self.write_entries(std::mem::take(&mut writes)).await?;
                    bytes = 0;
                }
            }
            self.write_entries(writes).await?;
            self.watcher.advances(1);
        }
        Ok(())
    }

    async fn write_entries(&self, entries: Vec<EntryWrite>) -> Result<(), CommitError> {
        if entries.is_empty() {
            return Ok(());
        }
        let transaction = Transaction {
            entries,
            durability: Some(Durability::Durable),
            ..Transaction::default()
        };
        self.target.commit(transaction).await.map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_entry_is_copied_but_damage() {
        let mut copied = KINDS.to_vec();
        copied.push(EntryKind::Damage);
        copied.sort();
        let mut all = EntryKind::ALL;
        all.sort();
        assert_eq!(copied, all);
    }
}
