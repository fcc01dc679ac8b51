//! Every bound of the system, by name and unit. What happens at a bound is said beside it.

/// A message's key, value and headers together. A larger one is refused before it is stored.
pub const MESSAGE_BYTES_MAX: usize = 8 << 20;

/// A record batch as stored, header included. A larger one is refused before it is read into memory.
pub const BATCH_BYTES_MAX: usize = 32 << 20;

/// The records of a compressed batch, once inflated. A batch that holds more is not read: it is treated as malformed.
pub const BATCH_INFLATED_BYTES_MAX: usize = 64 << 20;

/// Messages in one record batch. A batch that claims more is malformed.
pub const BATCH_MESSAGES_MAX: usize = 100_000;

/// Headers of one message. A message with more is refused.
pub const MESSAGE_HEADERS_MAX: usize = 1_024;

/// Headers of one stored record: a message's own, and those that the host adds (a dead letter's evidence). More is malformed.
pub const RECORD_HEADERS_MAX: usize = MESSAGE_HEADERS_MAX + 32;

/// Characters of a topic's name, as Kafka has it.
pub const TOPIC_NAME_CHARS_MAX: usize = 249;

/// Characters of a processor's name; short enough that `<topic>.<processor>.dlq` can still be a topic.
pub const PROCESSOR_NAME_CHARS_MAX: usize = 64;

/// Partitions of one topic. A topic that asks for more is refused.
pub const TOPIC_PARTITIONS_MAX: u32 = 10_000;

/// Messages of one partition that a group may have parked. At the bound the partition waits; nothing is dropped.
pub const PARKED_MESSAGES_MAX: usize = 10_000;

/// The longest that a message waits for its next attempt, whoever asks for longer: thirty days. A component's or an error handler's
/// longer delay is cut to it, and a specification with a longer one is refused.
pub const RETRY_DELAY_MS_MAX: u64 = 30 * 24 * 60 * 60 * 1_000;

/// No message is tried again sooner after a failure, whatever the specification, a component or an error handler says: a message that
/// fails at once would be tried thousands of times a second, each of them a commit.
pub const RETRY_DELAY_MS_MIN: u64 = 10;

/// Parked messages that one answer over HTTP shows. Ask for the next ones after the last.
pub const PARKED_LISTED_MAX: usize = 1_000;

/// Bytes of a parked message's key that are shown; longer ones are cut.
pub const PARKED_KEY_BYTES_MAX: usize = 1 << 10;

/// How long whoever wants a parked message tried or given up waits for its worker to end its batch. Then nothing is done.
pub const PARKED_ORDER_WAIT_MS_MAX: u64 = 10_000;

/// Attempts that a parked message remembers in detail; older ones are only counted.
pub const ATTEMPT_LOG_MAX: usize = 8;

/// Bytes of a reason that an attempt remembers.
pub const ATTEMPT_REASON_BYTES_MAX: usize = 512;

/// Bytes of a reason that an attempt remembers once all partitions of a host remember as much as they may; of the attempts before it
/// only their number is kept then.
pub const ATTEMPT_SHORT_REASON_BYTES_MAX: usize = 64;

/// Revisions that a processor keeps for rollback; the oldest go first.
pub const REVISIONS_KEPT_MAX: usize = 20;

/// Changes that a processor's history keeps; the oldest go first.
pub const CHANGES_KEPT_MAX: usize = 100;

/// Bytes of what a change says for people; longer ones are cut.
pub const CHANGE_TEXT_BYTES_MAX: usize = 512;

/// Messages of one partition that wait for their side of a canary, about. At the bound a batch ends at the next message of the other side.
pub const CANARY_ASIDE_MESSAGES_MAX: usize = 1_000;

/// Settled batches of one partition that wait for a shadow. What finds them full is not shown to it, and counted.
pub const SHADOW_QUEUE_BATCHES_MAX: usize = 4;

/// Kinds of differing outcomes that a shadow's report counts one by one; further ones are counted together.
pub const SHADOW_KINDS_MAX: usize = 64;

/// Messages that a shadow's report keeps as samples. The first ones stay.
pub const SHADOW_SAMPLES_MAX: usize = 100;

/// Samples of one kind of difference.
pub const SHADOW_SAMPLES_PER_KIND_MAX: usize = 20;

/// Bytes of one sample, about: keys, values and headers are cut.
pub const SHADOW_SAMPLE_BYTES_MAX: usize = 12 << 10;

