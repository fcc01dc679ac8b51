//! Whose files they are: what is written is stamped for its partition, and what is stamped for another one is not written over.

use std::io;

use millrace_model::batch::HEADER_BYTES;
use millrace_model::{RecordBatch, Stamp, TopicPartition};

use super::{Active, PartitionFiles, Place};

impl PartitionFiles {
    /// These are the files of this partition: what is written is stamped for it, and what is stamped for another one is damage.
    #[must_use]
    pub fn of(mut self, partition: TopicPartition) -> Self {
        self.place.stamp = Some(Stamp::of(partition));
        self
    }

    /// Goes on in a new segment where the active one's file begins with another partition's messages: nothing of them is written over.
    pub(super) fn leave_misplaced(&mut self) -> io::Result<()> {
        let Some(stamp) = self.place.stamp.filter(|_| !self.active.is_own) else {
            return Ok(());
        };
        let path = self.place.location.segment(self.active.base);
        let mut header = [0; HEADER_BYTES];
        let found = match self.place.disk.open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
            opened => opened?.read_at(&mut header, 0)?,
        };
        let found = Stamp::in_header(&header[..found]);
        self.active.is_own = true;
        if found.is_some_and(|found| found != stamp) {
            self.sealed.push(self.active.base);
            self.active = Active::new(self.end, 0);
        }
        Ok(())
    }
}

impl Place {
    /// A batch as it stands in the files.
    pub(super) fn stored(&self, batch: &RecordBatch) -> RecordBatch {
        let stamped = match self.stamp {
            Some(stamp) => batch.clone().stamped(stamp),
            None => batch.clone(),
        };
        match &self.cipher {
            Some(cipher) => cipher.encrypt(&stamped),
            None => stamped,
        }
    }
}
