//! Revisions on trial that no longer load when the host starts: they are shown, block nothing, can
//! be tried again, and can be ended.

use std::sync::Arc;

use millrace_broker::{ProcessorError, ProcessorStatus};
use millrace_model::ProcessorSpec;

use crate::rig::{Export, Rig, Say, per_message, processor, spec};

fn passes() -> Export {
    Export::Processor(Arc::new(per_message(|_, _| Say::Pass)))
}

/// A processor, and the specification of another revision.
async fn deployed() -> (Rig, ProcessorSpec) {
    let rig = Rig::start(1).await;
    rig.deploy(spec(rig.upload("a", passes()).await)).await;
    let other = spec(rig.upload("b", passes()).await);
    (rig, other)
}

/// The next host on the same data, on which the other revision does not load.
async fn broken_after_a_start(rig: &Rig) -> Rig {
    rig.modules.know("b", Export::Broken);
    Rig::on(Arc::clone(&rig.engine), Arc::clone(&rig.modules)).await
}

async fn status(rig: &Rig) -> ProcessorStatus {
    rig.session
        .processors()
        .processor(&processor("p"))
        .await
        .unwrap()
}

#[tokio::test]
async fn a_canary_that_no_longer_loads_is_shown_and_tried_again_and_ended() {
    let (rig, other) = deployed().await;
    let name = processor("p");
    rig.session
        .processors()
        .deploy_canary(&name, other.clone(), 40)
        .await
        .unwrap();
    let next = broken_after_a_start(&rig).await;
    let shown = status(&next).await;
    let problem = shown.trial_problem.unwrap();
    assert!(problem.contains("it traps"), "{problem}");
    assert!(shown.processor.trial.is_some() && shown.canary.is_none());

    // It blocks nothing.
    next.session.processors().pause(&name).await.unwrap();
    next.produce(&[("k", "v")]).await;
    next.session.processors().resume(&name, None).await.unwrap();
    next.hold("out", &["v"]).await;
    assert_eq!(status(&next).await.trial_problem, Some(problem));

    let again = next
        .session
        .processors()
        .deploy_canary(&name, other.clone(), 40)
        .await;
    assert!(matches!(again, Err(ProcessorError::Admit(_))), "{again:?}");
    next.modules.know("b", passes());
    next.session
        .processors()
        .deploy_canary(&name, other, 40)
        .await
        .unwrap();
    let shown = status(&next).await;
    assert_eq!(
        (shown.trial_problem, shown.canary.unwrap().percent),
        (None, 40)
    );

    let last = broken_after_a_start(&next).await;
    last.session
        .processors()
        .set_canary(&name, 0)
        .await
        .unwrap();
    let shown = status(&last).await;
    assert_eq!((shown.trial_problem, shown.processor.trial), (None, None));
}

#[tokio::test]
async fn a_shadow_that_no_longer_loads_says_so_where_its_report_would_be() {
    let (rig, other) = deployed().await;
    let name = processor("p");
    rig.session
        .processors()
        .deploy_shadow(&name, other.clone())
        .await
        .unwrap();
    let next = broken_after_a_start(&rig).await;
    let report = next.session.processors().shadow_report(&name);
    assert!(
        matches!(
            report,
            Err(ProcessorError::TrialNotLoaded { revision: 2, .. })
        ),
        "{report:?}"
    );
    next.modules.know("b", passes());
    next.session
        .processors()
        .deploy_shadow(&name, other)
        .await
        .unwrap();
    assert_eq!(
        next.session
            .processors()
            .shadow_report(&name)
            .unwrap()
            .revision,
        2
    );

    let last = broken_after_a_start(&next).await;
    last.session.processors().end_shadow(&name).await.unwrap();
    let shown = status(&last).await;
    assert_eq!((shown.trial_problem, shown.processor.trial), (None, None));
}