/// Partitions of one replay. A range of time that has messages in more is refused.
pub const REPLAY_PARTITIONS_MAX: usize = 10_000;

/// Names that the host tries for a replay that is given none.
pub const REPLAY_NAMES_MAX: u32 = 1_000;

/// Bytes of all messages of one produce call. More is refused: send several calls.
pub const PRODUCE_CALL_BYTES_MAX: usize = 24 << 20;

/// Messages of one produce call. More is refused: send several calls.
pub const PRODUCE_CALL_MESSAGES_MAX: usize = BATCH_MESSAGES_MAX;

/// Bytes of all produce calls on their way to the engine. At the bound a call is refused as busy; try again.
pub const PRODUCE_BYTES_IN_FLIGHT_MAX: usize = 256 << 20;

/// Bytes of one batch handed to a processor that its specification may ask for.
pub const PROCESSOR_BATCH_BYTES_MAX: u32 = 16 << 20;

/// Input topics, and likewise granted topics, of one processor.
pub const PROCESSOR_TOPICS_MAX: usize = 100;

/// Hops that a processor may allow a message.
pub const PROCESSOR_HOPS_MAX: u32 = 1_000;

/// Bytes of all outputs of one answer. More is a malformed answer.
pub const ANSWER_OUTPUT_BYTES_MAX: usize = 24 << 20;

/// Bytes of a failure's class; longer ones are cut.
pub const FAILURE_CLASS_BYTES_MAX: usize = 64;

/// Bytes of a guest's backtrace that a dead letter keeps; longer ones are cut.
pub const BACKTRACE_BYTES_MAX: usize = 4 << 10;

/// Lines of a guest's log that a dead letter keeps: the last ones of the call that failed.
pub const CALL_LOG_LINES_MAX: usize = 10;

/// Bytes of these lines together; the oldest go first, and one that is longer alone is cut.
pub const CALL_LOG_BYTES_MAX: usize = 2 << 10;

/// Dead letters that one listing gives.
pub const DEAD_LETTERS_LISTED_MAX: usize = 10_000;

/// Bytes of their messages, about: a listing ends at whichever bound is met first.
pub const DEAD_LETTERS_LISTED_BYTES_MAX: usize = 64 << 20;

/// Bytes of dead letters that one answer looks at to find those that are asked for. It ends there and says where to go on.
pub const DEAD_LETTERS_SCANNED_BYTES_MAX: usize = 256 << 20;

/// Groups of dead letters, and likewise outcomes of a dry run, that are told apart. What is of others is counted together.
pub const DEAD_LETTER_GROUPS_MAX: usize = 1_000;

/// A message that was sent again so often and died each time is left alone by further redrives of many, unless they say `again`.
pub const REDRIVES_MAX: u32 = 3;

/// How long one call of a paced redrive goes on; then it says where to go on.
pub const REDRIVE_PACED_MS_MAX: u64 = 10_000;

/// How long counting dead letters by group goes on before it says where to go on.
pub const DEAD_LETTER_GROUPS_MS_MAX: u64 = 10_000;

/// How long calls may still take when the host stops, if nothing else is said: `serve` gives them half of its deadline.
pub const STOP_CALLS_MS_MAX: u64 = 5_000;

/// How long a call may still take that nothing can come of any more, because its processor was deleted or its state is emptied, or
/// because it no longer reads the topic. Then it is interrupted: no attempt is spent.
pub const STOPPED_CALL_MS_MAX: u64 = 1_000;

/// How long a call of a revision may still take that another one took over from. Then it is interrupted, no attempt is spent, and
/// its messages are the other revision's.
pub const REPLACED_CALL_MS_MAX: u64 = 5_000;

/// Dry runs of the host at the same time. One more is refused as busy; try again when one of them has ended.
pub const DRY_RUNS_MAX: usize = 4;

/// Dead letters that one dry run tries at the most.
pub const DRY_RUN_LETTERS_MAX: usize = 10_000;

/// How long a dry run goes on before it says where to go on; a call that is under way then is interrupted.
pub const DRY_RUN_MS_MAX: u64 = 30_000;

/// Outputs that a dry run shows; the others are counted.
pub const DRY_RUN_OUTPUTS_MAX: usize = 20;

/// Bytes of the key, and likewise of the value, of an output that a dry run shows; longer ones are cut.
pub const DRY_RUN_OUTPUT_BYTES_MAX: usize = 1 << 10;

