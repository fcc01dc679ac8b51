//! What the component of a route may do besides answering: it sends messages, waits for processors and reads their state.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use millrace_broker::handler::{AccessError, Outgoing, RouteAccess, Sent, SentPlace, View};
use millrace_broker::state::{StateQuery, StateValue, StateWrites};
use millrace_broker::{NewMessage, NewTopic, StatePlace};
use millrace_model::bounds::{
    GRANTED_SECRETS_MAX, GRANTED_SERVERS_MAX, GRANTED_VIEWS_MAX, IDEMPOTENCY_KEY_CHARS_MAX,
    VIEW_KEYS_MAX,
};
use millrace_model::processor::{Grants, Limits, Origin};
use millrace_model::{Durability, Offset, PartitionId, RoutePath, RouteSpec, SecretName};

use crate::rig::{Export, Rig, Say, assign, message, per_message, processor, spec, topic};
use crate::states::change;

/// Sets a route with these topics and views, and returns what its component may do.
async fn access(rig: &Rig, path: &str, topics: &[&str], views: &[&str]) -> Arc<dyn RouteAccess> {
    let module = rig.upload("web", Export::Route).await;
    let spec = RouteSpec {
        module,
        grants: Grants {
            topics: topics.iter().map(|name| topic(name)).collect(),
            views: views.iter().map(|name| processor(name)).collect(),
            ..Grants::default()
        },
        config: Default::default(),
        limits: Limits {
            call_ms_max: 50,
            ..Limits::default()
        },
        breaker: Default::default(),
        public: false,
    };
    let path = RoutePath::parse(path).unwrap();
    rig.session.routes().set_route(&path, spec).await.unwrap();
    let accesses = rig.modules.accesses.lock();
    Arc::clone(accesses.get(path.as_str()).unwrap())
}

fn outgoing(key: &str, value: &str) -> Vec<Outgoing> {
    let NewMessage { message, .. } = message(key, value);
    vec![Outgoing {
        partition: None,
        message,
        deliver_at: None,
    }]
}

#[tokio::test]
async fn a_send_that_nobody_waits_for_any_more_still_takes_effect() {
    let rig = Rig::start(1).await;
    let access = access(&rig, "/a", &["in"], &[]).await;
    let sending = access.send("in", outgoing("k", "v"), None);
    // It has begun, and is given up.
    tokio::select! {
        biased;
        sent = sending => panic!("it did not wait for its commit: {sent:?}"),
        () = async {} => {}
    }
    rig.hold("in", &["v"]).await;
}

#[tokio::test]
async fn a_key_makes_a_send_take_effect_once_for_its_route_alone() {
    let rig = Rig::start(3).await;
    let one = access(&rig, "/a", &["in"], &[]).await;
    let other = access(&rig, "/b", &["in"], &[]).await;
    let key = || Some("m-1".to_owned());
    let first = one.send("in", outgoing("", "v"), key()).await.unwrap();
    assert!(!first.repeated);
    let again = one.send("in", outgoing("", "v"), key()).await.unwrap();
    let repeated = Sent {
        repeated: true,
        ..first
    };
    assert_eq!(again, repeated, "it is told the first place");
    let reused = one.send("in", outgoing("", "w"), key()).await;
    assert!(
        matches!(reused, Err(AccessError::KeyReused(_))),
        "{reused:?}"
    );
    let elsewhere = other.send("in", outgoing("", "v"), key()).await.unwrap();
    assert!(!elsewhere.repeated);
    for wrong in [String::new(), "x".repeat(IDEMPOTENCY_KEY_CHARS_MAX + 1)] {
        let refused = one.send("in", outgoing("", "v"), Some(wrong)).await;
        assert!(
            matches!(refused, Err(AccessError::Refused(_))),
            "{refused:?}"
        );
    }
    rig.hold("in", &["v", "v"]).await;
}

