//! Modules as artefacts: tags that are given and taken back, versions that may only rise, and signatures.

use std::sync::Arc;
use std::task::Poll;

use bytes::Bytes;
use millrace_broker::{
    BrokerLimits, ConfigChange, DistrustError, Module, ModuleError, ModulePolicy, NewTopic,
    NextSpec, ProcessorError, REFUSALS_REMEMBERED_MAX, RouteError, SignatureError, SignaturePolicy,
    TopicCreateError, TrustedKey, Upload, VersionOrder,
};
use millrace_engine::MemoryEngine;
use millrace_model::processor::Limits;
use millrace_model::{Advised as _, Durability, RoutePath, RouteSpec, SystemClock};
use minisign::KeyPair;

use crate::rig::{Export, Modules, Page, Rig, Say, assign, per_message, processor, spec, topic};

const RISING: VersionOrder = VersionOrder::Monotonic;

fn memory() -> Arc<MemoryEngine> {
    MemoryEngine::new(Arc::new(SystemClock::new()))
}

async fn rig(versions: VersionOrder, engine: Arc<MemoryEngine>) -> Rig {
    let policy = ModulePolicy {
        versions,
        ..ModulePolicy::default()
    };
    under(policy, engine).await
}

async fn under(policy: ModulePolicy, engine: Arc<MemoryEngine>) -> Rig {
    let modules = Arc::new(Modules::default());
    for name in ["one", "two", "three"] {
        let handler = Arc::new(per_message(|_, _| Say::Ack));
        modules.know(name, Export::Processor(handler));
    }
    let (clock, limits) = (Arc::new(SystemClock::new()), BrokerLimits::default());
    Rig::under(policy, clock, engine, modules, limits).await
}

async fn upload(rig: &Rig, name: &'static str, tag: &str) -> Result<Module, ModuleError> {
    let bytes = Bytes::from_static(name.as_bytes());
    let tag = Some(tag.to_owned());
    rig.session.catalogue().upload_module(bytes, tag).await
}

#[tokio::test]
async fn a_tag_is_given_to_a_stored_module_and_taken_back() {
    let rig = rig(VersionOrder::Any, memory()).await;
    let catalogue = rig.session.catalogue();
    let one = upload(&rig, "one", "one@1").await.unwrap().facts.digest;
    let two = upload(&rig, "two", "two@1").await.unwrap().facts.digest;
    for _ in 0..2 {
        let tagged = catalogue.tag_module(one, "one@latest").await.unwrap();
        assert!(tagged.tags().eq(["one@1", "one@latest"]));
    }
    let taken = catalogue.tag_module(two, "one@latest").await;
    assert!(matches!(taken, Err(ModuleError::TagTaken { .. })));
    let untagged = catalogue.untag_module("one@1").await.unwrap();
    assert!(untagged.tags().eq(["one@latest"]), "{untagged:?}");
    assert_eq!(catalogue.find_module("one@latest"), Some(untagged));
    assert_eq!(catalogue.find_module("one@1"), None);
    let again = catalogue.untag_module("one@1").await;
    assert!(matches!(again, Err(ModuleError::UnknownTag(_))));
    // Without an order, a tag that was taken back may go to another module.
    let tagged = catalogue.tag_module(two, "one@1").await.unwrap();
    assert!(tagged.tags().eq(["two@1", "one@1"]));
    for tag in ["one", "one@", "@1", "o ne@1", "one@1@2"] {
        let refused = catalogue.tag_module(one, tag).await;
        assert!(matches!(refused, Err(ModuleError::Tag(_))), "{tag}");
    }
    let untagged = catalogue.untag_module("one@latest").await.unwrap();
    assert_eq!(untagged.tags().count(), 0);
    assert!(catalogue.find_module(&one.to_string()).is_some());
}

