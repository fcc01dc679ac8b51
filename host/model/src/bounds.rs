//! Every bound of the system, by name and unit, with what happens at the bound.

/// A message's key, value and headers together. A larger one is refused before it is stored.
pub const MESSAGE_BYTES_MAX: usize = 8 << 20;

/// A record batch as stored, header included. A larger one is refused before it is read into memory.
pub const BATCH_BYTES_MAX: usize = 32 << 20;

/// The records of a compressed batch, decompressed. A batch with more is not read: it is treated as malformed.
pub const BATCH_INFLATED_BYTES_MAX: usize = 64 << 20;

/// Messages in one record batch. A batch that claims more is malformed.
pub const BATCH_MESSAGES_MAX: usize = 100_000;

/// Headers of one message. A message with more is refused.
pub const MESSAGE_HEADERS_MAX: usize = 1_024;

/// Headers of one stored record: a message's own, and those that the host adds (a dead letter's evidence). A record with more is
/// malformed.
pub const RECORD_HEADERS_MAX: usize = MESSAGE_HEADERS_MAX + 32;

/// Characters of a topic's name, as in Kafka.
pub const TOPIC_NAME_CHARS_MAX: usize = 249;

/// Characters of a processor's name; short enough to leave a topic's name 180 characters, because
/// `<topic>.<processor>.dlq` must be a topic name.
pub const PROCESSOR_NAME_CHARS_MAX: usize = 64;

/// Keys of a processor's configuration.
pub const CONFIG_KEYS_MAX: usize = 100;

/// Characters of such a key.
pub const CONFIG_KEY_CHARS_MAX: usize = 100;

/// Bytes of a processor's configuration, keys and values together.
pub const CONFIG_BYTES_MAX: usize = 64 << 10;

/// Characters of a secret's name.
pub const SECRET_NAME_CHARS_MAX: usize = 64;

/// Partitions of one topic. Creating a topic with more is refused.
pub const TOPIC_PARTITIONS_MAX: u32 = 10_000;

/// Parked messages of a group in one partition. At the bound the partition waits; nothing is dropped.
pub const PARKED_MESSAGES_MAX: usize = 10_000;

/// The longest wait of a message for its next attempt: thirty days. A longer delay from a component or an error handler is shortened to
/// it; a specification with a longer one is refused.
pub const RETRY_DELAY_MS_MAX: u64 = 30 * 24 * 60 * 60 * 1_000;

/// The shortest delay before a retry, whatever the specification, a component or an error handler says: a message that fails at once
/// would be tried thousands of times a second, with a commit each time.
pub const RETRY_DELAY_MS_MIN: u64 = 10;

/// Parked messages in one HTTP answer. Request the next ones after the last.
pub const PARKED_LISTED_MAX: usize = 1_000;

/// Bytes of a parked message's key in an answer; longer keys are cut.
pub const PARKED_KEY_BYTES_MAX: usize = 1 << 10;

/// How long a request to try or give up a parked message waits for its worker to end its batch. After that nothing is done.
pub const PARKED_ORDER_WAIT_MS_MAX: u64 = 10_000;

/// Attempts of a parked message that are recorded in detail; older ones are only counted.
pub const ATTEMPT_LOG_MAX: usize = 8;

/// Bytes of a recorded reason of an attempt.
pub const ATTEMPT_REASON_BYTES_MAX: usize = 512;

/// Bytes of a recorded reason once the records of all partitions of a host have reached their bound; earlier attempts are then only
/// counted.
pub const ATTEMPT_SHORT_REASON_BYTES_MAX: usize = 64;

/// Revisions that a processor or a route keeps for rollback; those that never processed a message, or
/// that no rollback returns to by itself, are removed first, then the oldest.
pub const REVISIONS_KEPT_MAX: usize = 20;

/// Changes in the history of a processor or a route; the oldest are removed first.
pub const CHANGES_KEPT_MAX: usize = 100;

/// Bytes of a change's text; longer ones are cut.
pub const CHANGE_TEXT_BYTES_MAX: usize = 512;

/// Approximate number of messages of one partition that wait for their side of a canary. At the bound a batch ends at the next message
/// of the other side.
pub const CANARY_ASIDE_MESSAGES_MAX: usize = 1_000;

/// Settled batches of one partition queued for a shadow. When the queue is full, a batch is skipped and counted.
pub const SHADOW_QUEUE_BATCHES_MAX: usize = 4;

/// Kinds of differing outcomes that a shadow's report counts separately; further ones are counted together.
pub const SHADOW_KINDS_MAX: usize = 64;

