//! What the small types are in the OpenAPI document: the number or the text that they are in JSON. The host shows it in place of a
//! reference, so that none of them is a component of the document.

use utoipa::openapi::{RefOr, Schema};
use utoipa::{PartialSchema, ToSchema};

use crate::access::Rule;
use crate::clock::Timestamp;
use crate::compression::Compression;
use crate::digest::Digest;
use crate::identity::Identity;
use crate::name::{
    ConsumerName, PrincipalName, ProcessorName, ScheduleName, SecretName, TokenName, TopicName,
};
use crate::offset::{Offset, PartitionId};
use crate::processor::{ChangeKind, Order, Origin};
use crate::topic::{Durability, TopicId};

macro_rules! shown_as {
    ($json:ty: $($noun:ty),+) => {
        $(
            impl PartialSchema for $noun {
                fn schema() -> RefOr<Schema> {
                    <$json>::schema()
                }
            }

            impl ToSchema for $noun {}
        )+
    };
}

shown_as!(u32: PartitionId);
shown_as!(u64: Offset, Timestamp, TopicId);
shown_as!(String: ConsumerName, ProcessorName, ScheduleName, SecretName, TopicName, Digest);
shown_as!(String: Identity, PrincipalName, Rule, TokenName);
shown_as!(String: ChangeKind, Compression, Durability, Order, Origin);
