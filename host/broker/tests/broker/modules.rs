//! Modules as artefacts: tags that are given and taken back, and versions that may only rise.

use std::sync::Arc;

use bytes::Bytes;
use millrace_broker::{BrokerLimits, Module, ModuleError, ModulePolicy, VersionOrder};
use millrace_engine::MemoryEngine;
use millrace_model::SystemClock;

use crate::rig::{Export, Modules, Rig, Say, per_message};

const RISING: VersionOrder = VersionOrder::Monotonic;

fn memory() -> Arc<MemoryEngine> {
    MemoryEngine::new(Arc::new(SystemClock::new()))
}

async fn rig(versions: VersionOrder, engine: Arc<MemoryEngine>) -> Rig {
    let policy = ModulePolicy { versions };
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
