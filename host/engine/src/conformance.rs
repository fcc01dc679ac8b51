//! The suite that every engine passes: one function per promise of [`contract`](crate::contract), one test per function.
//!
//! An engine's tests call [`conformance_tests!`](crate::conformance_tests) with an async function that opens the engine in a
//! directory; an engine that keeps its data calls [`reopening_tests!`](crate::reopening_tests) as well. Each promise gets an
//! engine of its own. Offsets may have gaps, so nothing here counts on their absence.

use std::future::Future;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use millrace_model::{
    BatchBuilder, Durability, GroupName, Message, Offset, PartitionId, ProcessorName, RecordBatch,
    Timestamp, Topic, TopicName, TopicPartition, TopicSpec,
};
use tempfile::TempDir;

use crate::contract::{
    Append, Engine, EntryKind, EntryWrite, ProgressWrite, TopicChange, Transaction,
};

pub mod adopting;
pub mod bounds;
pub mod catalogue;
pub mod compaction;
pub mod expectations;
pub mod growth;
pub mod hosts;
pub mod lifetime;
pub mod messages;
pub mod once;
pub mod progress;
pub mod reopening;
pub mod state;

/// Longer than any promise takes, so that a test of an engine that never answers fails instead of hanging.
const PROMISE_DURATION_MAX: Duration = Duration::from_secs(120);
/// Small, so that reading a partition takes several reads.
const READ_BYTES: usize = 4 << 10;

