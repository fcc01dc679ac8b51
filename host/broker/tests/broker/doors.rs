//! Topics, produce, fetch and modules: what is refused, and what is reported.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use millrace_broker::{
    CallError, FetchError, FetchRequest, ModuleError, NewMessage, NewTopic, ProduceError,
    TopicCreateError,
};
use millrace_engine::{Append, Transaction};
use millrace_model::bounds::{MESSAGE_BYTES_MAX, TIMESTAMP_AHEAD_MS_MAX};
use millrace_model::{Clock, Durability, Header, Offset, PartitionId, SystemClock, Timestamp};

use crate::rig::{
    Export, Rig, Say, assign, message, per_message, processor, spec, text, topic, unreadable_after,
};

fn new_topic(name: &str) -> NewTopic {
    NewTopic {
        name: topic(name),
        partitions: 2,
        durability: Durability::Os,
        partitioner: None,
        settings: Default::default(),
    }
}

fn fetch(from: u64, messages_max: usize, wait_ms: u64) -> FetchRequest {
    FetchRequest {
        topic: topic("in"),
        partition: PartitionId(0),
        from: Offset(from),
        messages_max,
        bytes_max: 1 << 20,
        wait: Duration::from_millis(wait_ms),
    }
}

#[tokio::test]
async fn topic_names_of_processors_and_unfit_partitioners_are_refused() {
    let rig = Rig::start(1).await;
    for name in ["a.dlq", "a.p.redrive", "a.p.audit"] {
        let refused = rig.session.catalogue().create_topic(new_topic(name)).await;
        assert!(matches!(refused, Err(TopicCreateError::Reserved { .. })));
    }
    let exists = rig.session.catalogue().create_topic(new_topic("in")).await;
    assert!(matches!(exists, Err(TopicCreateError::Topic(_))));
    let module = rig.upload_handler("m", per_message(|_, _| Say::Ack)).await;
    let mut new = new_topic("fresh");
    new.partitioner = Some(module);
    let refused = rig.session.catalogue().create_topic(new.clone()).await;
    assert!(matches!(
        refused,
        Err(TopicCreateError::WrongInterface { .. })
    ));
    new.partitioner = Some(crate::rig::digest("nobody"));
    let refused = rig.session.catalogue().create_topic(new).await;
    assert!(matches!(refused, Err(TopicCreateError::UnknownModule(_))));
    assert!(rig.session.catalogue().topic(&topic("fresh")).is_none());
}

#[tokio::test]
async fn a_call_with_one_bad_message_stores_none() {
    let rig = Rig::deployed(2, |_| (), |_, _| Say::Ack).await;
    let send = async |to: &str, bad: NewMessage| {
        let messages = vec![message("k", "good"), bad];
        rig.session
            .messages()
            .produce(&topic(to), messages)
            .await
            .unwrap_err()
    };
    let mut large = message("k", "");
    large.message.value = Some(vec![0; MESSAGE_BYTES_MAX].into());
    let refused = send("in", large).await;
    assert!(
        matches!(refused, ProduceError::TooLarge { index: 1, .. }),
        "{refused}"
    );
    let mut reserved = message("k", "v");
    reserved.message.headers.push(Header {
        name: "millrace-attempts".into(),
        value: None,
    });
    let refused = send("in", reserved).await;
    assert!(
        matches!(refused, ProduceError::ReservedHeader { index: 1, .. }),
        "{refused}"
    );
    let mut elsewhere = message("k", "v");
    elsewhere.partition = Some(PartitionId(2));
    let refused = send("in", elsewhere).await;
    assert!(
        matches!(refused, ProduceError::UnknownPartition { .. }),
        "{refused}"
    );
    let mut many = message("k", "v");
    let header = many.message.headers[0].clone();
    many.message.headers = vec![header; 2_000];
    let refused = send("in", many).await;
    assert!(
        matches!(refused, ProduceError::TooManyHeaders { .. }),
        "{refused}"
    );
    let refused = send("nowhere", message("k", "v")).await;
    assert!(
        matches!(refused, ProduceError::UnknownTopic(_)),
        "{refused}"
    );
    for owned in ["in.p.dlq", "in.p.redrive"] {
        let refused = send(owned, message("k", "v")).await;
        assert!(matches!(refused, ProduceError::Owned { .. }), "{refused}");
    }
    let refused = rig
        .session
        .messages()
        .produce(&topic("in"), Vec::new())
        .await;
    assert!(matches!(refused, Err(ProduceError::NothingToSend)));
    let large = NewMessage {
        message: millrace_model::Message {
            value: Some(vec![0; 7 << 20].into()),
            ..Default::default()
        },
        partition: None,
        deliver_at: None,
    };
    let refused = rig
        .session
        .messages()
        .produce(&topic("in"), vec![large; 4])
        .await;
    assert!(matches!(refused, Err(ProduceError::CallTooLarge { .. })));
    assert!(rig.values("in").await.is_empty());
}

