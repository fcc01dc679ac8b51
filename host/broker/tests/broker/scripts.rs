//! Whatever handlers answer, in whatever order: every message is in the output or the dead letters,
//! once, and keys keep their order.

use std::collections::HashMap;

use millrace_broker::CallError;
use millrace_model::processor::Order;
use proptest::prelude::*;

use crate::rig::{Rig, Say, processor, text, trap};

/// The answers about one message, attempt by attempt; `Pass` after that.
fn any_script() -> impl Strategy<Value = Vec<Say>> {
    let say = prop_oneof![
        6 => Just(Say::Pass),
        2 => (0..3u64).prop_map(|ms| Say::Retry(Some(ms))),
        1 => Just(Say::Retry(None)),
        1 => Just(Say::Reject("no")),
        1 => Just(trap()),
        1 => Just(Say::Fail(CallError::BadAnswer("babble".to_owned()))),
    ];
    proptest::collection::vec(say, 1..5)
}

async fn run(scripts: Vec<(u8, Vec<Say>)>, order: Order, messages_max: u32, call: usize) {
    let said: Vec<Vec<Say>> = scripts.iter().map(|(_, script)| script.clone()).collect();
    let rig = Rig::deployed(
        2,
        |spec| {
            spec.order = order;
            spec.batch.messages_max = messages_max;
            spec.retry.delay_max_ms = 2;
            // Whether most messages fail alike depends on chance here.
            spec.breaker.enabled = false;
        },
        move |batch, message| {
            let number: usize = text(batch.value(message)).parse().unwrap();
            let attempt = batch.attempts[message] as usize;
            said[number].get(attempt - 1).cloned().unwrap_or(Say::Pass)
        },
    )
    .await;
    let texts: Vec<(String, String)> = scripts
        .iter()
        .enumerate()
        .map(|(number, (key, _))| (key.to_string(), number.to_string()))
        .collect();
    for call in texts.chunks(call) {
        let messages: Vec<(&str, &str)> = call.iter().map(|(k, v)| (&k[..], &v[..])).collect();
        rig.produce(&messages).await;
    }
    rig.settled().await;
    let outputs = rig.messages("out").await;
    let dead = rig.messages("in.p.dlq").await;
    let mut seen: Vec<usize> = outputs
        .iter()
        .chain(&dead)
        .map(|message| text(message.value.as_deref()).parse().unwrap())
        .collect();
    seen.sort_unstable();
    assert_eq!(seen, Vec::from_iter(0..scripts.len()), "each exactly once");
    if order != Order::None {
        for topic in [outputs, dead] {
            let mut last = HashMap::new();
            for message in topic {
                let number: usize = text(message.value.as_deref()).parse().unwrap();
                let before = last.insert(message.key.clone(), number);
                assert!(
                    before.is_none_or(|before| before < number),
                    "keys keep their order"
                );
            }
        }
    }
    let status = rig
        .session
        .processors()
        .processor(&processor("p"))
        .await
        .unwrap();
    assert!(status.partitions.iter().all(|one| one.state == "running"));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]
    #[test]
    fn every_message_takes_effect_once_and_keys_keep_their_order(
        scripts in proptest::collection::vec((0..6u8, any_script()), 1..60),
        order in prop_oneof![Just(Order::Key), Just(Order::Partition), Just(Order::None)],
        messages_max in 1..40u32,
        call in 1..30usize,
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(run(scripts, order, messages_max, call));
    }
}