/// Messages that a shadow's report keeps as samples: the first ones.
pub const SHADOW_SAMPLES_MAX: usize = 100;

/// Samples of one kind of difference.
pub const SHADOW_SAMPLES_PER_KIND_MAX: usize = 20;

/// Approximate bytes of one sample: keys, values and headers are cut.
pub const SHADOW_SAMPLE_BYTES_MAX: usize = 12 << 10;

/// Partitions of one replay. A time range with messages in more is refused.
pub const REPLAY_PARTITIONS_MAX: usize = 10_000;

/// Names that the host tries for a replay without a name.
pub const REPLAY_NAMES_MAX: u32 = 1_000;

/// Bytes of all messages in one produce call. A larger call is refused: split it.
pub const PRODUCE_CALL_BYTES_MAX: usize = 24 << 20;

/// Messages in one produce call. A larger call is refused: split it.
pub const PRODUCE_CALL_MESSAGES_MAX: usize = BATCH_MESSAGES_MAX;

/// Bytes of all produce calls on their way to the engine. At the bound a call is refused as busy; try again.
pub const PRODUCE_BYTES_IN_FLIGHT_MAX: usize = 256 << 20;

/// Partitions that one subscription within the broker reads. A further one is refused: open another
/// subscription.
pub const SUBSCRIPTION_PARTITIONS_MAX: usize = 100_000;

/// The largest batch size, in bytes, that a processor's specification may request.
pub const PROCESSOR_BATCH_BYTES_MAX: u32 = 16 << 20;

/// Input topics, and likewise granted topics, of one processor.
pub const PROCESSOR_TOPICS_MAX: usize = 100;

/// Secrets that one processor or route may be granted.
pub const GRANTED_SECRETS_MAX: usize = 100;

/// Servers that one processor or route may be granted requests to.
pub const GRANTED_SERVERS_MAX: usize = 100;

/// Processors whose state one route may be granted to read.
pub const GRANTED_VIEWS_MAX: usize = 100;

/// The largest `hops_max` that a processor may have.
pub const PROCESSOR_HOPS_MAX: u32 = 1_000;

/// Bytes of all outputs of one answer. A larger answer is malformed.
pub const ANSWER_OUTPUT_BYTES_MAX: usize = 24 << 20;

/// Bytes of a failure's class; longer ones are cut.
pub const FAILURE_CLASS_BYTES_MAX: usize = 64;

/// Bytes of a guest's backtrace in a dead letter; longer ones are cut.
pub const BACKTRACE_BYTES_MAX: usize = 4 << 10;

/// Lines of a guest's log in a dead letter: the last ones of the failed call.
pub const CALL_LOG_LINES_MAX: usize = 10;

/// Bytes of these lines together; the oldest are dropped first, and a single longer line is cut.
pub const CALL_LOG_BYTES_MAX: usize = 2 << 10;

/// Dead letters in one list, within the broker.
pub const DEAD_LETTERS_LISTED_MAX: usize = 10_000;

/// Approximate bytes of their messages: a list ends at whichever bound is reached first.
pub const DEAD_LETTERS_LISTED_BYTES_MAX: usize = 64 << 20;

/// Bytes of dead letters that one request reads to find matching ones. Then it ends and says where to continue.
pub const DEAD_LETTERS_SCANNED_BYTES_MAX: usize = 256 << 20;

/// Groups of dead letters, and likewise outcomes of a dry run, that are distinguished. All others are counted together.
pub const DEAD_LETTER_GROUPS_MAX: usize = 1_000;

/// A message that was redriven this often and failed each time is skipped by redrives with a filter, unless they set `again`.
pub const REDRIVES_MAX: u32 = 3;

/// Duration of one call of a paced redrive; then it says where to continue.
pub const REDRIVE_PACED_MS_MAX: u64 = 10_000;

/// Duration of counting dead letters by group; then it says where to continue.
pub const DEAD_LETTER_GROUPS_MS_MAX: u64 = 10_000;

/// How long calls may take when the host stops, by default: `serve` gives them half of its deadline.
pub const STOP_CALLS_MS_MAX: u64 = 5_000;

/// How long a call may take whose result is no longer useful, because its processor was deleted, its state is emptied, or it no longer
/// reads the topic. Then it is interrupted, without spending attempts.
pub const STOPPED_CALL_MS_MAX: u64 = 1_000;

/// How long a call may take after another revision took over. Then it is interrupted without spending attempts, and its messages go to
/// the other revision.
pub const REPLACED_CALL_MS_MAX: u64 = 5_000;