#[tokio::test]
async fn what_is_not_granted_or_not_taken_is_refused_and_nothing_is_sent() {
    let rig = Rig::start(1).await;
    let access = access(&rig, "/a", &["in", "nowhere"], &[]).await;
    let denied = access.send("out", outgoing("k", "v"), None).await;
    assert!(
        matches!(denied, Err(AccessError::NotGranted(_))),
        "{denied:?}"
    );
    for (name, messages) in [
        ("nowhere", outgoing("k", "v")),
        ("no name", outgoing("k", "v")),
        ("in", Vec::new()),
    ] {
        let refused = access.send(name, messages, None).await;
        assert!(
            matches!(refused, Err(AccessError::Refused(_))),
            "{name}: {refused:?}"
        );
    }
    assert!(rig.values("in").await.is_empty() && rig.values("out").await.is_empty());
}

#[tokio::test]
async fn a_route_waits_for_what_it_sent_and_no_longer_than_a_request_may_take() {
    let rig = Rig::deployed(1, |_| {}, |_, _| Say::Ack).await;
    let access = access(&rig, "/a", &["in", "out"], &[]).await;
    let sent = access.send("in", outgoing("k", "v"), None).await.unwrap();
    let mut passed = Ok(false);
    // A wait is short here, and the machine may be busy.
    for _ in 0..200 {
        let places = sent.places.clone();
        passed = access
            .settled("p", "in", places, Duration::from_secs(60))
            .await;
        if passed != Ok(false) {
            break;
        }
    }
    assert_eq!(passed, Ok(true));
    let never = vec![SentPlace {
        partition: PartitionId(0),
        offset: Some(Offset(1_000_000)),
    }];
    let long = Duration::from_secs(1_000_000);
    let passed = access.settled("p", "in", never.clone(), long).await;
    assert_eq!(passed, Ok(false), "limits.call_ms_max ends it");
    let unread = access.settled("p", "out", never.clone(), long).await;
    assert!(matches!(unread, Err(AccessError::Refused(_))), "{unread:?}");
    let denied = access.settled("p", "other", never, long).await;
    assert!(
        matches!(denied, Err(AccessError::NotGranted(_))),
        "{denied:?}"
    );
}

/// A rig whose processor `p` reads the topic `keyed`, where the key `odd` belongs to partition 1 and every other to partition 0.
async fn keyed() -> Rig {
    let rig = Rig::start(1).await;
    let by_key = assign(|_, batch| {
        let place = |message| u32::from(batch.key(message) == Some(&b"odd"[..]));
        Ok((0..batch.offsets.len()).map(place).collect())
    });
    let by_key = Export::Partitioner(Arc::new(by_key));
    let partitioner = rig.upload("by-key", by_key).await;
    let new = NewTopic {
        name: topic("keyed"),
        partitions: 2,
        durability: Durability::Os,
        partitioner: Some(partitioner),
        settings: Default::default(),
    };
    rig.session.catalogue().create_topic(new).await.unwrap();
    let module = rig.upload_handler("m", per_message(|_, _| Say::Ack)).await;
    let mut spec = spec(module);
    spec.topics = vec![topic("keyed")];
    rig.deploy(spec).await;
    for (partition, key, number) in [(0, "even", 2), (0, "odd", 1), (1, "odd", 7)] {
        let place = StatePlace {
            processor: processor("p"),
            topic: None,
            partition: PartitionId(partition),
        };
        let writes = StateWrites {
            resets: false,
            changes: vec![change(key, Some(number))],
            adds: None,
        };
        let written = rig.session.processors().write_state(&place, writes);
        written.await.unwrap();
    }
    rig
}

fn view(processor: &str) -> View {
    View {
        processor: processor.to_owned(),
        topic: None,
    }
}

fn numbers(values: Vec<Option<StateValue>>) -> Vec<Option<i64>> {
    let values = values.into_iter();
    values
        .map(|value| value.and_then(|value| value.as_number()))
        .collect()
}

