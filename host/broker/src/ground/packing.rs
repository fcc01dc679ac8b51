//! Compressed batches in the broker: decompressed to read their content, compressed as their topic requires. Longer work is done
//! outside the async threads.

use millrace_model::{BatchError, Compression, RecordBatch};

/// Compressed batches up to this size are decompressed in place: even the densest ones take only
/// about ten milliseconds.
const INFLATED_IN_PLACE_BYTES: usize = 16 << 10;
/// Batches up to this size are compressed in place.
const DEFLATED_IN_PLACE_BYTES: usize = 64 << 10;

/// The batch with readable records. A control batch is returned as it is: its content is not read.
pub(crate) async fn readable(batch: &RecordBatch) -> Result<RecordBatch, BatchError> {
    if batch.codec() == 0 || batch.is_control() {
        return Ok(batch.clone());
    }
    if batch.byte_count() <= INFLATED_IN_PLACE_BYTES {
        return batch.inflated();
    }
    let batch = batch.clone();
    aside(move || batch.inflated()).await
}

/// The batches, compressed if that makes them smaller.
pub(crate) async fn packed(
    batches: Vec<RecordBatch>,
    codec: impl Fn(usize) -> Compression,
) -> Vec<RecordBatch> {
    let wanted: Vec<Compression> = (0..batches.len()).map(codec).collect();
    let long = |(batch, codec): (&RecordBatch, &Compression)| match codec {
        Compression::None => 0,
        _ => batch.byte_count(),
    };
    let bytes: usize = batches.iter().zip(&wanted).map(long).sum();
    let pack = move || {
        let packed = batches.into_iter().zip(wanted);
        packed.map(|(batch, codec)| batch.deflated(codec)).collect()
    };
    match bytes {
        0..=DEFLATED_IN_PLACE_BYTES => pack(),
        _ => aside(pack).await,
    }
}

/// Runs the work on a thread that may block.
async fn aside<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // The task is cancelled only when the runtime shuts down, which drops this future too.
            Err(_) => std::future::pending().await,
        },
    }
}
