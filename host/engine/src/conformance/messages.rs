//! Promises about messages: they are committed as a whole, in order, read as they were written, and
//! announced to waiting readers.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use millrace_model::bounds::MESSAGE_BYTES_MAX;
use millrace_model::{
    BatchBuilder, Durability, Header, Message, Offset, PartitionId, Progress, Timestamp, TopicId,
    TopicPartition, TopicSpec,
};

use super::{
    append, at, batch, end, entries, entry, holds_the_count, make_partition, make_topic,
    messages_of, name, named, produce, read_all, spec, value, values,
};
use crate::contract::{
    Append, CommitError, Ends, Engine, EntryKind, ProgressWrite, ReadError, Receipt, Transaction,
};

/// No part of a transaction is lost, and the receipt has the offset of each append.
pub async fn a_transaction_brings_its_appends_progress_and_entries(engine: Arc<dyn Engine>) {
    let input = make_partition(&*engine, "input").await;
    let outputs = make_topic(&*engine, "outputs", 2).await;
    produce(&*engine, at(&outputs, 1), &["earlier"]).await;
    let lease = engine
        .claim(&named("copier"), input)
        .await
        .expect("claimed")
        .lease;
    let progress = Progress {
        next: Offset(1),
        ..Progress::default()
    };
    let receipt = engine
        .commit(Transaction {
            appends: vec![
                append(input, &["a", "b"]),
                append(at(&outputs, 0), &["c"]),
                append(at(&outputs, 1), &["d"]),
            ],
            progress: vec![ProgressWrite {
                partition: lease.partition,
                lease,
                progress: progress.clone().into(),
            }],
            entries: vec![entry(EntryKind::Processor, "copier", Some("of input"))],
            ..Transaction::default()
        })
        .await
        .expect("committed");

    let [of_input, of_first, of_second] = receipt.base_offsets[..] else {
        panic!("one base offset per append: {receipt:?}");
    };
    let expected = [(of_input, "a".into()), (of_input.next(), "b".into())];
    assert_eq!(read_all(&*engine, input).await, expected);
    let first = read_all(&*engine, at(&outputs, 0)).await;
    assert_eq!(first, [(of_first, "c".into())]);
    let second = read_all(&*engine, at(&outputs, 1)).await;
    assert_eq!(second[1], (of_second, "d".into()));
    let stored = engine
        .progress(&named("copier"), input)
        .await
        .expect("readable");
    assert_eq!(stored, Some(progress));
    let stored = value(&*engine, EntryKind::Processor, "copier");
    assert_eq!(stored.as_deref(), Some("of input"));
}

/// However offsets are assigned, and wherever the range begins and ends.
pub async fn messages_are_counted_and_offsets_are_not(engine: Arc<dyn Engine>) {
    let partition = make_partition(&*engine, "orders").await;
    for size in [3, 1, 4, 2] {
        produce(&*engine, partition, &vec!["m"; size]).await;
    }
    holds_the_count(&*engine, partition).await;
    let all = read_all(&*engine, partition).await;
    let trimmed = engine.trim(partition, all[4].0).await;
    assert_eq!(trimmed.expect("within its ends"), all[4].0);
    assert_eq!(holds_the_count(&*engine, partition).await, 6);
    let nowhere = TopicPartition {
        topic: TopicId(u64::from(u32::MAX)),
        ..partition
    };
    let unknown = engine.count(nowhere, Offset(0), Offset::MAX).await;
    assert!(matches!(unknown, Err(ReadError::UnknownPartition(_))));
}