#[tokio::test]
async fn state_is_read_where_messages_with_the_key_go_or_in_the_named_partition() {
    let rig = keyed().await;
    let access = access(&rig, "/a", &[], &["p"]).await;
    let keys = || ["odd", "even", "none", "eve"].map(Bytes::from).to_vec();
    let found = access.values(&view("p"), None, keys()).await.unwrap();
    assert_eq!(numbers(found), [Some(7), Some(2), None, None]);
    let first = Some(PartitionId(0));
    let found = access.values(&view("p"), first, keys()).await.unwrap();
    assert_eq!(numbers(found), [Some(1), Some(2), None, None]);
    assert_eq!(access.partitions(&view("p")).await, Ok(2));
    let query = StateQuery {
        entries_max: 1,
        ..StateQuery::default()
    };
    let page = access.entries(&view("p"), PartitionId(0), query).await;
    let page = page.unwrap();
    assert_eq!(page.entries.len(), 1);
    assert!(page.has_more && *page.entries[0].key == *b"even");
}

#[tokio::test]
async fn state_is_not_read_without_a_grant_beyond_a_bound_or_where_there_is_none() {
    let rig = keyed().await;
    let access = access(&rig, "/a", &[], &["p", "gone"]).await;
    let key = || vec![Bytes::from("odd")];
    let denied = access.values(&view("q"), None, key()).await;
    assert!(matches!(denied, Err(AccessError::NotGranted(_))));
    let denied = access.partitions(&view("q")).await;
    assert!(matches!(denied, Err(AccessError::NotGranted(_))));
    let elsewhere = View {
        topic: Some("in".to_owned()),
        ..view("p")
    };
    let many = vec![Bytes::from("odd"); VIEW_KEYS_MAX + 1];
    for (view, partition, keys) in [
        (view("gone"), None, key()),
        (view("no name"), None, key()),
        (elsewhere, None, key()),
        (view("p"), Some(PartitionId(2)), key()),
        (view("p"), None, many),
    ] {
        let refused = access.values(&view, partition, keys).await;
        assert!(matches!(refused, Err(AccessError::Refused(_))), "{view:?}");
    }
}

#[tokio::test]
async fn a_list_of_grants_that_is_too_long_is_refused_for_processors_and_routes() {
    let rig = Rig::start(1).await;
    let module = rig.upload_handler("m", per_message(|_, _| Say::Pass)).await;
    let web = rig.upload("web", Export::Route).await;
    let secrets = |count: usize| {
        let secret = |n| SecretName::parse(&format!("s{n}")).unwrap();
        (0..count).map(secret).collect()
    };
    let servers = |count: usize| {
        let server = |n| Origin::parse(&format!("https://h{n}.example")).unwrap();
        (0..count).map(server).collect()
    };
    let views = |count: usize| (0..count).map(|n| processor(&format!("p{n}"))).collect();
    let none = Grants::default;
    for (field, grants, is_taken) in [
        (
            "",
            Grants {
                secrets: secrets(GRANTED_SECRETS_MAX),
                http: servers(GRANTED_SERVERS_MAX),
                ..none()
            },
            true,
        ),
        (
            "grants.secrets",
            Grants {
                secrets: secrets(GRANTED_SECRETS_MAX + 1),
                ..none()
            },
            false,
        ),
        (
            "grants.http",
            Grants {
                http: servers(GRANTED_SERVERS_MAX + 1),
                ..none()
            },
            false,
        ),
        (
            "grants.views",
            Grants {
                views: views(GRANTED_VIEWS_MAX + 1),
                ..none()
            },
            false,
        ),
    ] {
        let mut of_processor = spec(module);
        of_processor.grants = grants.clone();
        let (processors, name) = (rig.session.processors(), processor("p"));
        let deployed = processors.deploy(&name, of_processor).await;
        let deployed = deployed.map(drop).map_err(|error| error.to_string());
        let of_route = RouteSpec {
            module: web,
            grants,
            config: Default::default(),
            limits: Limits::default(),
            breaker: Default::default(),
            public: false,
        };
        let path = RoutePath::parse("/a").unwrap();
        let set = rig.session.routes().set_route(&path, of_route).await;
        let set = set.map(drop).map_err(|error| error.to_string());
        for outcome in [deployed, set] {
            match outcome {
                Ok(()) => assert!(is_taken, "{field}"),
                Err(error) => assert!(!is_taken && error.contains(field), "{error}"),
            }
        }
    }
}