/// Concurrent dry runs on a host. Another one is refused as busy; try again when one has ended.
pub const DRY_RUNS_MAX: usize = 4;

/// Dead letters in one dry run.
pub const DRY_RUN_LETTERS_MAX: usize = 10_000;

/// Duration of a dry run; then it says where to continue, and a running call is interrupted.
pub const DRY_RUN_MS_MAX: u64 = 30_000;

/// Outputs that a dry run shows; the others are counted.
pub const DRY_RUN_OUTPUTS_MAX: usize = 20;

/// Bytes of the key, and likewise of the value, of an output shown by a dry run; longer ones are cut.
pub const DRY_RUN_OUTPUT_BYTES_MAX: usize = 1 << 10;

/// Entries of an audit trail, and records of the audit log, in one answer.
pub const AUDIT_LISTED_MAX: usize = 1_000;

/// Classes of a processor's dead letters that are counted separately since the start of the host; all others are counted as `other`.
pub const DEAD_LETTER_CLASSES_MAX: usize = 20;

/// Batches of one producer in one partition that are recognised when repeated, as in Kafka. An older repeat is refused as out of order.
pub const PRODUCER_BATCHES_KEPT_MAX: usize = 5;

/// Producers that one partition remembers. The one idle longest is forgotten; if it returns it is unknown.
pub const PRODUCERS_PER_PARTITION_MAX: usize = 10_000;

/// Producers that all partitions together remember, but each partition always remembers one. The partition being written to forgets its
/// idlest one.
pub const PRODUCERS_MAX: usize = 500_000;

/// How long a partition remembers an idle producer: seven days.
pub const PRODUCER_IDLE_MS: u64 = 7 * 24 * 60 * 60 * 1000;

/// Names of producers that are kept. The one started longest ago is forgotten; its next start gets a new id.
pub const PRODUCER_NAMES_MAX: usize = 100_000;

/// Bytes of a producer's name.
pub const PRODUCER_NAME_BYTES_MAX: usize = 249;

/// Idempotency keys that one topic remembers. The oldest is forgotten.
pub const REQUESTS_PER_TOPIC_MAX: usize = 100_000;

/// How long a topic remembers an idempotency key: one day.
pub const REQUEST_AGE_MS_MAX: u64 = 24 * 60 * 60 * 1000;

/// Approximate memory of one topic's idempotency keys and their answers. The oldest is forgotten.
pub const REQUESTS_PER_TOPIC_BYTES_MAX: usize = 64 << 20;

/// Approximate memory of all topics' idempotency keys. The topic being written to forgets its oldest.
pub const REQUESTS_BYTES_MAX: usize = 256 << 20;

/// Bytes that must be stored to answer a request again. A request that needs more is refused: its messages alternate between too many
/// partitions.
pub const REQUEST_NOTE_BYTES_MAX: usize = 256 << 10;

/// Characters of an idempotency key.
pub const IDEMPOTENCY_KEY_CHARS_MAX: usize = 255;

/// The smallest segment size, in bytes, that a topic may have; a smaller one is refused.
pub const SEGMENT_BYTES_SETTING_MIN: u64 = 64 << 10;

/// The largest segment size, in bytes, that a topic may have; a larger one is refused.
pub const SEGMENT_BYTES_SETTING_MAX: u64 = 4 << 30;

/// The longest time in a topic's settings, in milliseconds: about a thousand years. A longer one is refused.
pub const SETTING_MS_MAX: u64 = 1_000 * 366 * 24 * 60 * 60 * 1_000;

/// Bytes of a key in a processor's state. A longer one is the component's error and traps.
pub const STATE_KEY_BYTES_MAX: usize = 1 << 10;

/// Bytes of a value in a processor's state. A longer one is the component's error and traps.
pub const STATE_VALUE_BYTES_MAX: usize = 256 << 10;

/// Entries of a processor's state in one partition. At the bound the component gets the answer `full`, and nothing is written.
pub const STATE_ENTRIES_MAX: usize = 1_000_000_000;

/// Approximate bytes of a processor's state in one partition. At the bound the component gets the answer `full`, and nothing is
/// written.
pub const STATE_BYTES_MAX: usize = 256 << 30;

/// Memory for changes of state in files that are not in a file yet, in bytes; a quarter of the memory for state if that is less. At
/// half of it a checkpoint is started; at all of it commits that add values wait for one.
pub const STATE_CHANGES_BYTES_MAX: usize = 64 << 20;

