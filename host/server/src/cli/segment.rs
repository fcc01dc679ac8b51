//! `segment`: shows the content of a segment file. Reads only, and needs no host.

use std::ops::{ControlFlow, Range};
use std::path::PathBuf;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use millrace_local::segment::{DamageKind, Found, NotShown, SegmentFile};
use millrace_local::{Cipher, encryption};
use millrace_model::batch::RecordView;
use millrace_model::{Compression, Message, Offset, RecordBatch};
use serde_json::{Map, Value, json};

use super::failure::{Exit, Failure};
use super::output::Output;
use super::table::when;
use crate::encryption::encryption_keys;

/// Characters of a key, header or value that are shown by default.
const SHOWN_CHARS_MAX: usize = 60;

const AFTER_HELP: &str = "\
Examples:
  millrace segment dump millrace-data/topics/1/0-00000000000000000000.segment
  millrace segment dump FILE --from 120 --max 10 --values
  millrace segment dump FILE --json | jq 'select(.kind == \"message\") | .value'

The file is not changed. Binary data is shown in hexadecimal, and with --json in base64 and complete.
While a host writes to the file, its end may look damaged.";

/// Inspect files of a data directory
#[derive(clap::Subcommand)]
pub(super) enum Verb {
    /// Show the batches and messages of a segment file, and its damage
    #[command(after_help = AFTER_HELP)]
    Dump(Args),
}

#[derive(clap::Args)]
pub(super) struct Args {
    file: PathBuf,
    /// Start at this offset
    #[arg(long, value_name = "OFFSET", default_value_t = 0)]
    from: u64,
    /// Stop after this many messages
    #[arg(long, value_name = "COUNT")]
    max: Option<u64>,
    /// The keys, if messages are encrypted
    #[arg(long, value_name = "FILE", env = "MILLRACE_ENCRYPTION_KEY_FILE")]
    encryption_key_file: Option<PathBuf>,
    /// Show keys, headers and values completely
    #[arg(long)]
    values: bool,
}

pub(super) fn run(verb: Verb, as_json: bool) -> Result<(), Failure> {
    let Verb::Dump(args) = verb;
    let keys = encryption_keys(args.encryption_key_file.as_deref())?;
    let file = SegmentFile::open(&args.file).map_err(not_shown)?;
    let mut dump = Dump {
        keys,
        from: Offset(args.from),
        left: args.max.unwrap_or(u64::MAX),
        chars_max: if args.values {
            usize::MAX
        } else {
            SHOWN_CHARS_MAX
        },
        output: Output::new(as_json),
        sums: Sums::default(),
    };
    file.walk(|found| dump.show(&found))?;
    dump.finish()
}

fn not_shown(error: NotShown) -> Failure {
    let failure = |exit, code| Failure::new(exit, code, error.to_string());
    match &error {
        NotShown::NotASegment { .. } => failure(Exit::Refused, "not-a-segment")
            .with_hint("segments are topics/TOPIC/PARTITION-OFFSET.segment in the data directory"),
        NotShown::Io { source, .. } if source.kind() == std::io::ErrorKind::NotFound => {
            failure(Exit::Unknown, "unknown-file")
        }
        NotShown::Io { .. } => failure(Exit::Failed, "failed"),
    }
}

struct Dump {
    keys: Option<Arc<Cipher>>,
    from: Offset,
    /// Messages that may still be shown.
    left: u64,
    chars_max: usize,
    output: Output,
    sums: Sums,
}

#[derive(Default)]
struct Sums {
    batches: u64,
    messages: u64,
    damaged: u64,
}

impl Dump {
    fn show(&mut self, found: &Found) -> Result<ControlFlow<()>, Failure> {
        if self.left == 0 {
            return Ok(ControlFlow::Break(()));
        }
        match found {
            Found::Batch { batch, position } if batch.end_offset() > self.from => {
                self.batch(batch, *position)?;
            }
            Found::Damage {
                bytes,
                offsets,
                kind,
            } if offsets.end > self.from => {
                self.damage(bytes, offsets, *kind)?;
            }
            Found::Batch { .. } | Found::Damage { .. } => {}
        }
        Ok(ControlFlow::Continue(()))
    }