/// One test per promise. `$open` is an `AsyncFn(PathBuf) -> Arc<dyn Engine>`.
#[macro_export]
macro_rules! conformance_tests {
    ($open:expr) => {
        $crate::conformance_tests! { @tests hold $open;
            messages::a_transaction_brings_its_appends_progress_and_entries,
            messages::messages_are_counted_and_offsets_are_not,
            messages::a_transaction_with_an_unknown_partition_changes_nothing,
            messages::a_transaction_need_not_append,
            messages::appends_of_one_transaction_stand_in_the_order_listed,
            messages::offsets_only_grow,
            messages::sixteen_writers_are_given_no_offset_twice_and_everything_is_read,
            messages::a_reader_sees_a_transaction_whole,
            messages::writers_beside_a_transaction_show_no_part_of_it,
            messages::a_batch_is_read_as_it_was_written,
            messages::the_largest_message_is_kept,
            messages::topics_of_every_durability_show_what_they_acknowledged,
            messages::reading_at_the_end_is_empty_and_past_it_an_error,
            messages::an_offset_within_a_batch_gives_the_batch_that_holds_it,
            messages::a_read_is_bounded_in_bytes_and_gives_at_least_one_batch,
            messages::an_unknown_partition_is_named_by_every_verb,
            messages::a_watch_wakes_for_its_partition_and_no_other,
            messages::a_watch_of_what_has_happened_is_told_at_once,
            messages::a_watch_of_a_deleted_partition_ends,
            progress::a_newer_claim_fences_the_older_lease_and_its_commit_changes_nothing,
            progress::claims_elsewhere_do_not_fence,
            progress::a_lease_that_was_never_given_is_fenced,
            progress::what_is_given_back_as_left_is_told_to_whoever_holds_it_next,
            progress::of_many_claims_only_the_newest_commits,
            progress::a_claim_leaves_progress_alone,
            progress::progress_is_replaced_whole,
            progress::progress_is_kept_per_group_and_partition,
            progress::it_is_known_who_has_progress_where,
            state::state_is_written_with_its_transaction,
            state::a_fenced_transaction_writes_no_state,
            state::state_is_kept_per_group_and_partition,
            state::a_reset_leaves_what_is_written_after_it,
            state::state_may_be_written_under_the_lease_of_another_partition_or_none,
            state::state_goes_with_its_topic,
            state::a_page_is_of_one_moment_while_commits_go_on,
            state::a_turn_lasts_until_what_was_written_under_it_is_there,
            state::what_has_ended_is_removed_and_nothing_goes_with_it,
            once::a_repeated_batch_is_told_its_offset_and_not_appended,
            once::a_gap_between_batches_is_refused,
            once::a_producer_started_anew_fences_its_earlier_life,
            once::no_producer_id_is_given_twice,
            once::a_transaction_repeats_whole_or_not_at_all,
            once::a_request_takes_effect_once,
            once::of_many_at_once_with_one_key_one_takes_effect,
            catalogue::entries_are_set_replaced_removed_and_listed_by_key,
            catalogue::changes_of_entries_happen_in_the_order_listed,
            progress::a_change_says_what_became_of_each_parked_message,
            progress::several_groups_come_on_together_or_not_at_all,
            once::an_epoch_begins_with_a_transaction_or_not_at_all,
            catalogue::topics_are_kept_as_asked_for_and_listed_by_name,
            catalogue::a_name_that_is_taken_is_refused_and_keeps_its_topic,
            catalogue::partition_counts_out_of_bounds_are_refused,
            catalogue::a_deleted_topic_takes_its_messages_and_progress_along,
            catalogue::a_topic_made_again_starts_empty,
            catalogue::a_lease_does_not_outlive_its_topic,
            catalogue::modules_are_kept_once_and_forgotten,
            catalogue::a_closed_engine_refuses_every_change,
            expectations::what_was_decided_on_an_older_entry_changes_nothing,
            expectations::a_conflict_leaves_nothing_of_its_transaction,
            expectations::of_many_who_decide_on_the_same_entry_one_takes_effect,
            expectations::a_kind_is_unchanged_only_while_nothing_of_it_is_written,
            expectations::what_was_decided_on_an_older_topic_changes_nothing,
            expectations::a_repeated_request_is_no_conflict_with_itself,
            expectations::whoever_watches_the_catalogue_hears_of_each_change,
            expectations::no_version_is_given_twice,
            expectations::a_module_is_known_to_be_a_partitioner_as_long_as_a_topic_has_it,
            expectations::a_module_with_an_entry_keeps_its_bytes_whoever_removes_them,
            growth::a_topic_that_is_given_more_partitions_keeps_what_it_has,
            growth::a_topic_never_has_fewer_partitions_and_the_same_count_changes_nothing,
            growth::topics_grow_together_or_not_at_all,
            growth::every_partition_that_a_topic_shows_is_there_while_it_grows,
            growth::partitions_that_were_added_go_with_their_topic,
            lifetime::a_change_of_a_topic_shows_at_once_and_changes_nothing_else,
            lifetime::a_change_names_a_topic_that_exists,
            lifetime::what_is_before_a_trim_is_gone_and_all_after_stays,
            lifetime::a_trim_never_goes_back_nor_beyond_the_end,
            lifetime::a_trimmed_partition_goes_on_at_its_end,
            lifetime::progress_below_the_start_is_kept_as_it_was,
            lifetime::the_first_message_at_a_time_is_found_though_times_go_up_and_down,
        }
    };
    (@tests $run:ident $open:expr; $($part:ident::$promise:ident,)*) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
            async fn $promise() {
                $crate::conformance::$run($open, $crate::conformance::$part::$promise).await;
            }
        )*
    };
}

/// One test per promise of an engine that takes over what another store has. `$open` as for [`conformance_tests!`](crate::conformance_tests).
#[macro_export]
macro_rules! adopting_tests {
    ($open:expr) => {
        $crate::conformance_tests! { @tests hold $open;
            adopting::a_topic_is_taken_over_under_its_id,
            adopting::messages_are_taken_over_at_their_offsets,
            adopting::an_empty_partition_is_taken_over_where_it_ends,
            adopting::what_does_not_begin_at_the_end_is_refused,
            adopting::producers_go_on_after_their_batches_were_taken_over,
        }
    };
}

/// One test per promise of such an engine that keeps its data. `$open` as for [`reopening_tests!`](crate::reopening_tests).
#[macro_export]
macro_rules! adopting_and_reopening_tests {
    ($open:expr) => {
        $crate::conformance_tests! { @tests hold_across_reopening $open;
            adopting::what_was_taken_over_stays,
        }
    };
}

