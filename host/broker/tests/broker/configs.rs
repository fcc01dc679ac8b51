//! The settings of a processor: changed without a revision, at once for the next call, on every host.

use std::collections::BTreeMap;
use std::sync::Arc;

use millrace_broker::{BrokerLimits, ConfigChange, NextSpec, ProcessorError};
use millrace_model::ChangeKind;
use millrace_model::bounds::CONFIG_BYTES_MAX;

use crate::rig::{Rig, Say, digest, processor, spec};
use crate::two_hosts::until;

fn change(values: &[(&str, Option<&str>)]) -> ConfigChange {
    let owned = |text: &str| text.to_owned();
    let values = values
        .iter()
        .map(|(key, value)| (owned(key), value.map(owned)));
    ConfigChange {
        replaces: false,
        values: values.collect(),
    }
}

/// The settings that the loaded component of `p` sees.
fn seen(rig: &Rig) -> BTreeMap<String, String> {
    let configs = rig.modules.configs.lock();
    let config = configs.get("p").expect("it was loaded");
    config.now().as_ref().clone().into()
}

#[tokio::test]
async fn a_change_reaches_the_component_without_a_new_revision_and_is_in_the_history() {
    let rig = Rig::deployed(1, |_| (), |_, _| Say::Pass).await;
    let name = processor("p");
    let configure = |values| {
        let session = rig.session.clone();
        let name = name.clone();
        async move { session.processors().configure(&name, values).await }
    };
    let after = configure(change(&[("a", Some("1")), ("b", Some("2"))]))
        .await
        .unwrap();
    assert_eq!((after.current, after.revisions.len()), (1, 1));
    assert_eq!(after.changes.last().unwrap().what, ChangeKind::Configure);
    assert_eq!(after.changes.last().unwrap().text.as_deref(), Some("a, b"));
    assert_eq!(seen(&rig)["b"], "2");

    let changes = after.changes.len();
    let same = configure(change(&[("a", Some("1")), ("c", None)]))
        .await
        .unwrap();
    assert_eq!(same.changes.len(), changes, "nothing differs");
    configure(change(&[("a", None)])).await.unwrap();
    assert_eq!(
        seen(&rig),
        BTreeMap::from([("b".to_owned(), "2".to_owned())])
    );

    let long = "x".repeat(CONFIG_BYTES_MAX);
    for wrong in [
        change(&[("a b", Some("1"))]),
        change(&[("long", Some(&long))]),
    ] {
        let refused = configure(wrong).await.unwrap_err();
        assert!(matches!(refused, ProcessorError::Config(_)), "{refused}");
    }
    assert_eq!(seen(&rig)["b"], "2");
    let unknown = rig.session.processors();
    let unknown = unknown.configure(&processor("q"), change(&[])).await;
    assert!(matches!(unknown, Err(ProcessorError::Unknown(_))));
}

#[tokio::test]
async fn settings_given_with_a_deployment_are_there_before_its_first_call_and_stay_with_later_ones()
{
    let rig = Rig::deployed(1, |_| (), |_, _| Say::Pass).await;
    let name = processor("p");
    let next = NextSpec::from(spec(digest("m"))).configuring(change(&[("mode", Some("fast"))]));
    let configured = rig.session.processors().deploy(&name, next).await.unwrap();
    assert_eq!(configured.config.get("mode"), Some("fast"));
    let mut other = spec(digest("m"));
    other.batch.messages_max = 7;
    let deployed = rig.session.processors().deploy(&name, other).await.unwrap();
    assert_eq!(deployed.config.get("mode"), Some("fast"));
    assert_eq!(seen(&rig)["mode"], "fast");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_hosts_change_reaches_this_hosts_component() {
    let one = Rig::deployed(1, |_| (), |_, _| Say::Pass).await;
    let modules = Arc::new(crate::rig::Modules::default());
    modules.know_all_of(&one.modules);
    let clock = Arc::new(millrace_model::SystemClock::new());
    let other = Rig::beside(
        clock,
        one.engine.second_host(),
        modules,
        BrokerLimits::default(),
    )
    .await;
    let values = change(&[("mode", Some("slow"))]);
    one.session
        .processors()
        .configure(&processor("p"), values)
        .await
        .unwrap();
    until("the other host's component sees the change", async || {
        seen(&other).get("mode").map(String::as_str) == Some("slow")
    })
    .await;
}