/// Neither appends before the unknown partition nor those after it take effect.
pub async fn a_transaction_with_an_unknown_partition_changes_nothing(engine: Arc<dyn Engine>) {
    let topic = make_topic(&*engine, "orders", 2).await;
    let (first, second) = (at(&topic, 0), at(&topic, 1));
    produce(&*engine, first, &["kept"]).await;
    let lease = engine
        .claim(&named("group"), first)
        .await
        .expect("claimed")
        .lease;
    let before = [engine.ends(first).unwrap(), engine.ends(second).unwrap()];
    let beyond = TopicPartition {
        partition: PartitionId(2),
        ..first
    };
    let nowhere = TopicPartition {
        topic: TopicId(u64::from(u32::MAX)),
        ..first
    };
    for unknown in [beyond, nowhere] {
        let refused = engine
            .commit(Transaction {
                appends: vec![
                    append(first, &["before"]),
                    append(unknown, &["lost"]),
                    append(second, &["after"]),
                ],
                progress: vec![ProgressWrite {
                    partition: lease.partition,
                    lease: lease.clone(),
                    progress: Progress::default().into(),
                }],
                entries: vec![entry(EntryKind::Module, "key", Some("value"))],
                ..Transaction::default()
            })
            .await;
        assert!(
            matches!(refused, Err(CommitError::UnknownPartition(named)) if named == unknown),
            "{refused:?}"
        );
    }
    assert_eq!(before[0], engine.ends(first).unwrap());
    assert_eq!(before[1], engine.ends(second).unwrap());
    assert_eq!(engine.progress(&named("group"), first).await.unwrap(), None);
    assert_eq!(engine.entry(EntryKind::Module, "key"), None);
    produce(&*engine, second, &["goes on"]).await;
    assert_eq!(values(&*engine, first).await, ["kept"]);
    assert_eq!(values(&*engine, second).await, ["goes on"]);
}

/// Progress or entries alone are a transaction, and so is an empty one.
pub async fn a_transaction_need_not_append(engine: Arc<dyn Engine>) {
    let nothing = engine.commit(Transaction::default()).await;
    assert_eq!(nothing.expect("committed"), Receipt::default());

    let write = entry(EntryKind::Module, "alone", Some("kept"));
    engine
        .commit(entries(vec![write]))
        .await
        .expect("committed");
    assert!(engine.entry(EntryKind::Module, "alone").is_some());

    let partition = make_partition(&*engine, "input").await;
    let lease = engine
        .claim(&named("group"), partition)
        .await
        .expect("claimed")
        .lease;
    let progress = Progress::default();
    let write = ProgressWrite {
        partition: lease.partition,
        lease,
        progress: progress.into(),
    };
    let alone = engine.commit(super::progress(write)).await;
    assert_eq!(alone.expect("committed"), Receipt::default());
    let stored = engine.progress(&named("group"), partition).await.unwrap();
    assert_eq!(stored, Some(Progress::default()));
}

/// Also if one partition is listed several times, with others in between.
pub async fn appends_of_one_transaction_stand_in_the_order_listed(engine: Arc<dyn Engine>) {
    let topic = make_topic(&*engine, "orders", 2).await;
    let (one, other) = (at(&topic, 0), at(&topic, 1));
    let transaction = Transaction::produce(vec![
        append(one, &["1", "2"]),
        append(other, &["x"]),
        append(one, &["3"]),
        append(other, &["y", "z"]),
        append(one, &["4", "5", "6"]),
    ]);
    let bases = engine.commit(transaction).await.unwrap().base_offsets;
    assert_eq!(bases.len(), 5);
    assert!(bases[2] >= bases[0].plus(2) && bases[4] >= bases[2].plus(1));
    assert!(bases[3] >= bases[1].plus(1));
    assert_eq!(values(&*engine, one).await, ["1", "2", "3", "4", "5", "6"]);
    assert_eq!(values(&*engine, other).await, ["x", "y", "z"]);
}

/// From commit to commit, in each partition separately.
pub async fn offsets_only_grow(engine: Arc<dyn Engine>) {
    let topic = make_topic(&*engine, "orders", 2).await;
    for round in 0..40 {
        let partition = at(&topic, round % 2);
        let before = end(&*engine, partition);
        let base = produce(&*engine, partition, &["a", "b", "c"]).await;
        assert!(base >= before, "{base} is below the end {before}");
        let after = end(&*engine, partition);
        assert!(
            after >= base.plus(3),
            "the end {after} is behind {base} + 3"
        );
    }
}

