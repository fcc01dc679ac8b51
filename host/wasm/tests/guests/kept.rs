//! Components that were built against contract 0.1.0 and are kept as they were: a host with a larger contract runs them unchanged.

use millrace_broker::handler::{Cause, Failure, Interface, ModuleHost as _, Uploader};
use millrace_broker::state::{StateAttempt, StateTable};
use millrace_model::Timestamp;

use crate::support::{TestHost, batch, outputs, request};

const COUNTER: &[u8] = include_bytes!("../kept/counter-0.1.0.wasm");
const PATIENT_ERRORS: &[u8] = include_bytes!("../kept/patient-errors-0.1.0.wasm");
const REGION_PARTITIONER: &[u8] = include_bytes!("../kept/region-partitioner-0.1.0.wasm");

#[tokio::test]
async fn components_of_contract_0_1_0_still_work() {
    let host = TestHost::start();
    for (component, exports) in [
        (COUNTER, Interface::MessageProcessor),
        (PATIENT_ERRORS, Interface::ErrorHandler),
        (REGION_PARTITIONER, Interface::Partitioner),
    ] {
        let admitted = host.host.admit(component.into(), Uploader::default());
        let facts = admitted.await.unwrap();
        assert_eq!(facts.exports, [exports]);
        let own = facts
            .imports
            .iter()
            .filter(|name| name.starts_with("millrace:"));
        let versions: Vec<_> = own.filter_map(|name| name.split_once('@')).collect();
        assert!(
            versions.iter().all(|(_, version)| *version == "0.1.0"),
            "{versions:?}"
        );
    }

    let counter = host.processor("count", COUNTER).await;
    let messages = batch(["x", "y"]);
    let table = std::sync::Arc::new(StateTable::default());
    let state = Box::new(StateAttempt::new(table, Timestamp(1), 2));
    let (answer, _) = counter.process_with_state(&messages, state).await.unwrap();
    assert_eq!(outputs(&messages, &answer), [b"1", b"2"]);

    let partitioner = host
        .host
        .partitioner(request("t", REGION_PARTITIONER))
        .await;
    let partitions = partitioner.unwrap().assign(4, &messages).await.unwrap();
    assert_eq!(partitions.len(), 2);

    let failure = Failure {
        message: 0,
        revision: 1,
        attempt: 1,
        first_failed_at: Timestamp(1),
        cause: Cause::Retry,
        class: "busy".to_owned(),
        reason: "later".to_owned(),
    };
    let handler = host.host.error_handler(request("p", PATIENT_ERRORS)).await;
    let decisions = handler
        .unwrap()
        .handle(&[failure], &messages)
        .await
        .unwrap();
    assert_eq!(decisions.len(), 1);
}