/// Entries of an audit trail that one answer gives.
pub const AUDIT_LISTED_MAX: usize = 1_000;

/// Classes of a processor's dead letters that are counted apart since the host started; the others are counted as `other`.
pub const DEAD_LETTER_CLASSES_MAX: usize = 20;

/// Batches of one producer in one partition that are known again when they are repeated, as Kafka has it. An older repeat is
/// refused as out of order.
pub const PRODUCER_BATCHES_KEPT_MAX: usize = 5;

/// Producers that one partition remembers. The one idle for longest goes; if it comes back it is unknown.
pub const PRODUCERS_PER_PARTITION_MAX: usize = 10_000;

/// Producers that all partitions together remember, but that each may remember one. The partition written to forgets its idlest.
pub const PRODUCERS_MAX: usize = 500_000;

/// How long a partition remembers a producer that sends nothing: seven days.
pub const PRODUCER_IDLE_MS: u64 = 7 * 24 * 60 * 60 * 1000;

/// Names of producers that are kept. The one whose producer was started longest ago goes; its next start gets a new id.
pub const PRODUCER_NAMES_MAX: usize = 100_000;

/// Bytes of a producer's name.
pub const PRODUCER_NAME_BYTES_MAX: usize = 249;

/// Idempotency keys that one topic remembers. The oldest goes.
pub const REQUESTS_PER_TOPIC_MAX: usize = 100_000;

/// How long a topic remembers an idempotency key: a day.
pub const REQUEST_AGE_MS_MAX: u64 = 24 * 60 * 60 * 1000;

/// Bytes that one topic's idempotency keys and their answers take in memory, about. The oldest go.
pub const REQUESTS_PER_TOPIC_BYTES_MAX: usize = 64 << 20;

/// Bytes that all topics' idempotency keys take in memory, about. The topic written to forgets its oldest.
pub const REQUESTS_BYTES_MAX: usize = 256 << 20;

/// Bytes of what has to be remembered to answer a request again. A request that needs more is refused: its messages go to too
/// many partitions in turns.
pub const REQUEST_NOTE_BYTES_MAX: usize = 256 << 10;

/// Characters of an idempotency key.
pub const IDEMPOTENCY_KEY_CHARS_MAX: usize = 255;

/// The least bytes of a segment that a topic may ask for; asking for fewer is refused.
pub const SEGMENT_BYTES_SETTING_MIN: u64 = 64 << 10;

/// Bytes of a segment that a topic may ask for; asking for more is refused.
pub const SEGMENT_BYTES_SETTING_MAX: u64 = 4 << 30;

/// The longest time in milliseconds that a topic's settings may say, about a thousand years; more is refused.
pub const SETTING_MS_MAX: u64 = 1_000 * 366 * 24 * 60 * 60 * 1_000;

/// Bytes of a key of a processor's state. A longer one is the component's mistake: a trap.
pub const STATE_KEY_BYTES_MAX: usize = 1 << 10;

/// Bytes of a value of a processor's state. A longer one is the component's mistake: a trap.
pub const STATE_VALUE_BYTES_MAX: usize = 256 << 10;

/// Entries of a processor's state in one partition. At the bound the component is told that it is full, and nothing is written.
pub const STATE_ENTRIES_MAX: usize = 1_000_000_000;

/// Bytes of a processor's state in one partition, about. At the bound the component is told that it is full, and nothing is written.
pub const STATE_BYTES_MAX: usize = 256 << 30;

/// Bytes of memory for what changed in state that stands in files and is not in one yet, unless memory for state is scarce: a quarter of
/// that then. At half of it a checkpoint is ordered, at all of it commits that bring values wait for one.
pub const STATE_CHANGES_BYTES_MAX: usize = 64 << 20;

/// Files that the state of a processor in one partition stands in. There are so many only where merging them does not keep up with what is
/// written: at the bound nothing that brings values is committed until some are merged, and its batch is tried again.
pub const STATE_FILES_MAX: usize = 256;

/// Keys that one call on state may name. More is the component's mistake: a trap.
pub const STATE_CALL_KEYS_MAX: usize = 10_000;

/// Bytes that one call on state answers. A listing ends there; asking for values beyond it is the component's mistake: a trap.
pub const STATE_CALL_BYTES_MAX: usize = 8 << 20;