/// Reads return exactly what the receipts say.
pub async fn sixteen_writers_are_given_no_offset_twice_and_everything_is_read(
    engine: Arc<dyn Engine>,
) {
    const WRITERS: usize = 16;
    const COMMITS: usize = 30;
    let topic = make_topic(&*engine, "orders", 3).await;
    let partitions: Vec<TopicPartition> = topic.partitions().collect();
    let writers: Vec<_> = (0..WRITERS)
        .map(|writer| {
            let (engine, partitions) = (engine.clone(), partitions.clone());
            tokio::spawn(async move {
                let mut written = Vec::new();
                for commit in 0..COMMITS {
                    // Every writer starts its list with a different partition, so locks taken in
                    // that order would deadlock.
                    let listed = |turn| partitions[(writer + turn) % partitions.len()];
                    let texts = |turn| [0, 1].map(|n| format!("{writer} {commit} {turn} {n}"));
                    let appends = (0..partitions.len())
                        .map(|turn| append(listed(turn), &texts(turn)))
                        .collect();
                    let receipt = engine.commit(Transaction::produce(appends)).await;
                    let bases = receipt.expect("committed").base_offsets;
                    for (turn, base) in bases.into_iter().enumerate() {
                        let [first, second] = texts(turn);
                        written.push(((listed(turn), base), first));
                        written.push(((listed(turn), base.next()), second));
                    }
                }
                written
            })
        })
        .collect();
    let mut written = BTreeMap::new();
    for writer in writers {
        for (place, text) in writer.await.expect("the writer finished") {
            let earlier = written.insert(place, text);
            assert_eq!(earlier, None, "{place:?} was given twice");
        }
    }
    assert_eq!(written.len(), WRITERS * COMMITS * 3 * 2);
    let mut read = BTreeMap::new();
    for partition in partitions {
        for (offset, text) in read_all(&*engine, partition).await {
            read.insert((partition, offset), text);
        }
    }
    assert!(read == written, "what is read is what was acknowledged");
}

/// A reader that sees one part of a transaction sees every part from then on, while commits
/// continue.
pub async fn a_reader_sees_a_transaction_whole(engine: Arc<dyn Engine>) {
    let topic = make_topic(&*engine, "orders", 2).await;
    let parts = [at(&topic, 0), at(&topic, 1)];
    let reader = tokio::spawn(look_for_halves(engine.clone(), parts));
    let lease = engine
        .claim(&named("group"), parts[0])
        .await
        .expect("claimed")
        .lease;
    let mut number = 0;
    while !reader.is_finished() {
        number += 1;
        let text = [number.to_string()];
        let progress = Progress {
            next: Offset(number),
            ..Progress::default()
        };
        let lease = lease.clone();
        let transaction = Transaction {
            appends: parts.map(|part| append(part, &text)).to_vec(),
            progress: vec![ProgressWrite {
                partition: lease.partition,
                lease,
                progress: progress.into(),
            }],
            ..Transaction::default()
        };
        engine.commit(transaction).await.expect("committed");
        tokio::task::yield_now().await;
    }
    reader.await.expect("no half was seen");
}

/// Others who write to one of its partitions at the same time do not show a part of a transaction early.
pub async fn writers_beside_a_transaction_show_no_part_of_it(engine: Arc<dyn Engine>) {
    const BESIDE: usize = 4;
    let topic = make_topic(&*engine, "orders", 2).await;
    let parts = [at(&topic, 0), at(&topic, 1)];
    let reader = tokio::spawn(look_beside(engine.clone(), parts));
    let is_read = Arc::new(AtomicBool::new(false));
    let others = (0..BESIDE).map(|_| {
        let (engine, is_read) = (engine.clone(), Arc::clone(&is_read));
        tokio::spawn(async move {
            while !is_read.load(Ordering::SeqCst) {
                let beside = Transaction::produce(vec![append(parts[0], &["0"])]);
                engine.commit(beside).await.expect("committed");
                tokio::task::yield_now().await;
            }
        })
    });
    let others: Vec<_> = others.collect();
    let mut number = 0;
    while !reader.is_finished() {
        number += 1;
        let text = [number.to_string()];
        let both = parts.map(|part| append(part, &text)).to_vec();
        let both = Transaction::produce(both);
        engine.commit(both).await.expect("committed");
        tokio::task::yield_now().await;
    }
    is_read.store(true, Ordering::SeqCst);
    for other in others {
        other.await.expect("it wrote until the end");
    }
    reader.await.expect("no part was seen");
}