    fn batch(&mut self, batch: &RecordBatch, position: u64) -> Result<(), Failure> {
        self.sums.batches += 1;
        let (base, end) = (batch.base_offset(), batch.end_offset());
        let (count, bytes) = (batch.message_count(), batch.byte_count());
        let codec = codec(batch);
        let latest = batch.max_timestamp().0;
        if self.output.is_json() {
            self.line(&json!({
                "kind": "batch", "position": position, "base_offset": base, "end_offset": end, "count": count,
                "byte_count": bytes, "checksum": "ok", "codec": codec, "control": batch.is_control(),
                "max_timestamp": latest,
            }))?;
        } else {
            let control = if batch.is_control() { ", control" } else { "" };
            self.output.line(&format!(
                "batch at byte {position}: offsets {base}..{end}, {count} messages, {bytes} bytes, checksum ok, \
                 compression {codec}{control}, latest {}",
                when(&json!(latest))
            ))?;
        }
        if let Err(error) = self.messages(batch)? {
            self.unreadable(&error)?;
        }
        Ok(())
    }

    /// The batch in plain text, if it is encrypted and the key is available.
    fn decrypted(&self, batch: &RecordBatch) -> Result<RecordBatch, String> {
        let Some(key) = encryption::key_id(batch) else {
            return Ok(batch.clone());
        };
        let cipher = self.keys.as_ref().ok_or_else(|| {
            format!(
                "they are encrypted with key {key}; pass the key file with --encryption-key-file"
            )
        })?;
        let cipher = encryption::BatchCipher::as_named(Arc::clone(cipher), batch);
        let cipher = cipher.ok_or("the batch is incomplete")?;
        cipher.decrypt(batch).map_err(|error| error.to_string())
    }

    /// The outer error ends the dump, the inner one the batch.
    fn messages(&mut self, batch: &RecordBatch) -> Result<Result<(), String>, Failure> {
        let batch = match self.decrypted(batch).map(|batch| batch.inflated()) {
            Ok(Ok(plain)) => plain,
            Ok(Err(error)) => return Ok(Err(error.to_string())),
            Err(told) => return Ok(Err(told)),
        };
        let records = match batch.records() {
            Ok(records) => records,
            Err(error) => return Ok(Err(error.to_string())),
        };
        for record in records {
            let message = record.and_then(|view| Ok((view.to_message(batch.bytes())?, view)));
            match message {
                Err(error) => return Ok(Err(error.to_string())),
                Ok((_, view)) if view.offset < self.from => {}
                Ok(_) if self.left == 0 => break,
                Ok((message, view)) => self.message(&message, &view)?,
            }
        }
        Ok(Ok(()))
    }

    fn message(&mut self, message: &Message, view: &RecordView) -> Result<(), Failure> {
        self.left -= 1;
        self.sums.messages += 1;
        if self.output.is_json() {
            return self.line(&as_json(message, view.offset));
        }
        let shown = |bytes: Option<&[u8]>| {
            bytes.map_or_else(|| "-".to_owned(), |bytes| shown(bytes, self.chars_max))
        };
        let header = |header: &millrace_model::Header| {
            let value = shown(header.value.as_deref());
            format!("  {}={value}", shown(Some(&header.name)))
        };
        let headers: String = message.headers.iter().map(header).collect();
        let time = when(&json!(message.timestamp));
        let (key, value) = (
            shown(message.key.as_deref()),
            shown(message.value.as_deref()),
        );
        let line = format!(
            "  {}  {time}  key {key}  value {value}{headers}",
            view.offset
        );
        self.output.line(&line)
    }

