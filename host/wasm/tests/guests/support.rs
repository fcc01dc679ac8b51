//! A host in a temporary directory, and batches to call it with.

use std::sync::Arc;

use bytes::Bytes;
use millrace_broker::handler::{
    AdmitError, BatchHandler, CallError, LiveConfig, LoadRequest, ModuleFacts, ModuleHost as _,
    Uploader,
};
use millrace_model::processor::{Grants, Limits};
use millrace_model::{Answer, ColumnBatch, Digest, SystemClock};
use millrace_wasm::{CompileChild, WasmHost, WasmOptions};
use sha2::{Digest as _, Sha256};
use tempfile::TempDir;

pub(crate) struct TestHost {
    pub(crate) host: Arc<WasmHost>,
    pub(crate) directory: TempDir,
}

impl TestHost {
    pub(crate) fn start() -> Self {
        Self::start_in(tempfile::tempdir().unwrap(), |_| {})
    }

    pub(crate) fn start_with(change: impl FnOnce(&mut WasmOptions)) -> Self {
        Self::start_in(tempfile::tempdir().unwrap(), change)
    }

    pub(crate) fn start_in(directory: TempDir, change: impl FnOnce(&mut WasmOptions)) -> Self {
        let child = CompileChild {
            program: env!("CARGO_BIN_EXE_millrace-compile-child").into(),
            args: Vec::new(),
        };
        let mut options = WasmOptions::new(directory.path().join("code"), child);
        options.instances_max = 64;
        options.limits.compile_cpu_seconds_max = 20;
        change(&mut options);
        let host = WasmHost::new(options, Arc::new(SystemClock::new())).unwrap();
        Self { host, directory }
    }

    /// Ends the host and starts another one on the same directory.
    pub(crate) fn restart(self) -> Self {
        let Self { host, directory } = self;
        drop(host);
        Self::start_in(directory, |_| {})
    }

    pub(crate) async fn admit(&self, bytes: &[u8]) -> Result<ModuleFacts, AdmitError> {
        self.admit_of("", bytes).await
    }

    pub(crate) async fn admit_of(
        &self,
        name: &str,
        bytes: &[u8],
    ) -> Result<ModuleFacts, AdmitError> {
        let uploader = Uploader {
            name: name.to_owned(),
            address: None,
        };
        let bytes = Bytes::copy_from_slice(bytes);
        self.host.admit(bytes, uploader).await
    }

    pub(crate) async fn processor(&self, owner: &str, bytes: &[u8]) -> Arc<dyn BatchHandler> {
        self.limited(owner, bytes, Limits::default()).await
    }

    pub(crate) async fn limited(
        &self,
        owner: &str,
        bytes: &[u8],
        limits: Limits,
    ) -> Arc<dyn BatchHandler> {
        let request = LoadRequest {
            limits,
            ..request(owner, bytes)
        };
        self.host.processor(request).await.unwrap()
    }
}

pub(crate) fn request(owner: &str, bytes: &[u8]) -> LoadRequest {
    LoadRequest {
        digest: digest(bytes),
        bytes: Bytes::copy_from_slice(bytes),
        owner: owner.to_owned(),
        revision: 1,
        limits: Limits::default(),
        grants: Grants::default(),
        config: LiveConfig::default(),
        access: None,
    }
}

pub(crate) fn digest(bytes: &[u8]) -> Digest {
    Digest(Sha256::digest(bytes).into())
}

/// A batch of messages with these values, and nothing but values.
pub(crate) fn batch<V: AsRef<[u8]>>(values: impl IntoIterator<Item = V>) -> Arc<ColumnBatch> {
    let mut batch = ColumnBatch {
        topic: "in".into(),
        ..ColumnBatch::default()
    };
    for value in values {
        let (start, value) = (batch.data.len() as u32, value.as_ref());
        batch.data.extend_from_slice(value);
        batch.values.extend([start, value.len() as u32]);
        batch.keys.extend([0, u32::MAX]);
        batch.offsets.push(batch.offsets.len() as u64);
        batch.timestamps.push(1_700_000_000_000);
        batch.attempts.push(1);
        batch.header_ends.push(0);
    }
    Arc::new(batch)
}

/// The values of an answer's outputs.
pub(crate) fn outputs(batch: &ColumnBatch, answer: &Answer) -> Vec<Vec<u8>> {
    let both = [batch.data.as_slice(), answer.data.as_slice()].concat();
    let of_output = |index: usize| match answer.values.get(index * 2..index * 2 + 2) {
        Some(span) => both[span[0] as usize..][..span[1] as usize].to_vec(),
        None => batch
            .value(answer.sources[index] as usize)
            .unwrap()
            .to_vec(),
    };
    (0..answer.sources.len()).map(of_output).collect()
}

/// Calls with one message and returns its only output.
pub(crate) async fn one(handler: &Arc<dyn BatchHandler>, value: &str) -> Result<String, CallError> {
    let batch = batch([value]);
    let answer = handler.process(&batch).await?;
    let output = outputs(&batch, &answer).pop().unwrap();
    Ok(String::from_utf8(output).unwrap())
}