/// Follows the partition that others write to as well, and looks for the other part of what it finds there.
async fn look_beside(engine: Arc<dyn Engine>, parts: [TopicPartition; 2]) {
    const NEWS: usize = 200;
    let (mut next, mut news) = (Offset(0), 0);
    while news < NEWS {
        let batches = engine.read(parts[0], next, usize::MAX).await;
        let batches = batches.expect("readable up to the end");
        next = batches.last().map_or(next, |batch| batch.end_offset());
        let found = batches.iter().flat_map(messages_of);
        let found = found.map(|(_, text)| text.parse().expect("a number"));
        let seen: u64 = found.max().unwrap_or(0);
        let also = newest_number(&*engine, parts[1]).await;
        assert!(
            also >= seen,
            "{seen} without its other part; {also} is there"
        );
        news += usize::from(seen > 0);
        tokio::task::yield_now().await;
    }
}

/// Reads from both sides, until it has coincided with commits often enough.
async fn look_for_halves(engine: Arc<dyn Engine>, parts: [TopicPartition; 2]) {
    const NEWS: usize = 200;
    let (mut last, mut news) = (0, 0);
    while news < NEWS {
        let (ahead, behind) = (parts[news % 2], parts[1 - news % 2]);
        let seen = newest_number(&*engine, ahead).await;
        let also = newest_number(&*engine, behind).await;
        assert!(
            also >= seen,
            "{seen} without its other half; {also} is there"
        );
        let progress = engine.progress(&named("group"), parts[0]).await;
        let next = progress.expect("readable").map_or(0, |found| found.next.0);
        assert!(next >= seen, "{seen} without its progress; {next} is there");
        news += usize::from(seen > last);
        last = seen;
        tokio::task::yield_now().await;
    }
}

async fn newest_number(engine: &dyn Engine, partition: TopicPartition) -> u64 {
    let last = end(engine, partition).0.saturating_sub(1);
    let batches = engine.read(partition, Offset(last), usize::MAX).await;
    let batches = batches.expect("readable up to the end");
    let newest = batches.last().and_then(|batch| messages_of(batch).pop());
    newest.map_or(0, |(_, text)| text.parse().expect("a number"))
}

/// Byte for byte except for the base offset: nulls, headers, empty values, timestamps.
pub async fn a_batch_is_read_as_it_was_written(engine: Arc<dyn Engine>) {
    let partition = make_partition(&*engine, "orders").await;
    let mut builder = BatchBuilder::with_capacity(0);
    builder.push(&Message::default());
    builder.push(&Message {
        key: Some(Bytes::new()),
        value: Some(Bytes::from_static(&[0, 0xff, b'\n'])),
        headers: vec![
            Header {
                name: Bytes::from_static(b"same"),
                value: None,
            },
            Header {
                name: Bytes::from_static(b"same"),
                value: Some(Bytes::from_static(b"twice")),
            },
        ],
        timestamp: Timestamp(1),
    });
    let written = builder.finish().expect("two messages");
    produce(&*engine, partition, &["before"]).await;
    let appends = vec![Append {
        partition,
        batch: written.clone(),
    }];
    let receipt = engine.commit(Transaction::produce(appends)).await.unwrap();
    let base = receipt.base_offsets[0];
    for number in 0..200 {
        produce(&*engine, partition, &[format!("after {number}")]).await;
    }
    let read = engine.read(partition, base, 1).await.expect("readable");
    assert_eq!(read, [written.at_offset(base)]);
}

