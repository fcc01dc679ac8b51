//! The nouns of Millrace: topic, message, batch, offset, digest. They have no behaviour of their own.
//!
//! No I/O, no async, no clock except the [`clock::Clock`] trait. Every other crate uses this one. A type here is a proof: a
//! [`TopicName`] is a valid name, a [`RecordBatch`] has passed its checksum, so no later code checks again.

#![forbid(unsafe_code)]

pub mod access;
pub mod advice;
pub mod batch;
pub mod bounds;
pub mod calendar;
pub mod clock;
pub mod codes;
pub mod coding;
pub mod columns;
pub mod compression;
pub mod consumer;
pub mod cron;
pub mod damage;
pub mod digest;
pub mod group;
pub mod guests;
pub mod hash;
pub mod identity;
pub mod message;
pub mod name;
pub mod offset;
#[cfg(feature = "openapi")]
mod openapi;
pub mod order;
pub mod password;
pub mod plain;
pub mod principal;
pub mod processor;
pub mod producer;
pub mod progress;
mod quotas;
pub mod route;
pub mod schedule;
pub mod settings;
pub mod steady;
pub mod topic;
pub mod unit;
pub mod varint;

pub use access::{Granted, Resource, ResourceKind, Right, Rights, Role, Rule, RuleError, Target};
pub use advice::{Advice, Advised, Kind};
pub use batch::{BatchBuilder, BatchError, RecordBatch, Stamp};
pub use clock::{Clock, ManualClock, SystemClock, Timestamp, go_by};
pub use codes::Code;
pub use coding::Coding;
pub use columns::{Answer, ColumnBatch};
pub use compression::Compression;
pub use consumer::{Consumer, LeaseId, NotALease, Noted, ReadLease};
pub use cron::{Cron, CronError};
pub use digest::Digest;
pub use group::{GroupKind, GroupName};
pub use guests::GuestLimits;
pub use identity::{Identity, IdentityError, IdentityKind};
pub use message::{Header, Message};
pub use name::{
    ConsumerName, NameError, PrincipalName, ProcessorName, ScheduleName, SecretName, Tenant,
    TokenName, TopicName,
};
pub use offset::{Offset, PartitionId};
pub use password::{NotAVerifier, Password, ScramHash, ScramVerifier};
pub use principal::{Principal, Token, TokenHash};
pub use processor::{
    Change, ChangeKind, Processor, ProcessorSpec, Record, RedriveDue, Rejections, Replay,
    ReplayRange, Resumes, Revision, Stopped, TopicStart, Trial,
};
pub use producer::{Numbering, ProducerId};
pub use progress::{Attempt, GivenUp, Parked, Progress, ProgressChange};
pub use quotas::{Quota, Quotas};
pub use route::{
    Route, RouteBreaker, RouteCanary, RoutePath, RoutePathError, RouteRevision, RouteSpec,
};
pub use schedule::{Schedule, ScheduleRun, ScheduleSpec};
pub use settings::{SettingError, SettingsPatch, TopicSettings};
pub use steady::{SteadyClock, Step};
pub use topic::{Durability, Topic, TopicId, TopicPartition, TopicSpec};