/// Bytes that a component may write to state while it processes one batch. Beyond them the batch is cut in halves.
pub const STATE_ATTEMPT_BYTES_MAX: usize = 16 << 20;

/// Entries of a processor's state that one answer over HTTP shows. Ask for the next ones after the last.
pub const STATE_LISTED_MAX: usize = 10_000;

/// Bytes of entries that one answer over HTTP shows, as they count for the state. It ends there, with one entry at least.
pub const STATE_LISTED_BYTES_MAX: usize = 4 << 20;

/// Bytes of a message that is delayed, ten for each header included. A larger one is refused: delay a reference to it.
pub const DELAYED_MESSAGE_BYTES_MAX: usize = STATE_VALUE_BYTES_MAX - (1 << 10);

/// Delayed messages of one partition. At the bound a producer is told to come back, and a processor whose output is delayed waits.
pub const DELAYED_MESSAGES_MAX: usize = 1_000_000;

/// Bytes that the delayed messages of one partition take in memory, about. At the bound as at that of their number.
pub const DELAYED_BYTES_MAX: usize = 128 << 20;

/// Bytes that all delayed messages of a host take in memory, unless set otherwise or memory is scarce (`delayed_bytes_max`). At the
/// bound as at that of a partition.
pub const HOST_DELAYED_BYTES_MAX: usize = 1 << 30;

/// Bytes of memory for the state of all processors, unless set otherwise or memory is scarce (`state_bytes_max`). What is more than that
/// stands in files; an engine that keeps all in memory tells a component that its state is full, and nothing is written.
pub const HOST_STATE_BYTES_MAX: usize = 3 << 30;

/// Bytes of delayed messages and state together, unless set otherwise or memory is scarce (`kept_bytes_max`). At the bound as at those
/// of each.
pub const HOST_KEPT_BYTES_MAX: usize = 4 << 30;

/// Partitions of all topics of a host, those of processors included, unless set otherwise or memory is scarce (`partitions_max`). A
/// topic or a processor that would bring more is refused.
pub const HOST_PARTITIONS_MAX: usize = 200_000;

/// Bytes of what all partitions of a host remember of failed attempts, unless memory is scarce. At the bound partitions with parked
/// messages take no new ones, and others one at a time, until some are settled.
pub const HOST_ATTEMPTS_BYTES_MAX: usize = 1 << 30;

/// Bytes of batches that the processors of a host have at hand, with what is answered, unless memory is scarce. A batch for which there
/// is no room waits unread.
pub const HOST_AT_HAND_BYTES_MAX: usize = 8 << 30;

/// How far away a time of delivery may be: ten years. One beyond is refused; it is likely to be in another unit.
pub const DELAY_MS_MAX: u64 = 3_653 * 24 * 60 * 60 * 1_000;

/// How far ahead of the host's clock, or of its own time of delivery, a producer's timestamp may be: a day, which covers time zones.
/// One beyond is refused: ranges by time would begin at it.
pub const TIMESTAMP_AHEAD_MS_MAX: u64 = 24 * 60 * 60 * 1_000;

/// Delayed messages that one answer over HTTP shows. Ask for the next ones after the last.
pub const DELAYED_LISTED_MAX: usize = 1_000;

/// Schedules of one host. One more is refused.
pub const SCHEDULES_MAX: usize = 1_000;

/// Consumers of one topic. One more is refused.
pub const CONSUMERS_MAX: usize = 1_000;

/// Characters of a consumer's name.
pub const CONSUMER_NAME_CHARS_MAX: usize = 64;

/// Bytes of who reads, commits or resets, as it is kept with a consumer; more are cut.
pub const CONSUMER_BY_BYTES_MAX: usize = 64;

/// How long a reader of a consumer may be silent before another one takes over; asking for longer gives this long.
pub const CONSUMER_LEASE_MS_MAX: u32 = 60 * 60 * 1_000;

/// Calls of components that may write to state at once in a host, unless memory is scarce. One more waits.
pub const HOST_STATE_ATTEMPTS_MAX: usize = 512;

/// Bytes of all schedules' messages, ten for each header included. A schedule that would bring more is refused.
pub const SCHEDULES_BYTES_MAX: usize = 16 << 20;

/// Characters of a schedule's name.
pub const SCHEDULE_NAME_CHARS_MAX: usize = 64;

/// Bytes of a schedule's message, ten for each header included. A larger one is refused.
pub const SCHEDULE_MESSAGE_BYTES_MAX: usize = 64 << 10;