/// Files of a processor's state in one partition. This many exist only if merging does not keep up with writing: at the bound, commits
/// that add values are refused until some are merged, and their batches are tried again.
pub const STATE_FILES_MAX: usize = 256;

/// Keys in one call on state. The call traps if there are more; this counts as the component's
/// error.
pub const STATE_CALL_KEYS_MAX: usize = 10_000;

/// Bytes in the answer of one call on state. A listing ends there; requesting values beyond it is the component's error and traps.
pub const STATE_CALL_BYTES_MAX: usize = 8 << 20;

/// Bytes that a component may write to state during one batch. Beyond that the batch is split in halves.
pub const STATE_ATTEMPT_BYTES_MAX: usize = 16 << 20;

/// Entries of a processor's state in one HTTP answer. Request the next ones after the last.
pub const STATE_LISTED_MAX: usize = 10_000;

/// Bytes of entries in one HTTP answer, as they count for the state. It ends there, with at least one entry.
pub const STATE_LISTED_BYTES_MAX: usize = 4 << 20;

/// Bytes of a delayed message, counting ten for each header. A larger one is refused: delay a reference to it.
pub const DELAYED_MESSAGE_BYTES_MAX: usize = STATE_VALUE_BYTES_MAX - (1 << 10);

/// Delayed messages of one partition. At the bound a producer is asked to try later, and a processor with delayed outputs waits.
pub const DELAYED_MESSAGES_MAX: usize = 1_000_000;

/// Approximate memory of the delayed messages of one partition. The same happens as at the bound of their number.
pub const DELAYED_BYTES_MAX: usize = 128 << 20;

/// Memory of all delayed messages of a host in bytes, unless configured otherwise or memory is scarce (`delayed_bytes_max`). The same
/// happens as at the bound of a partition.
pub const HOST_DELAYED_BYTES_MAX: usize = 1 << 30;

/// Memory for the state of all processors in bytes, unless configured otherwise or memory is scarce (`state_bytes_max`). Beyond it
/// state moves to files; with an engine that keeps everything in memory, a component gets the answer `full` and nothing is written.
pub const HOST_STATE_BYTES_MAX: usize = 3 << 30;

/// Memory of delayed messages and state together in bytes, unless configured otherwise or memory is scarce (`kept_bytes_max`). The same
/// happens as at their own bounds.
pub const HOST_KEPT_BYTES_MAX: usize = 4 << 30;

/// Partitions of all topics of a host, including those of processors, unless configured otherwise or memory is scarce
/// (`partitions_max`). A topic or a processor that would exceed it is refused.
pub const HOST_PARTITIONS_MAX: usize = 200_000;

/// Bytes of records of failed attempts over all partitions of a host, unless memory is scarce. At the bound partitions with parked
/// messages take no new ones, and others one at a time, until some are settled.
pub const HOST_ATTEMPTS_BYTES_MAX: usize = 1 << 30;

/// Bytes of batches held by the processors of a host, including their answers, unless memory is scarce. A batch without room waits
/// unread.
pub const HOST_AT_HAND_BYTES_MAX: usize = 8 << 30;

/// How far in the future a time of delivery may be: ten years. A later one is refused, because it is probably in another unit.
pub const DELAY_MS_MAX: u64 = 3_653 * 24 * 60 * 60 * 1_000;

/// How far ahead of the host's clock, or of its own time of delivery, a producer's timestamp may be: a day, which covers time zones. A
/// later one is refused, because it would distort time ranges.
pub const TIMESTAMP_AHEAD_MS_MAX: u64 = 24 * 60 * 60 * 1_000;

/// Delayed messages in one HTTP answer. Request the next ones after the last.
pub const DELAYED_LISTED_MAX: usize = 1_000;

/// Routes of one host. Another one is refused.
pub const ROUTES_MAX: usize = 1_000;

/// Characters of a route's path.
pub const ROUTE_PATH_CHARS_MAX: usize = 200;

/// Routes whose components one host loads at the same time, after a start or after other hosts' changes. Further ones wait for one of
/// these to end.
pub const ROUTE_LOADS_MAX: usize = 4;

/// Requests over which a route's canary is judged, at most (`breaker.window_requests`).
pub const ROUTE_WINDOW_REQUESTS_MAX: u64 = 1_000;

/// Requests that one route answers at a time on one host, including those that wait for an instance. A further one gets 503.
pub const ROUTE_REQUESTS_MAX: usize = 64;

/// Keys of a processor's state that the component of a route reads at once. More are refused: ask in several calls.
pub const VIEW_KEYS_MAX: usize = 1_000;