/// One test per promise of an engine that is opened with [`bounds::BOUNDS`]. `$open` as for [`conformance_tests!`](crate::conformance_tests).
#[macro_export]
macro_rules! bounds_tests {
    ($open:expr) => {
        $crate::conformance_tests! { @tests hold $open;
            bounds::each_kind_is_refused_beyond_its_bound_wherever_it_is,
            bounds::what_is_there_may_be_replaced_and_removed_at_the_bound,
            bounds::a_deleted_topic_gives_its_room_back,
            bounds::partitions_beyond_the_hosts_bound_are_refused,
            bounds::a_topic_does_not_grow_beyond_the_hosts_bound,
        }
    };
}

/// One test per promise of an engine that compacts. `$open` as for [`conformance_tests!`](crate::conformance_tests); the engine looks often
/// whether something is to be compacted.
#[macro_export]
macro_rules! compaction_tests {
    ($open:expr) => {
        $crate::conformance_tests! { @tests hold $open;
            compaction::the_latest_message_of_each_key_stays_where_it_was,
            compaction::a_tombstone_goes_when_it_is_old_and_its_key_does_not_come_back,
            compaction::whatever_is_written_meanwhile_the_end_is_the_latest_of_each_key,
        }
    };
}

/// One test per promise of an engine that keeps its data. `$open` as for
/// [`conformance_tests!`](crate::conformance_tests); if it is called twice with one directory, the
/// second engine has the first one's data.
#[macro_export]
macro_rules! reopening_tests {
    ($open:expr) => {
        $crate::conformance_tests! { @tests hold_across_reopening $open;
            reopening::all_is_as_before,
            reopening::changes_of_progress_stay,
            reopening::changes_and_trims_stay,
            reopening::partitions_that_were_added_stay,
            reopening::what_was_deleted_stays_deleted,
            reopening::offsets_go_on,
            reopening::leases_are_numbered_on,
            reopening::topic_identities_are_not_given_again,
            reopening::nothing_wears_off,
            state::state_is_what_was_written_however_often_it_is_reopened,
            once::what_took_effect_is_known_after_reopening,
        }
    };
}

/// One test per promise of an engine for several hosts. `$open` is an `AsyncFn(PathBuf) -> [hosts::TwoHosts; 2]`: two hosts on a fresh store,
/// and two on another one, of which the other host is the first.
#[macro_export]
macro_rules! two_hosts_tests {
    ($open:expr) => {
        $crate::conformance_tests! { @tests hold_for_two $open;
            hosts::a_host_has_what_it_holds_alone_until_it_gives_it_back,
            hosts::what_a_dead_host_held_is_left_for_another,
            hosts::whoever_takes_over_from_a_dead_host_is_told_so,
            hosts::a_claim_takes_what_a_living_host_holds,
            hosts::a_claim_hides_nothing_that_was_left,
            hosts::state_goes_over_with_the_work,
            hosts::a_host_that_stood_still_commits_nothing_of_what_it_lost,
            hosts::a_host_that_stood_still_goes_on_with_what_nobody_took,
            hosts::hosts_that_live_are_listed,
            hosts::each_host_has_a_seat_and_both_see_the_same,
            hosts::what_one_host_has_changed_the_other_knows_once_it_asks,
            hosts::a_partition_never_starts_after_its_end,
            hosts::what_one_host_commits_the_other_comes_to_read,
            hosts::both_hosts_count_the_messages_that_are_there,
            hosts::what_one_host_changes_in_the_catalogue_the_other_hears_of,
            hosts::what_is_decided_on_something_late_is_a_conflict,
        }
    };
}

/// Asks one promise of two hosts, and of two in their places.
pub async fn hold_for_two(
    open: impl AsyncFn(PathBuf) -> [hosts::TwoHosts; 2],
    promise: impl AsyncFn(hosts::TwoHosts),
) {
    let directory = tempfile::tempdir().expect("a temporary directory");
    for hosts in open(directory.path().to_path_buf()).await {
        in_time(promise(hosts)).await;
    }
}

/// Asks one promise of a fresh engine.
pub async fn hold(
    open: impl AsyncFn(PathBuf) -> Arc<dyn Engine>,
    promise: impl AsyncFnOnce(Arc<dyn Engine>),
) {
    let place = Place::new(open);
    let engine = place.open().await;
    in_time(promise(engine.clone())).await;
    engine.close().await;
}