#[tokio::test]
async fn versions_that_may_only_rise_are_compared_with_every_earlier_one() {
    let engine = memory();
    let rising = rig(RISING, Arc::clone(&engine)).await;
    let catalogue = rising.session.catalogue();
    upload(&rising, "one", "m@1.9.0").await.unwrap();
    let one = upload(&rising, "one", "m@1.9.0")
        .await
        .unwrap()
        .facts
        .digest;
    let lower = upload(&rising, "two", "m@1.10.0-rc.1").await.unwrap();
    for older in ["m@1.8.9", "m@1.10.0-alpha", "m@0.9.9"] {
        match upload(&rising, "three", older).await {
            Err(ModuleError::NotNewer { newest, .. }) => assert_eq!(newest, "m@1.10.0-rc.1"),
            other => panic!("{older}: {other:?}"),
        }
        let refused = catalogue.tag_module(one, older).await;
        assert!(matches!(refused, Err(ModuleError::NotNewer { .. })));
    }
    let word = upload(&rising, "three", "m@latest").await;
    assert!(matches!(word, Err(ModuleError::NotSemantic(_))), "{word:?}");
    // Other names have versions of their own, and the same bytes may get the next one.
    upload(&rising, "three", "other@0.1.0").await.unwrap();
    catalogue.tag_module(one, "m@1.10.0").await.unwrap();
    catalogue.untag_module("m@1.10.0").await.unwrap();
    catalogue.delete_module(one).await.unwrap();
    catalogue.delete_module(lower.facts.digest).await.unwrap();
    // What was taken back and deleted still counts, also for the next start.
    let refused = upload(&rising, "one", "m@1.10.0").await;
    assert!(matches!(refused, Err(ModuleError::NotNewer { .. })));
    let restarted = rig(RISING, engine.restarted()).await;
    match upload(&restarted, "one", "m@1.9.0").await {
        Err(ModuleError::NotNewer { newest, .. }) => assert_eq!(newest, "m@1.10.0"),
        other => panic!("{other:?}"),
    }
    upload(&restarted, "one", "m@1.10.1").await.unwrap();
}

#[tokio::test]
async fn where_versions_begin_to_rise_the_tags_that_are_there_count() {
    let engine = memory();
    let before = rig(VersionOrder::Any, Arc::clone(&engine)).await;
    upload(&before, "one", "m@2.0.0").await.unwrap();
    upload(&before, "two", "m@1.0.0").await.unwrap();
    upload(&before, "two", "m@word").await.unwrap();
    let rising = rig(RISING, engine.restarted()).await;
    let refused = upload(&rising, "three", "m@1.5.0").await;
    assert!(matches!(refused, Err(ModuleError::NotNewer { .. })));
    upload(&rising, "three", "m@2.0.1").await.unwrap();
}

#[tokio::test]
async fn a_tag_that_a_hundred_uploads_want_at_once_belongs_to_one_of_them() {
    let rig = rig(VersionOrder::Any, memory()).await;
    let uploads = (0..100).map(|n| {
        let name = format!("module {n}");
        let handler = Arc::new(per_message(|_, _| Say::Ack));
        rig.modules.know(&name, Export::Processor(handler));
        let session = rig.session.clone();
        tokio::spawn(async move {
            let tag = Some("wanted@1".to_owned());
            session.catalogue().upload_module(name.into(), tag).await
        })
    });
    let mut won = Vec::new();
    for upload in uploads.collect::<Vec<_>>() {
        match upload.await.unwrap() {
            Ok(module) => won.push(module),
            Err(error) => assert!(matches!(error, ModuleError::TagTaken { .. }), "{error}"),
        }
    }
    assert_eq!(won.len(), 1);
    // The others left nothing.
    assert_eq!(rig.session.catalogue().modules(), won);
}

#[tokio::test]
async fn an_upload_is_refused_if_its_bytes_are_not_the_announced_ones() {
    let rig = rig(VersionOrder::Any, memory()).await;
    let upload = |digest| Upload {
        bytes: Bytes::from_static(b"one"),
        digest: Some(crate::rig::digest(digest)),
        ..Upload::default()
    };
    let catalogue = rig.session.catalogue();
    let refused = catalogue.upload_module_of(upload("two")).await;
    assert!(
        matches!(refused, Err(ModuleError::OtherBytes { .. })),
        "{refused:?}"
    );
    assert!(catalogue.modules().is_empty());
    catalogue.upload_module_of(upload("one")).await.unwrap();
}

/// A host that demands signatures by these keys.
async fn demanding(keys: &[&KeyPair], engine: Arc<MemoryEngine>) -> Rig {
    let trusted = keys.iter().map(|pair| {
        let text = pair.pk.to_box().unwrap().into_string();
        TrustedKey::parse(&text).unwrap()
    });
    let signatures = SignaturePolicy {
        required: true,
        trusted: trusted.collect(),
    };
    let policy = ModulePolicy {
        signatures,
        ..ModulePolicy::default()
    };
    under(policy, engine).await
}