#[tokio::test]
async fn messages_of_a_key_share_a_partition_in_order_and_explicit_partitions_are_kept() {
    let rig = Rig::start(4).await;
    let mut messages: Vec<NewMessage> = (0..40)
        .map(|n| message(&format!("k{}", n % 5), &n.to_string()))
        .collect();
    messages[7].partition = Some(PartitionId(3));
    let placed = rig
        .session
        .messages()
        .produce(&topic("in"), messages.clone())
        .await
        .unwrap();
    assert_eq!(placed[7].partition(), PartitionId(3));
    for (first, second) in [(0, 5), (5, 10), (1, 6)] {
        assert_eq!(placed[first].partition(), placed[second].partition());
        assert!(placed[first].offset() < placed[second].offset());
    }
    for (new, place) in messages.iter().zip(placed) {
        let mut request = fetch(place.offset().unwrap().0, 1, 0);
        request.partition = place.partition();
        let fetched = rig.session.messages().fetch(request).await.unwrap();
        assert_eq!(fetched.messages[0].message, new.message);
    }
}

#[tokio::test]
async fn a_topics_partitioner_component_places_messages_and_its_nonsense_is_refused() {
    let rig = Rig::start(1).await;
    let handler = assign(|partitions, messages| {
        let place = |m| match text(messages.value(m)).as_str() {
            "down" => Err(CallError::Unavailable("no map".to_owned())),
            "beyond" => Ok(partitions),
            value => Ok(value.len() as u32 % partitions),
        };
        (0..messages.len()).map(place).collect()
    });
    let mut new = new_topic("placed");
    new.partitioner = Some(
        rig.upload("len", Export::Partitioner(Arc::new(handler)))
            .await,
    );
    rig.session.catalogue().create_topic(new).await.unwrap();
    let send = async |values: [&str; 2]| {
        let mut messages: Vec<_> = values.iter().map(|v| message("same", v)).collect();
        messages.push(NewMessage {
            partition: Some(PartitionId(0)),
            ..message("same", "fixed")
        });
        rig.session
            .messages()
            .produce(&topic("placed"), messages)
            .await
    };
    let placed = send(["1", "22"]).await.unwrap();
    let partitions: Vec<u32> = placed.iter().map(|p| p.partition().0).collect();
    assert_eq!(partitions, [1, 0, 0]);
    for bad in ["down", "beyond"] {
        let refused = send(["1", bad]).await;
        assert!(
            matches!(refused, Err(ProduceError::Partitioner(_))),
            "{bad}"
        );
    }
    assert_eq!(rig.values("placed").await.len(), 3);
}

#[tokio::test]
async fn a_message_without_a_timestamp_is_stamped_on_arrival() {
    let rig = Rig::start(1).await;
    let mut unstamped = message("k", "v");
    unstamped.message.timestamp = Default::default();
    rig.session
        .messages()
        .produce(&topic("in"), vec![unstamped])
        .await
        .unwrap();
    assert!(rig.messages("in").await[0].timestamp.0 > 1_600_000_000_000);
}

