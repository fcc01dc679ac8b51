//! The speed of the broker's own path. Run with `--ignored --nocapture`: it prints the result, and
//! fails only below the bar.

use std::time::Instant;

use millrace_broker::NewMessage;
use millrace_model::{Message, Timestamp};

use crate::rig::{Rig, Say, per_message, processor, spec, topic};

async fn measure(call: usize, messages: usize, partitions: u32) -> f64 {
    let rig = Rig::start(partitions).await;
    let value = bytes::Bytes::from(vec![b'x'; 88]);
    let mut sent = 0;
    while sent < messages {
        let batch = (0..call).map(|n| NewMessage {
            partition: None,
            deliver_at: None,
            message: Message {
                key: Some(format!("key-{:08}", sent + n).into()),
                value: Some(value.clone()),
                headers: Vec::new(),
                timestamp: Timestamp(1),
            },
        });
        rig.session
            .messages()
            .produce(&topic("in"), batch.collect())
            .await
            .unwrap();
        sent += call;
    }
    let module = rig
        .upload_handler("pass", per_message(|_, _| Say::Pass))
        .await;
    let start = Instant::now();
    rig.session
        .processors()
        .deploy(&processor("p"), spec(module))
        .await
        .unwrap();
    rig.settled().await;
    let rate = sent as f64 / start.elapsed().as_secs_f64();
    println!(
        "produced by {call}, {partitions} partition(s): {:.0} messages/s",
        rate
    );
    rate
}

#[tokio::test]
#[ignore = "a measurement: needs a quiet machine"]
async fn one_core_passes_400_000_messages_of_100_bytes_a_second_through() {
    measure(10_000, 2_000_000, 4).await;
    measure(1, 200_000, 1).await;
    assert!(measure(1_000, 2_000_000, 1).await >= 400_000.0);
}