/// A batch with one message of the maximum size fits into every engine.
pub async fn the_largest_message_is_kept(engine: Arc<dyn Engine>) {
    let partition = make_partition(&*engine, "orders").await;
    let largest = "x".repeat(MESSAGE_BYTES_MAX);
    let base = produce(&*engine, partition, &[&largest]).await;
    produce(&*engine, partition, &["next"]).await;
    let read = engine.read(partition, base, 1).await.expect("readable");
    assert!(read == [batch(&[&largest]).at_offset(base)]);
    assert_eq!(values(&*engine, partition).await.len(), 2);
}

/// When a commit returns, every reader can see it, whatever its durability; a transaction may
/// request more durability than its topics.
pub async fn topics_of_every_durability_show_what_they_acknowledged(engine: Arc<dyn Engine>) {
    let every = [Durability::None, Durability::Os, Durability::Durable];
    let mut partitions = Vec::new();
    for durability in every {
        let spec = TopicSpec {
            durability,
            ..spec(&format!("{durability:?}"), 1)
        };
        let topic = engine.create_topic(spec, Vec::new()).await.expect("made");
        assert_eq!(topic.spec.durability, durability);
        partitions.push(at(&topic, 0));
    }
    for durability in [None].into_iter().chain(every.map(Some)) {
        let text = [format!("{durability:?}")];
        let appends = partitions.iter().map(|&one| append(one, &text)).collect();
        let transaction = Transaction {
            durability,
            ..Transaction::produce(appends)
        };
        engine.commit(transaction).await.expect("committed");
        for &partition in &partitions {
            let newest = values(&*engine, partition).await.pop();
            assert_eq!(newest.as_ref(), Some(&text[0]));
        }
    }
}

/// The error has the requested offset and the end.
pub async fn reading_at_the_end_is_empty_and_past_it_an_error(engine: Arc<dyn Engine>) {
    let partition = make_partition(&*engine, "orders").await;
    assert_eq!(engine.ends(partition).unwrap(), Ends::default());
    let empty = engine.read(partition, Offset(0), 1000).await;
    assert_eq!(empty.expect("readable"), []);
    produce(&*engine, partition, &["a", "b"]).await;
    let the_end = end(&*engine, partition);
    let at_end = engine.read(partition, the_end, 1000).await;
    assert_eq!(at_end.expect("readable"), []);
    for past in [the_end.next(), Offset::MAX] {
        let refused = engine.read(partition, past, 1000).await;
        assert!(
            matches!(refused, Err(ReadError::PastEnd { requested, end })
                if requested == past && end == the_end),
            "{refused:?}"
        );
    }
}

/// For every offset: never the previous batch, never the next one.
pub async fn an_offset_within_a_batch_gives_the_batch_that_holds_it(engine: Arc<dyn Engine>) {
    let partition = make_partition(&*engine, "orders").await;
    for values in [&["a"][..], &["b", "c", "d"], &["e", "f"], &["g"]] {
        produce(&*engine, partition, values).await;
    }
    let all = read_all(&*engine, partition).await;
    assert_eq!(all.len(), 7);
    for (offset, value) in all {
        let read = engine.read(partition, offset, 1).await.expect("readable");
        assert_eq!(read.len(), 1, "one batch is the least and the most");
        let held = messages_of(&read[0]);
        assert!(held.contains(&(offset, value.clone())), "{value}: {held:?}");
    }
}

/// A read stops at the bound; a batch larger than the bound is returned alone.
pub async fn a_read_is_bounded_in_bytes_and_gives_at_least_one_batch(engine: Arc<dyn Engine>) {
    let partition = make_partition(&*engine, "orders").await;
    for number in 0..6 {
        produce(&*engine, partition, &[number.to_string()]).await;
    }
    let size = batch(&["0"]).byte_count();
    for (bytes_max, batches) in [
        (0, 1),
        (1, 1),
        (size, 1),
        (2 * size, 2),
        (5 * size, 5),
        (100 * size, 6),
        (usize::MAX, 6),
    ] {
        let read = engine.read(partition, Offset(0), bytes_max).await;
        let read = read.expect("readable");
        assert_eq!(read.len(), batches, "at {bytes_max} bytes of {size} each");
        let texts = read.iter().flat_map(messages_of).map(|(_, text)| text);
        assert!(texts.eq((0..batches).map(|n| n.to_string())));
    }
}