#[tokio::test]
async fn a_fetch_is_clamped_bounded_and_says_where_to_go_on() {
    let rig = Rig::start(1).await;
    let values: Vec<String> = (0..10).map(|n| n.to_string()).collect();
    for value in &values {
        rig.produce(&[("k", value)]).await;
    }
    let mut next = 0;
    let mut read = Vec::new();
    while next < 10 {
        let fetched = rig
            .session
            .messages()
            .fetch(fetch(next, 3, 0))
            .await
            .unwrap();
        assert!(fetched.messages.len() <= 3);
        next = fetched.next.0;
        read.extend(
            fetched
                .messages
                .iter()
                .map(|m| text(m.message.value.as_deref())),
        );
    }
    assert_eq!(read, values);
    let past = rig.session.messages().fetch(fetch(99, 3, 0)).await.unwrap();
    assert!(past.messages.is_empty());
    assert_eq!((past.next, past.ends.end), (Offset(10), Offset(10)));
    let mut narrow = fetch(0, 10, 0);
    narrow.bytes_max = 1;
    let fetched = rig.session.messages().fetch(narrow).await.unwrap();
    assert_eq!((fetched.messages.len(), fetched.next), (1, Offset(1)));
    let mut unknown = fetch(0, 1, 0);
    unknown.partition = PartitionId(5);
    let refused = rig.session.messages().fetch(unknown).await;
    assert!(matches!(refused, Err(FetchError::UnknownPartition { .. })));
}

#[tokio::test]
async fn a_fetch_waits_for_the_next_message_and_no_longer_than_asked() {
    let rig = Arc::new(Rig::start(1).await);
    let waiting = Arc::clone(&rig);
    let waiter =
        tokio::spawn(async move { waiting.session.messages().fetch(fetch(0, 10, 60_000)).await });
    tokio::task::yield_now().await;
    rig.produce(&[("k", "1")]).await;
    let fetched = waiter.await.unwrap().unwrap();
    assert_eq!(fetched.messages.len(), 1);
    let fetched = rig.session.messages().fetch(fetch(1, 10, 5)).await.unwrap();
    assert!(fetched.messages.is_empty());
}

#[tokio::test]
async fn modules_are_found_by_digest_prefix_and_tag_and_kept_while_in_use() {
    let rig = Rig::start(1).await;
    let handler = || Export::Processor(Arc::new(per_message(|_, _| Say::Ack)));
    rig.modules.know("one", handler());
    rig.modules.know("two", handler());
    let upload = async |name: &'static str, tag: &str| {
        let bytes = Bytes::from_static(name.as_bytes());
        rig.session
            .catalogue()
            .upload_module(bytes, Some(tag.to_owned()))
            .await
    };
    let one = upload("one", "one@1.0.0").await.unwrap();
    let two = upload("two", "two@1.0.0").await.unwrap();
    assert_eq!(upload("one", "one@1.0.0").await.unwrap(), one);
    assert!(matches!(
        upload("two", "one@1.0.0").await,
        Err(ModuleError::TagTaken { .. })
    ));
    let tagged = upload("two", "two@2.0.0").await.unwrap();
    assert_eq!(upload("two", "two@2.0.0").await.unwrap(), tagged);
    assert_eq!(tagged.facts, two.facts);
    assert!(tagged.tags().eq(["two@1.0.0", "two@2.0.0"]));
    assert!(matches!(
        upload("one", "two@2.0.0").await,
        Err(ModuleError::TagTaken { .. })
    ));
    for tag in ["two@1.0.0", "two@2.0.0"] {
        assert_eq!(
            rig.session.catalogue().find_module(tag),
            Some(tagged.clone())
        );
    }
    assert!(matches!(
        upload("two", "no tag").await,
        Err(ModuleError::Tag(_))
    ));
    assert!(matches!(
        upload("three", "a@1").await,
        Err(ModuleError::Admit(_))
    ));
    assert_eq!(rig.session.catalogue().modules().len(), 2);
    let digest = one.facts.digest;
    assert_eq!(
        rig.session.catalogue().find_module("one@1.0.0"),
        Some(one.clone())
    );
    assert_eq!(
        rig.session.catalogue().find_module(&digest.to_string()),
        Some(one.clone())
    );
    assert_eq!(
        rig.session
            .catalogue()
            .find_module(&digest.to_string()[..6]),
        Some(one)
    );
    assert_eq!(
        rig.session
            .catalogue()
            .find_module(&digest.to_string()[..5]),
        None
    );
    rig.session
        .processors()
        .deploy(&processor("p"), spec(digest))
        .await
        .unwrap();
    let refused = rig.session.catalogue().delete_module(digest).await;
    assert!(matches!(refused, Err(ModuleError::InUse { .. })));
    rig.session
        .catalogue()
        .delete_module(two.facts.digest)
        .await
        .unwrap();
    let gone = rig
        .session
        .catalogue()
        .delete_module(two.facts.digest)
        .await;
    assert!(matches!(gone, Err(ModuleError::Unknown(_))));
}

