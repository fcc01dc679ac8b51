//! We can read the batches of another implementation of Kafka's format, with every codec, and it
//! has read ours.
//!
//! `fixtures/kafka_python.py` built the files in `fixtures/kafka-python` and checked those in
//! `fixtures/millrace`; it describes how to run it. With `MILLRACE_FIXTURES=DIRECTORY` this test
//! writes our files there again.

use std::fs;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use millrace_model::{
    BatchBuilder, BatchError, Compression, Header, Message, RecordBatch, Timestamp,
};

const COUNT: u64 = 40;

fn message(i: u64) -> Message {
    let value = format!("reading {i} of the same sensor, as every reading before it");
    let header = |name: &'static str, value: Option<&'static str>| Header {
        name: name.into(),
        value: value.map(Bytes::from),
    };
    Message {
        timestamp: Timestamp(1_700_000_000_000 + i * 7),
        key: (!i.is_multiple_of(5)).then(|| format!("sensor-{}", i % 3).into()),
        value: (!i.is_multiple_of(7)).then(|| value.into()),
        headers: match i % 4 {
            0 => vec![header("unit", Some("mm")), header("trace", None)],
            _ => Vec::new(),
        },
    }
}

fn ours(codec: Compression) -> RecordBatch {
    let mut builder = BatchBuilder::with_capacity(0);
    (0..COUNT).for_each(|i| builder.push(&message(i)));
    builder.finish_with(codec).expect("it has messages")
}

fn fixture(writer: &str, codec: Compression) -> PathBuf {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    fixtures.join(writer).join(format!("{codec}.batch"))
}

fn messages(batch: &RecordBatch) -> Result<Vec<Message>, BatchError> {
    let plain = batch.inflated()?;
    let records = plain.records()?;
    records
        .map(|record| record?.to_message(plain.bytes()))
        .collect()
}

#[test]
fn batches_of_both_writers_are_read_with_every_codec() {
    let wanted: Vec<Message> = (0..COUNT).map(message).collect();
    for writer in ["kafka-python", "millrace"] {
        for codec in Compression::ALL {
            let file = fixture(writer, codec);
            let bytes = fs::read(&file).expect("the fixture is there");
            let batch = RecordBatch::decode(&bytes.into()).expect("a whole batch");
            assert_eq!(batch.codec(), codec.code(), "{writer} {codec}");
            assert_eq!(messages(&batch).as_ref(), Ok(&wanted), "{writer} {codec}");
        }
    }
}

#[test]
fn what_is_written_now_reads_the_same() {
    let wanted: Vec<Message> = (0..COUNT).map(message).collect();
    for codec in Compression::ALL {
        let batch = ours(codec);
        assert_eq!(batch.codec(), codec.code());
        assert_eq!(messages(&batch).as_ref(), Ok(&wanted), "{codec}");
        if let Some(directory) = std::env::var_os("MILLRACE_FIXTURES") {
            let file = Path::new(&directory).join(format!("{codec}.batch"));
            fs::write(file, batch.bytes()).expect("the directory is there");
        }
    }
}