    fn damage(
        &mut self,
        bytes: &Range<u64>,
        offsets: &Range<Offset>,
        kind: DamageKind,
    ) -> Result<(), Failure> {
        let (word, meaning) = match kind {
            DamageKind::Changed => ("changed", ""),
            DamageKind::Misplaced => (
                "misplaced",
                ": this data belongs to another topic or partition (dump a copy outside the data directory to see it)",
            ),
        };
        self.sums.damaged += 1;
        let end = (offsets.end < Offset::MAX).then_some(offsets.end);
        if self.output.is_json() {
            return self.line(&json!({
                "kind": "damage", "damage": word,
                "bytes": {"from": bytes.start, "to": bytes.end},
                "offsets": {"from": offsets.start, "to": end},
            }));
        }
        let end = end.map_or_else(
            || "and later".to_owned(),
            |end| format!("to {end} (exclusive)"),
        );
        self.output.line(&format!(
            "DAMAGE at bytes {}..{}: offsets {} {end} cannot be read{meaning}",
            bytes.start, bytes.end, offsets.start
        ))
    }

    fn unreadable(&mut self, error: &str) -> Result<(), Failure> {
        match self.output.is_json() {
            true => self.line(&json!({"kind": "unreadable", "reason": error.to_string()})),
            false => {
                let line = format!("  some or all of its messages cannot be shown: {error}");
                self.output.line(&line)
            }
        }
    }

    fn line(&mut self, value: &Value) -> Result<(), Failure> {
        self.output.json_line(value)
    }

    fn finish(mut self) -> Result<(), Failure> {
        if !self.output.is_json() {
            let Sums {
                batches,
                messages,
                damaged,
            } = self.sums;
            let line =
                format!("{batches} batches, {messages} messages shown, {damaged} damaged ranges");
            self.output.line(&line)?;
        }
        self.output.flush()
    }
}

fn codec(batch: &RecordBatch) -> String {
    let number = batch.codec();
    let known = Compression::from_code(number);
    known.map_or_else(|| format!("number {number}"), |codec| codec.to_string())
}

/// Bytes for people: quoted text, or hexadecimal digits; shortened if long.
fn shown(bytes: &[u8], chars_max: usize) -> String {
    let text = match str::from_utf8(bytes) {
        Ok(text) => format!("{text:?}"),
        Err(_) => {
            let digits = bytes
                .iter()
                .take(chars_max)
                .map(|byte| format!("{byte:02x}"));
            format!("0x{}", digits.collect::<String>())
        }
    };
    match text.char_indices().nth(chars_max) {
        Some((at, _)) => format!("{}… ({} bytes)", &text[..at], bytes.len()),
        None => text,
    }
}

/// With the field names of the HTTP API; headers as a list, because they have an order and may repeat.
fn as_json(message: &Message, offset: Offset) -> Value {
    let mut shown = Map::new();
    shown.insert("kind".to_owned(), "message".into());
    shown.insert("offset".to_owned(), offset.0.into());
    shown.insert("timestamp".to_owned(), message.timestamp.0.into());
    put(&mut shown, "key", message.key.as_deref());
    let header = |header: &millrace_model::Header| {
        let mut shown = Map::new();
        put(&mut shown, "name", Some(&header.name));
        put(&mut shown, "value", header.value.as_deref());
        Value::from(shown)
    };
    let headers: Vec<Value> = message.headers.iter().map(header).collect();
    shown.insert("headers".to_owned(), headers.into());
    put(&mut shown, "value", message.value.as_deref());
    shown.into()
}

fn put(map: &mut Map<String, Value>, name: &str, bytes: Option<&[u8]>) {
    match bytes.map(|bytes| str::from_utf8(bytes).map_err(|_| bytes)) {
        None => map.insert(name.to_owned(), Value::Null),
        Some(Ok(text)) => map.insert(name.to_owned(), text.into()),
        Some(Err(bytes)) => map.insert(format!("{name}_base64"), STANDARD.encode(bytes).into()),
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_shown_safely_and_short() {
        assert_eq!(shown("a\u{1b}[2J\n".as_bytes(), 60), r#""a\u{1b}[2J\n""#);
        assert_eq!(shown(&[0xff, 0, 0x10], 60), "0xff0010");
        assert_eq!(shown("ä".repeat(100).as_bytes(), 4), "\"äää… (200 bytes)");
        assert_eq!(shown(&[0xff; 1000], 6), "0xffff… (1000 bytes)");
        assert_eq!(shown(b"", 60), "\"\"");
    }
}