#[tokio::test]
async fn timestamps_far_ahead_or_in_another_unit_are_refused_and_nothing_of_their_call_is_stored() {
    let rig = Rig::start(1).await;
    let stamped = |timestamp| {
        let mut new = message("k", "v");
        new.message.timestamp = Timestamp(timestamp);
        new
    };
    let now = SystemClock::new().wall().0;
    let day = TIMESTAMP_AHEAD_MS_MAX;
    let ahead = [
        now + day + 60_000,
        i64::MAX as u64,
        i64::MAX as u64 + 2,
        u64::MAX,
    ];
    for timestamp in ahead {
        let call = [5, timestamp].map(stamped).to_vec();
        let refused = rig.session.messages().produce(&topic("in"), call).await;
        assert!(matches!(refused, Err(ProduceError::Ahead { index: 1, .. })));
    }
    for timestamp in [now / 1_000, now * 1_000, now * 1_000_000] {
        let call = [5, timestamp].map(stamped).to_vec();
        let refused = rig.session.messages().produce(&topic("in"), call).await;
        let told = refused.unwrap_err().to_string();
        assert!(
            told.contains("timestamp") && told.contains("looks like"),
            "{told}"
        );
    }
    assert!(rig.messages("in").await.is_empty());
    let taken = [0, 5, now - 365 * day, now + day - 60_000].map(stamped);
    rig.session
        .messages()
        .produce(&topic("in"), taken.to_vec())
        .await
        .unwrap();
    assert_eq!(rig.messages("in").await.len(), 4);
}

#[tokio::test]
async fn a_fetch_gives_what_stands_before_an_unreadable_message_once_and_then_says_so() {
    let rig = Rig::start(1).await;
    let partition = rig
        .session
        .catalogue()
        .topic(&topic("in"))
        .unwrap()
        .partition(PartitionId(0));
    for batch in [unreadable_after(&["1", "2"]), unreadable_after(&[])] {
        let append = Append {
            partition: partition.unwrap(),
            batch,
        };
        rig.engine()
            .commit(Transaction::produce(vec![append]))
            .await
            .unwrap();
    }
    let first = rig
        .session
        .messages()
        .fetch(fetch(0, 100, 0))
        .await
        .unwrap();
    assert_eq!((first.messages.len(), first.next), (2, Offset(2)));
    let refused = rig.session.messages().fetch(fetch(2, 100, 0)).await;
    let Err(FetchError::Malformed { next, .. }) = refused else {
        panic!("{refused:?}");
    };
    assert_eq!(next, Offset(3));
}