fn pair() -> KeyPair {
    KeyPair::generate_unencrypted_keypair().unwrap()
}

fn sign(pair: &KeyPair, bytes: &str, comment: &str) -> String {
    let signature = minisign::sign(None, &pair.sk, bytes.as_bytes(), Some(comment), None);
    signature.unwrap().to_string()
}

async fn upload_signed(
    rig: &Rig,
    name: &'static str,
    tag: Option<&str>,
    signature: Option<String>,
) -> Result<Module, ModuleError> {
    let upload = Upload {
        bytes: Bytes::from_static(name.as_bytes()),
        tag: tag.map(str::to_owned),
        signature,
        ..Upload::default()
    };
    rig.session.catalogue().upload_module_of(upload).await
}

fn refusal(uploaded: Result<Module, ModuleError>) -> SignatureError {
    match uploaded {
        Err(ModuleError::Signature(error)) => error,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn only_the_signature_of_these_very_bytes_by_a_trusted_key_is_accepted() {
    let (ours, theirs) = (pair(), pair());
    let rig = demanding(&[&ours], memory()).await;
    let missing = refusal(upload_signed(&rig, "one", None, None).await);
    assert!(matches!(missing, SignatureError::Missing(_)), "{missing}");
    let stranger = sign(&theirs, "one", "any");
    let untrusted = refusal(upload_signed(&rig, "one", None, Some(stranger)).await);
    assert!(
        matches!(untrusted, SignatureError::Untrusted { .. }),
        "{untrusted}"
    );
    let of_another = sign(&ours, "two", "any");
    let wrong = refusal(upload_signed(&rig, "one", None, Some(of_another)).await);
    assert!(matches!(wrong, SignatureError::Wrong { .. }), "{wrong}");
    let good = sign(&ours, "one", "release 7");
    // The comment is signed too.
    let changed = good.replace("release 7", "release 8");
    let wrong = refusal(upload_signed(&rig, "one", None, Some(changed)).await);
    assert!(matches!(wrong, SignatureError::Wrong { .. }), "{wrong}");
    // A key's number is no proof of the key.
    let disguised = {
        let mut signed: Vec<String> = sign(&theirs, "one", "any")
            .lines()
            .map(str::to_owned)
            .collect();
        let mut raw = base64_of(&signed[1]);
        raw[2..10].copy_from_slice(ours.pk.keynum());
        signed[1] = text_of(&raw);
        signed.join("\n")
    };
    let wrong = refusal(upload_signed(&rig, "one", None, Some(disguised)).await);
    assert!(matches!(wrong, SignatureError::Wrong { .. }), "{wrong}");
    for garbage in [
        "",
        "one line",
        "a\nb\nc\nd",
        &good[..good.len() / 2],
        &"x".repeat(3_000),
    ] {
        let malformed = refusal(upload_signed(&rig, "one", None, Some(garbage.to_owned())).await);
        assert!(
            matches!(malformed, SignatureError::Malformed(_)),
            "{malformed}"
        );
    }
    assert!(
        rig.session.catalogue().modules().is_empty(),
        "nothing was stored"
    );
    let module = upload_signed(&rig, "one", None, Some(good)).await.unwrap();
    let signature = module.signature.clone().unwrap();
    assert_eq!(signature.comment, "release 7");
    assert_eq!(rig.session.catalogue().is_trusted(&module), Some(true));
    // The kept signature counts when the same bytes come again.
    let again = upload_signed(&rig, "one", None, None).await.unwrap();
    assert_eq!(again, module);
}

fn base64_of(text: &str) -> Vec<u8> {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD
        .decode(text)
        .unwrap()
}

fn text_of(bytes: &[u8]) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.encode(bytes)
}

#[tokio::test]
async fn a_signature_for_a_tag_allows_no_other_tag() {
    let key = pair();
    let rig = demanding(&[&key], memory()).await;
    let catalogue = rig.session.catalogue();
    let old = sign(&key, "one", "timestamp:1\ttag:m@1.0.0");
    let refused = upload_signed(&rig, "one", Some("m@2.0.0"), Some(old.clone())).await;
    let refused = refusal(refused);
    assert!(
        matches!(refused, SignatureError::OtherTag { .. }),
        "{refused}"
    );
    let module = upload_signed(&rig, "one", Some("m@1.0.0"), Some(old))
        .await
        .unwrap();
    let digest = module.facts.digest;
    let passed_off = refusal(catalogue.tag_module(digest, "m@2.0.0").await);
    assert!(
        matches!(passed_off, SignatureError::OtherTag { .. }),
        "{passed_off}"
    );
    // The same bytes may be released again: with a signature that says so.
    let new = sign(&key, "one", "tag:m@2.0.0 tag:m@1.0.0");
    let module = upload_signed(&rig, "one", Some("m@2.0.0"), Some(new))
        .await
        .unwrap();
    assert!(module.tags().eq(["m@1.0.0", "m@2.0.0"]));
}

#[tokio::test]
async fn a_key_that_is_withdrawn_sets_no_route_and_stops_none() {
    let (old, new) = (pair(), pair());
    let engine = memory();
    let before = demanding(&[&old, &new], Arc::clone(&engine)).await;
    let page = || Export::Page(Page::of("a page"));
    before.modules.know("one", page());
    let by_old = Some(sign(&old, "one", "x"));
    let one = upload_signed(&before, "one", None, by_old).await.unwrap();
    let spec = |call_ms_max| RouteSpec {
        module: one.facts.digest,
        grants: Default::default(),
        config: Default::default(),
        limits: Limits {
            call_ms_max,
            ..Limits::default()
        },
        breaker: Default::default(),
        public: false,
    };
    let path = RoutePath::parse("/a").unwrap();
    let routes = before.session.routes();
    routes.set_route(&path, spec(1)).await.unwrap();

    let after = demanding(&[&new], engine.restarted()).await;
    after.modules.know("one", page());
    let routes = after.session.routes();
    for set in [
        routes.set_route(&path, spec(2)).await,
        routes.set_canary(&path, spec(2), 10).await,
    ] {
        let refused = matches!(
            set,
            Err(RouteError::Distrust(DistrustError::Signature(
                SignatureError::Untrusted { .. }
            )))
        );
        assert!(refused, "{set:?}");
    }
    let kept = routes.route(&path).unwrap().route;
    assert_eq!(kept.revisions.len(), 1);
}

#[tokio::test]
async fn a_key_that_is_withdrawn_stops_deployments_and_nothing_that_runs() {
    let (old, new) = (pair(), pair());
    let engine = memory();
    let before = demanding(&[&old, &new], Arc::clone(&engine)).await;
    before.topic("in", 1).await;
    before.topic("out", 1).await;
    let by_old = Some(sign(&old, "one", "x"));
    let one = upload_signed(&before, "one", None, by_old).await.unwrap();
    let by_new = Some(sign(&new, "two", "x"));
    let two = upload_signed(&before, "two", None, by_new).await.unwrap();
    before.deploy(spec(one.facts.digest)).await;
    let after = demanding(&[&new], engine.restarted()).await;
    let (catalogue, processors) = (after.session.catalogue(), after.session.processors());
    let known = catalogue
        .find_module(&one.facts.digest.to_string())
        .unwrap();
    assert_eq!(catalogue.is_trusted(&known), Some(false));
    // What is deployed runs.
    after.produce(&[("k", "v")]).await;
    after.settled().await;
    // Its settings may change: that is no new revision of the module.
    let mode = [("mode".to_owned(), Some("calm".to_owned()))];
    let change = ConfigChange {
        replaces: false,
        values: mode.into(),
    };
    let next = NextSpec::from(spec(one.facts.digest)).configuring(change);
    let configured = processors.deploy(&processor("p"), next).await.unwrap();
    assert_eq!(configured.config.get("mode"), Some("calm"));
    assert_eq!(configured.revisions.len(), 1);
    let refused = processors
        .deploy(&processor("q"), spec(one.facts.digest))
        .await;
    let untrusted = |error: ProcessorError| match error {
        ProcessorError::Distrust(DistrustError::Signature(error)) => {
            assert!(matches!(error, SignatureError::Untrusted { .. }), "{error}");
        }
        other => panic!("{other}"),
    };
    untrusted(refused.unwrap_err());
    let mut error_handler = spec(two.facts.digest);
    error_handler.error_handler = Some(one.facts.digest);
    untrusted(
        processors
            .deploy(&processor("p"), error_handler)
            .await
            .unwrap_err(),
    );
    // A module by a trusted key is deployed, and the way back stays open.
    after.deploy(spec(two.facts.digest)).await;
    let back = processors.rollback(&processor("p"), None).await.unwrap();
    let current = back.current().unwrap();
    assert_eq!(current.spec.module, one.facts.digest);
    // Signed again by the new key, the same bytes may be deployed again.
    let again = Some(sign(&new, "one", "x"));
    upload_signed(&after, "one", None, again).await.unwrap();
    processors
        .deploy(&processor("q"), spec(one.facts.digest))
        .await
        .unwrap();
}

#[tokio::test]
async fn unsigned_modules_from_before_are_deployed_no_more_and_make_no_partitioners() {
    let engine = memory();
    let before = rig(VersionOrder::Any, Arc::clone(&engine)).await;
    before.modules.know(
        "four",
        Export::Partitioner(Arc::new(assign(|_, _| Ok(Vec::new())))),
    );
    let four = upload(&before, "four", "four@1")
        .await
        .unwrap()
        .facts
        .digest;
    let after = demanding(&[&pair()], engine.restarted()).await;
    let topic = NewTopic {
        name: topic("by-four"),
        partitions: 1,
        durability: Durability::Os,
        partitioner: Some(four),
        settings: Default::default(),
    };
    let refused = after.session.catalogue().create_topic(topic).await;
    match refused {
        Err(TopicCreateError::Distrust(DistrustError::Signature(error))) => {
            assert!(matches!(error, SignatureError::Missing(_)), "{error}");
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn an_upload_is_known_while_it_is_admitted_and_its_refusal_afterwards() {
    let rig = rig(VersionOrder::Any, memory()).await;
    let catalogue = rig.session.catalogue();
    rig.modules.know("slow", Export::Stuck { at_upload: true });
    let upload = |name: &'static str, tag: &str| Upload {
        bytes: Bytes::from_static(name.as_bytes()),
        tag: Some(tag.to_owned()),
        ..Upload::default()
    };
    let uploading = catalogue.begin_upload(upload("slow", "slow@1"));
    let uploading = uploading.await.unwrap();
    let digest = uploading.digest();
    for reference in ["slow@1", &digest.to_string()[..8]] {
        assert_eq!(catalogue.admission(reference).unwrap().digest, digest);
    }
    assert_eq!(catalogue.admissions().len(), 1);
    {
        let mut ended = std::pin::pin!(catalogue.admission_ends("slow@1"));
        let waits = std::future::poll_fn(|context| Poll::Ready(ended.as_mut().poll(context)));
        assert!(waits.await.is_pending());
        drop(uploading);
        ended.await;
    }
    assert_eq!(catalogue.admission("slow@1"), None);
    assert!(catalogue.refusal("slow@1").is_none(), "it was given up");

    let refused = catalogue.upload_module_of(upload("nobody", "n@1")).await;
    let refused = refused.unwrap_err();
    let refusal = catalogue.refusal("n@1").unwrap();
    assert!(
        refusal.to_string().ends_with(&refused.to_string()),
        "{refusal}"
    );
    assert_eq!(refusal.advice(), refused.advice());
    // The same bytes may be admitted another time.
    rig.modules.know("nobody", Export::Broken);
    let admitted = catalogue.upload_module_of(upload("nobody", "n@1")).await;
    admitted.unwrap();
    assert!(catalogue.refusal("n@1").is_none());
    // A tag that is taken is refused before anything is compiled.
    let taken = catalogue.upload_module_of(upload("slow", "n@1")).await;
    assert!(
        matches!(taken, Err(ModuleError::TagTaken { .. })),
        "{taken:?}"
    );
}

#[tokio::test]
async fn refusals_that_are_remembered_are_bounded() {
    let rig = rig(VersionOrder::Any, memory()).await;
    let catalogue = rig.session.catalogue();
    let refuse = async |n: usize| {
        let upload = Upload {
            bytes: Bytes::from(format!("nobody {n}")),
            tag: Some(format!("n@{n}")),
            ..Upload::default()
        };
        catalogue.upload_module_of(upload).await.unwrap_err();
    };
    for n in 0..=REFUSALS_REMEMBERED_MAX {
        refuse(n).await;
    }
    assert!(catalogue.refusal("n@0").is_none());
    assert!(catalogue.refusal("n@1").is_some());
}