/// Asks one promise of an engine that is opened again and again.
pub async fn hold_across_reopening<Open>(open: Open, promise: impl AsyncFnOnce(Place<Open>))
where
    Open: AsyncFn(PathBuf) -> Arc<dyn Engine>,
{
    in_time(promise(Place::new(open))).await;
}

async fn in_time(promise: impl Future<Output = ()>) {
    let kept = tokio::time::timeout(PROMISE_DURATION_MAX, promise).await;
    kept.expect("the engine answers in time");
}

/// A directory, and how to open the engine in it.
#[derive(Debug)]
pub struct Place<Open> {
    open: Open,
    directory: TempDir,
}

impl<Open: AsyncFn(PathBuf) -> Arc<dyn Engine>> Place<Open> {
    fn new(open: Open) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        Self { open, directory }
    }

    /// Opens the engine in this directory.
    pub async fn open(&self) -> Arc<dyn Engine> {
        (self.open)(self.directory.path().to_path_buf()).await
    }

    /// Closes the engine and opens it again.
    pub async fn reopen(&self, engine: Arc<dyn Engine>) -> Arc<dyn Engine> {
        engine.close().await;
        drop(engine);
        self.open().await
    }
}

/// The value of an entry, as text.
fn value(engine: &dyn Engine, kind: EntryKind, key: &str) -> Option<String> {
    let entry = engine.entry(kind, key)?;
    Some(String::from_utf8_lossy(&entry.value).into_owned())
}

fn name(name: &str) -> TopicName {
    TopicName::parse(name).expect("a valid name")
}

/// The group of a processor of this name.
#[must_use]
pub fn named(group: &str) -> GroupName {
    let name = ProcessorName::parse(group);
    name.expect("a valid name").group()
}

fn spec(topic: &str, partitions: u32) -> TopicSpec {
    TopicSpec {
        name: name(topic),
        partitions,
        durability: Durability::Durable,
        partitioner: None,
        owner: None,
        created_at: Timestamp(1_700_000_000_000),
        settings: Default::default(),
    }
}

async fn make_topic(engine: &dyn Engine, topic: &str, partitions: u32) -> Topic {
    let made = engine
        .create_topic(spec(topic, partitions), Vec::new())
        .await;
    made.expect("the name is free")
}

async fn make_partition(engine: &dyn Engine, topic: &str) -> TopicPartition {
    at(&make_topic(engine, topic, 1).await, 0)
}

fn at(topic: &Topic, partition: u32) -> TopicPartition {
    let partition = topic.partition(PartitionId(partition));
    partition.expect("the topic has it")
}

fn partitions(count: u32) -> TopicChange {
    TopicChange {
        partitions: Some(count),
        ..TopicChange::default()
    }
}

/// Raises the topic's number of partitions to `count`.
async fn grow(engine: &dyn Engine, topic: &str, count: u32) -> Topic {
    let grown = engine.change_topic(&name(topic), partitions(count)).await;
    grown.expect("it grows")
}

fn message(value: &str) -> Message {
    Message {
        value: Some(Bytes::copy_from_slice(value.as_bytes())),
        timestamp: Timestamp(1_700_000_000_000),
        ..Message::default()
    }
}

fn batch<V: AsRef<str>>(values: &[V]) -> RecordBatch {
    let mut builder = BatchBuilder::with_capacity(64);
    for value in values {
        builder.push(&message(value.as_ref()));
    }
    builder.finish().expect("at least one message")
}

fn append<V: AsRef<str>>(partition: TopicPartition, values: &[V]) -> Append {
    let batch = batch(values);
    Append { partition, batch }
}

fn entry(kind: EntryKind, key: &str, value: Option<&'static str>) -> EntryWrite {
    EntryWrite {
        kind,
        key: key.to_owned(),
        value: value.map(|value| Bytes::from_static(value.as_bytes())),
    }
}

fn entries(entries: Vec<EntryWrite>) -> Transaction {
    Transaction {
        entries,
        ..Transaction::default()
    }
}