/// Whether the topic never existed or has fewer partitions.
pub async fn an_unknown_partition_is_named_by_every_verb(engine: Arc<dyn Engine>) {
    let topic = make_topic(&*engine, "orders", 1).await;
    let beyond = TopicPartition {
        topic: topic.id,
        partition: PartitionId(1),
    };
    let nowhere = TopicPartition {
        topic: TopicId(u64::from(u32::MAX)),
        partition: PartitionId(0),
    };
    for unknown in [beyond, nowhere] {
        assert_is_unknown(&*engine, unknown).await;
    }
}

/// Checks that every verb with a partition says that this one does not exist.
pub(super) async fn assert_is_unknown(engine: &dyn Engine, unknown: TopicPartition) {
    let reads = [
        engine.read(unknown, Offset(0), 1000).await.err(),
        engine.ends(unknown).err(),
        engine.watch(unknown).err(),
        engine.progress(&named("group"), unknown).await.err(),
    ];
    for refused in reads {
        assert!(
            matches!(refused, Some(ReadError::UnknownPartition(named)) if named == unknown),
            "{refused:?}"
        );
    }
    let appends = vec![append(unknown, &["lost"])];
    let writes = [
        engine.claim(&named("group"), unknown).await.err(),
        engine.commit(Transaction::produce(appends)).await.err(),
    ];
    for refused in writes {
        assert!(
            matches!(refused, Some(CommitError::UnknownPartition(named)) if named == unknown),
            "{refused:?}"
        );
    }
}

/// And what it announces can be read at once.
pub async fn a_watch_wakes_for_its_partition_and_no_other(engine: Arc<dyn Engine>) {
    let topic = make_topic(&*engine, "orders", 2).await;
    let (watched, other) = (at(&topic, 0), at(&topic, 1));
    let mut watch = engine.watch(watched).expect("the partition exists");
    for number in 0..20 {
        let before = end(&*engine, watched);
        produce(&*engine, other, &["elsewhere"]).await;
        let mut waiting = Box::pin(watch.past(before));
        tokio::select! {
            biased;
            woken = &mut waiting => panic!("woken with {woken:?} for nothing"),
            () = std::future::ready(()) => {}
        }
        let text = number.to_string();
        let commit = tokio::spawn({
            let (engine, text) = (engine.clone(), text.clone());
            async move { produce(&*engine, watched, &[text]).await }
        });
        let announced = waiting.await.expect("the partition is there");
        let read = engine.read(watched, before, 1000).await.expect("readable");
        let messages: Vec<_> = read.iter().flat_map(messages_of).collect();
        let base = commit.await.expect("the writer finished");
        assert!(announced > base, "{announced} is not past {base}");
        assert_eq!(messages, [(base, text)]);
    }
}

/// A watch taken after the commit does not wait for the next one.
pub async fn a_watch_of_what_has_happened_is_told_at_once(engine: Arc<dyn Engine>) {
    let partition = make_partition(&*engine, "orders").await;
    let base = produce(&*engine, partition, &["a"]).await;
    let mut watch = engine.watch(partition).expect("the partition exists");
    assert_eq!(watch.end(), end(&*engine, partition));
    assert_eq!(watch.past(base).await, Some(end(&*engine, partition)));
}

/// No reader waits forever for a deleted partition.
pub async fn a_watch_of_a_deleted_partition_ends(engine: Arc<dyn Engine>) {
    let partition = make_partition(&*engine, "orders").await;
    produce(&*engine, partition, &["a"]).await;
    let the_end = end(&*engine, partition);
    let mut watch = engine.watch(partition).expect("the partition exists");
    let waiter = tokio::spawn(async move { watch.past(the_end).await });
    engine
        .delete_topic(&name("orders"), Vec::new())
        .await
        .expect("deleted");
    assert_eq!(waiter.await.expect("the waiter finished"), None);
}