/// Schedules of one host. Another one is refused.
pub const SCHEDULES_MAX: usize = 1_000;

/// Consumers of one topic. Another one is refused.
pub const CONSUMERS_MAX: usize = 1_000;

/// Bytes of a consumer group's name, as stored. A longer one is refused.
pub const GROUP_NAME_BYTES_MAX: usize = 256;

/// Positions that a consumer group commits at once. More are refused: commit them in several calls.
pub const GROUP_COMMIT_POSITIONS_MAX: usize = 10_000;

/// Bytes of the text that a reader stores with a position of its group. A longer one is refused.
pub const POSITION_NOTE_BYTES_MAX: usize = 4_096;

/// Characters of a consumer's name.
pub const CONSUMER_NAME_CHARS_MAX: usize = 64;

/// Characters of a tenant's name.
pub const TENANT_NAME_CHARS_MAX: usize = 63;

/// Characters of a principal's name.
pub const PRINCIPAL_NAME_CHARS_MAX: usize = 64;

/// Characters of the name that a principal's token has.
pub const TOKEN_NAME_CHARS_MAX: usize = 64;

/// Principals of a host. Another one is refused.
pub const PRINCIPALS_MAX: usize = 10_000;

/// Bytes of all principals' entries. A change that would exceed it is refused.
pub const PRINCIPALS_BYTES_MAX: usize = 16 << 20;

/// Rules of one principal, and of one token. More are refused.
pub const PRINCIPAL_RULES_MAX: usize = 64;

/// Tokens of one principal, expired ones among them. Another one is refused.
pub const PRINCIPAL_TOKENS_MAX: usize = 16;

/// Sources of failed attempts to prove who one is that are told apart. All others count as one.
pub const ATTEMPTS_SOURCES_MAX: usize = 4096;

/// How long a refusal is held back at most, after many failed attempts from the same source.
pub const REFUSAL_DELAY_MS_MAX: u64 = 1_000;

/// Records of the audit log that wait to be written. The next one waits for room.
pub const AUDIT_QUEUED_MAX: usize = 1024;

/// Refusals of one second that the audit log tells apart. Of others it has the number for each principal and address, for as many of
/// these; all further ones are one record.
pub const AUDIT_REFUSALS_MAX: usize = 64;

/// How long an answer waits for its record in the audit log while the store takes none. Then it is sent, and the record waits on.
pub const AUDIT_WAIT_MS_MAX: u64 = 5_000;

/// Records of the audit log that one request looks at. It says where to continue.
pub const AUDIT_SCANNED_MAX: u64 = 10_000;

/// For how long the audit log keeps records at least, whatever its topic is set to: a day.
pub const AUDIT_KEPT_MS_MIN: u64 = 24 * 60 * 60 * 1_000;

/// For how long the audit log keeps records, unless its topic is changed: 90 days.
pub const AUDIT_KEPT_MS: u64 = 90 * 24 * 60 * 60 * 1_000;

/// Characters of a password that somebody has chosen, at least. A shorter one is refused.
pub const PASSWORD_CHARS_LEAST: usize = 12;

/// Characters of a password. A longer one is refused.
pub const PASSWORD_CHARS_MAX: usize = 128;
/// Identities of one principal. Another one is refused.
pub const PRINCIPAL_IDENTITIES_MAX: usize = 16;

/// Bytes of an identity after its kind: as many as a SPIFFE ID may have.
pub const IDENTITY_BYTES_MAX: usize = 2_048;

/// Characters of a thing's name in a rule: as many as the longest name has.
pub const RESOURCE_NAME_CHARS_MAX: usize = TOPIC_NAME_CHARS_MAX;

/// Bytes of a caller's name that is stored with a consumer; longer ones are cut.
pub const CONSUMER_BY_BYTES_MAX: usize = 64;

/// The longest lease of a consumer's reader; a longer one is shortened to it.
pub const CONSUMER_LEASE_MS_MAX: u32 = 60 * 60 * 1_000;

/// Concurrent calls of components that may write to state in a host, unless memory is scarce. Another one waits.
pub const HOST_STATE_ATTEMPTS_MAX: usize = 512;

/// Bytes of all schedules' messages, counting ten for each header. A schedule that would exceed it is refused.
pub const SCHEDULES_BYTES_MAX: usize = 16 << 20;

/// Characters of a schedule's name.
pub const SCHEDULE_NAME_CHARS_MAX: usize = 64;

/// Bytes of a schedule's message, counting ten for each header. A larger one is refused.
pub const SCHEDULE_MESSAGE_BYTES_MAX: usize = 64 << 10;