fn progress(write: ProgressWrite) -> Transaction {
    Transaction {
        progress: vec![write],
        ..Transaction::default()
    }
}

/// Commits the messages; returns the offset of the first.
async fn produce<V: AsRef<str>>(
    engine: &dyn Engine,
    partition: TopicPartition,
    values: &[V],
) -> Offset {
    let transaction = Transaction::produce(vec![append(partition, values)]);
    let receipt = engine.commit(transaction).await.expect("committed");
    receipt.base_offsets[0]
}

fn end(engine: &dyn Engine, partition: TopicPartition) -> Offset {
    engine.ends(partition).expect("the partition exists").end
}

/// Reads a partition from its start to its end, in many small reads.
async fn read_all(engine: &dyn Engine, partition: TopicPartition) -> Vec<(Offset, String)> {
    let ends = engine.ends(partition).expect("the partition exists");
    let mut found = Vec::new();
    let mut from = ends.start;
    while from < ends.end {
        let batches = engine.read(partition, from, READ_BYTES).await;
        let batches = batches.expect("readable from start to end");
        let Some(last) = batches.last() else { break };
        let seen = from;
        from = last.end_offset();
        assert!(from > seen, "a read from {seen} gives something new");
        let messages = batches.iter().flat_map(messages_of);
        found.extend(messages.filter(|(offset, _)| *offset >= seen));
    }
    let ascending = found.windows(2).all(|pair| pair[0].0 < pair[1].0);
    assert!(ascending, "offsets ascend from message to message");
    found
}

/// Checks counts between any two messages, and beyond both ends; returns the number of messages.
async fn holds_the_count(engine: &dyn Engine, partition: TopicPartition) -> u64 {
    let all = read_all(engine, partition).await;
    let offsets: Vec<Offset> = all.iter().map(|(offset, _)| *offset).collect();
    let bounds = [&[Offset(0)], &offsets[..], &[Offset::MAX]].concat();
    for &from in &bounds {
        for &to in &bounds {
            let within = offsets
                .iter()
                .filter(|&&offset| from <= offset && offset < to);
            let counted = engine.count(partition, from, to).await;
            let counted = counted.expect("the partition exists");
            assert_eq!(counted, within.count() as u64, "{from}..{to}");
        }
    }
    offsets.len() as u64
}

fn messages_of(batch: &RecordBatch) -> Vec<(Offset, String)> {
    let records = batch.records().expect("uncompressed");
    let read = records.map(|record| {
        let record = record.expect("sound");
        let value = record.value.map(|value| &batch.bytes()[value]);
        let text = String::from_utf8_lossy(value.unwrap_or_default());
        (record.offset, text.into_owned())
    });
    read.collect()
}

async fn values(engine: &dyn Engine, partition: TopicPartition) -> Vec<String> {
    let messages = read_all(engine, partition).await.into_iter();
    messages.map(|(_, value)| value).collect()
}

#[cfg(test)]
mod tests {
    #[test]
    fn every_promise_is_on_a_list() {
        let lists = include_str!("conformance.rs");
        for (part, source) in [
            ("adopting", include_str!("conformance/adopting.rs")),
            ("bounds", include_str!("conformance/bounds.rs")),
            ("catalogue", include_str!("conformance/catalogue.rs")),
            ("expectations", include_str!("conformance/expectations.rs")),
            ("growth", include_str!("conformance/growth.rs")),
            ("hosts", include_str!("conformance/hosts.rs")),
            ("lifetime", include_str!("conformance/lifetime.rs")),
            ("messages", include_str!("conformance/messages.rs")),
            ("once", include_str!("conformance/once.rs")),
            ("progress", include_str!("conformance/progress.rs")),
            ("reopening", include_str!("conformance/reopening.rs")),
            ("state", include_str!("conformance/state.rs")),
        ] {
            for line in source.lines() {
                let Some(promise) = line.strip_prefix("pub async fn ") else {
                    continue;
                };
                let promise = promise.split(['(', '<']).next().unwrap_or_default();
                let listed = format!(" {part}::{promise},\n");
                assert!(lists.contains(&listed), "{part}::{promise} is on no list");
            }
        }
    }
}
