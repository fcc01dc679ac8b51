//! Rolling back: to which revision it leads, what is reported about it, what it needs, and which
//! messages are sent again.

use std::sync::Arc;
use std::time::Duration;

use millrace_broker::{Loss, ProcessorError, TopicDeleteError};
use millrace_model::{ChangeKind, Digest, Durability, Processor, ProcessorSpec, TopicSpec};

use crate::revisions::marker;
use crate::rig::{Export, Rig, Say, per_message, processor, spec, text, topic, trap};

async fn current(rig: &Rig) -> Processor {
    let status = rig.session.processors().processor(&processor("p")).await;
    status.unwrap().processor
}

/// Waits until the processor meets the condition.
async fn until(rig: &Rig, what: impl Fn(&Processor) -> bool) -> Processor {
    for _ in 0..5_000 {
        let processor = current(rig).await;
        if what(&processor) {
            return processor;
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    panic!("it never came to that: {:?}", current(rig).await);
}

/// A processor whose first revision has worked.
async fn worked() -> (Rig, ProcessorSpec) {
    let rig = Rig::start(1).await;
    let mut first = spec(marker(&rig, "a").await);
    first.breaker.probe_first_ms = 2;
    first.breaker.probe_max_ms = 20;
    first.retry.attempts_max = 1;
    rig.deploy(first.clone()).await;
    rig.produce(&[("k", "before")]).await;
    rig.hold("out", &["before by a"]).await;
    until(&rig, |p| p.revision(1).unwrap().record.worked_at.is_some()).await;
    (rig, first)
}

async fn bad(rig: &Rig) -> Digest {
    rig.upload_handler("bad", per_message(|_, _| trap())).await
}

/// Gives a bad revision enough messages to fail on that its breaker opens.
async fn flood(rig: &Rig) {
    let values: Vec<String> = (0..30).map(|n| n.to_string()).collect();
    let messages: Vec<(&str, &str)> = values.iter().map(|v| (&v[..], &v[..])).collect();
    rig.produce(&messages).await;
}

/// The text recorded with the last change.
fn said(processor: &Processor) -> String {
    processor.changes.last().unwrap().text.clone().unwrap()
}

#[tokio::test]
async fn a_rollback_names_the_command_that_sends_again_what_was_given_up() {
    let (rig, first) = worked().await;
    let module = bad(&rig).await;
    rig.deploy(ProcessorSpec { module, ..first }).await;
    let back = rig
        .session
        .processors()
        .rollback(&processor("p"), None)
        .await
        .unwrap();
    assert_eq!(
        said(&back),
        "from revision 2; `millrace dlq redrive p --failed-revision 2` sends again what it gave up"
    );
    let status = rig
        .session
        .processors()
        .processor(&processor("p"))
        .await
        .unwrap();
    assert_eq!(status.gone_back_from, Some(2));
    // A further deployment clears it.
    let other = marker(&rig, "c").await;
    rig.deploy(spec(other)).await;
    let status = rig
        .session
        .processors()
        .processor(&processor("p"))
        .await
        .unwrap();
    assert_eq!(status.gone_back_from, None);
}

#[tokio::test]
async fn after_a_rollback_by_the_host_another_one_says_where_to() {
    let (rig, first) = worked().await;
    let name = processor("p");
    let second = marker(&rig, "b").await;
    rig.deploy(ProcessorSpec {
        module: second,
        ..first.clone()
    })
    .await;
    rig.produce(&[("k", "between")]).await;
    rig.hold("out", &["before by a", "between by b"]).await;
    until(&rig, |p| p.revision(2).unwrap().record.worked_at.is_some()).await;
    let module = bad(&rig).await;
    let auto_rollback = true;
    rig.deploy(ProcessorSpec {
        module,
        auto_rollback,
        ..first.clone()
    })
    .await;
    flood(&rig).await;
    let back = until(&rig, |p| p.current == 2).await;
    let text = said(&back);
    assert!(text.starts_with("bad deploy"), "{text}");
    assert!(text.contains(": from revision 3; `millrace dlq"), "{text}");
    let note = back.revision(3).unwrap().note.clone().unwrap();
    assert!(note.contains("--failed-revision 3`"), "{note}");
    // Neither a canary in between nor a pause makes the host forget it.
    let other = marker(&rig, "c").await;
    let canary = rig
        .session
        .processors()
        .deploy_canary(&name, spec(other), 1)
        .await;
    canary.unwrap();
    rig.session
        .processors()
        .rollback(&name, None)
        .await
        .unwrap();
    rig.session.processors().pause(&name).await.unwrap();
    let refused = rig
        .session
        .processors()
        .rollback(&name, None)
        .await
        .unwrap_err();
    assert!(
        matches!(
            refused,
            ProcessorError::RolledBackAlready {
                current: 2,
                from: Some(3),
                withdrawn: false,
                further: Some(1),
                ..
            }
        ),
        "{refused:?}"
    );
    assert_eq!(
        rig.session
            .processors()
            .rollback(&name, Some(1))
            .await
            .unwrap()
            .current,
        1
    );
}

#[tokio::test]
async fn after_a_withdrawal_by_the_host_a_rollback_says_where_to() {
    let (rig, first) = worked().await;
    let name = processor("p");
    let second = marker(&rig, "b").await;
    rig.deploy(ProcessorSpec {
        module: second,
        ..first.clone()
    })
    .await;
    let module = bad(&rig).await;
    let on_trial = ProcessorSpec { module, ..first };
    let canary = rig
        .session
        .processors()
        .deploy_canary(&name, on_trial, 90)
        .await;
    canary.unwrap();
    flood(&rig).await;
    until(&rig, |p| p.trial.is_none()).await;
    let refused = rig
        .session
        .processors()
        .rollback(&name, None)
        .await
        .unwrap_err();
    assert!(
        matches!(
            refused,
            ProcessorError::RolledBackAlready {
                current: 2,
                from: Some(3),
                withdrawn: true,
                further: Some(1),
                ..
            }
        ),
        "{refused:?}"
    );
    // A revision that was only on trial is judged afresh, whatever its results were there.
    let forward = rig
        .session
        .processors()
        .rollback(&name, Some(3))
        .await
        .unwrap();
    let third = forward.revision(3).unwrap();
    assert!(!third.trial && !third.record.proven);
    assert_eq!((&third.note, third.record.worked_at), (&None, None));
    assert_eq!(third.predecessor, Some(2));
}

#[tokio::test]
async fn a_rollback_to_the_current_revision_only_ends_a_trial() {
    let (rig, _) = worked().await;
    let name = processor("p");
    let before = current(&rig).await;
    let after = rig
        .session
        .processors()
        .rollback(&name, Some(1))
        .await
        .unwrap();
    assert_eq!(after.changes, before.changes);
    let other = marker(&rig, "b").await;
    let canary = rig
        .session
        .processors()
        .deploy_canary(&name, spec(other), 10)
        .await;
    canary.unwrap();
    let after = rig
        .session
        .processors()
        .rollback(&name, Some(1))
        .await
        .unwrap();
    assert_eq!((after.current, &after.trial), (1, &None));
    let last = after.changes.last().unwrap();
    assert_eq!((last.what, last.revision), (ChangeKind::Withdraw, 2));
}

#[tokio::test]
async fn a_rollback_that_is_asked_for_twice_is_made_once() {
    let (rig, first) = worked().await;
    let name = processor("p");
    for module in ["b", "c"] {
        let module = marker(&rig, module).await;
        rig.deploy(ProcessorSpec {
            module,
            ..first.clone()
        })
        .await;
    }
    let asked = || {
        rig.session
            .processors()
            .rollback_expecting(&name, None, Some(3))
    };
    assert_eq!(asked().await.unwrap().current, 1);
    let again = asked().await.unwrap_err();
    assert!(
        matches!(again, ProcessorError::OtherRevision { current: 1, .. }),
        "{again:?}"
    );
}

#[tokio::test]
async fn what_a_rollback_passes_over_is_grouped_and_a_revision_that_never_worked_is_called_so() {
    let (rig, first) = worked().await;
    let name = processor("p");
    let module = bad(&rig).await;
    for attempts_max in 2..=5 {
        let mut next = first.clone();
        next.module = module;
        next.retry.attempts_max = attempts_max;
        rig.deploy(next).await;
    }
    let back = rig
        .session
        .processors()
        .rollback(&name, None)
        .await
        .unwrap();
    assert_eq!(
        said(&back),
        "from revision 5, passing over revisions 2 to 4, which never processed a message; \
         `millrace dlq redrive p --failed-revision 5` sends again what it gave up"
    );
    let other = spec(marker(&rig, "b").await);
    let other = rig
        .session
        .processors()
        .deploy(&processor("q"), other)
        .await
        .unwrap();
    let next = spec(marker(&rig, "c").await);
    rig.session
        .processors()
        .deploy(&other.name, next)
        .await
        .unwrap();
    let back = rig
        .session
        .processors()
        .rollback(&other.name, None)
        .await
        .unwrap();
    let text = said(&back);
    let unknown = "from revision 2 to revision 1, which is not known to have worked";
    assert!(
        text.starts_with(unknown) || text.starts_with("from revision 2;"),
        "{text}"
    );
}

#[tokio::test]
async fn a_revision_that_cannot_run_any_more_is_no_way_back() {
    let (rig, first) = worked().await;
    let name = processor("p");
    rig.topic("out-2", 1).await;
    let second = marker(&rig, "b").await;
    let mut second = ProcessorSpec {
        module: second,
        ..first.clone()
    };
    second.output = Some(topic("out-2"));
    rig.deploy(second.clone()).await;
    let refused = rig
        .session
        .catalogue()
        .delete_topic(&topic("out"), false)
        .await;
    let back = Loss::WayBack {
        processor: name.clone(),
        revision: 1,
    };
    assert!(
        matches!(&refused, Err(TopicDeleteError::Missed { losses, .. }) if losses == std::slice::from_ref(&back)),
        "{refused:?}"
    );
    let lost = rig
        .session
        .catalogue()
        .delete_topic(&topic("out"), true)
        .await
        .unwrap();
    assert_eq!(lost, [back]);
    let status = rig.session.processors().processor(&name).await.unwrap();
    assert_eq!(status.way_back, None);
    let refused = rig
        .session
        .processors()
        .rollback(&name, None)
        .await
        .unwrap_err();
    assert!(
        matches!(&refused, ProcessorError::WayBackGone { revisions, .. } if revisions == &[1]),
        "{refused:?}"
    );
    // A third revision goes back to the second, and reports why not to others.
    rig.produce(&[("k", "1")]).await;
    rig.hold("out-2", &["1 by b"]).await;
    until(&rig, |p| p.revision(2).unwrap().record.worked_at.is_some()).await;
    second.retry.attempts_max = 2;
    rig.deploy(second).await;
    let status = rig.session.processors().processor(&name).await.unwrap();
    assert_eq!(status.way_back, Some(2));
}

#[tokio::test]
async fn why_the_host_cannot_go_back_is_said_in_the_status() {
    let (rig, first) = worked().await;
    let name = processor("p");
    rig.topic("back", 1).await;
    let module = bad(&rig).await;
    rig.deploy(ProcessorSpec {
        module,
        output: Some(topic("back")),
        auto_rollback: true,
        ..first
    })
    .await;
    // A rollback would close a cycle: `out` is read by a processor that writes to `in`.
    let other = marker(&rig, "b").await;
    let mut round = spec(other);
    (round.topics, round.output) = (vec![topic("out")], Some(topic("in")));
    rig.session
        .processors()
        .deploy(&processor("q"), round)
        .await
        .unwrap();
    flood(&rig).await;
    for _ in 0..5_000 {
        let status = rig.session.processors().processor(&name).await.unwrap();
        if let Some(problem) = status.way_back_problem {
            assert!(problem.contains("cycle forever"), "{problem}");
            assert_eq!(status.processor.current, 2);
            return;
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    panic!("it never said so");
}

#[tokio::test]
async fn what_a_revision_gave_up_that_was_taken_back_is_sent_again_also_by_the_next_host() {
    let (rig, first) = worked().await;
    // No record can be written here, so nothing is sent.
    let foreign = TopicSpec {
        name: topic("in.p.audit"),
        partitions: 1,
        durability: Durability::Os,
        partitioner: None,
        owner: None,
        created_at: Default::default(),
        settings: Default::default(),
    };
    rig.engine()
        .create_topic(foreign, Vec::new())
        .await
        .unwrap();
    let module = bad(&rig).await;
    rig.deploy(ProcessorSpec {
        module,
        auto_rollback: true,
        auto_redrive: true,
        ..first
    })
    .await;
    rig.produce(&[("k", "x"), ("l", "y")]).await;
    rig.hold("in.p.dlq", &["x", "y"]).await;
    flood(&rig).await;
    let back = until(&rig, |p| p.current == 1).await;
    let due = back.revision(2).unwrap().redrive_due.unwrap();
    assert_eq!(due.from, 2);
    let note = back.revision(2).unwrap().note.clone().unwrap();
    assert!(note.ends_with("what it gave up is sent again"), "{note}");
    rig.settled().await;
    let letters = rig.letters().await.len();
    assert!((2..=4).contains(&letters), "{letters}");

    rig.engine()
        .delete_topic(&topic("in.p.audit"), Vec::new())
        .await
        .unwrap();
    let next = Rig::on(Arc::clone(&rig.engine), Arc::clone(&rig.modules)).await;
    until(&next, |p| p.revision(2).unwrap().redrive_due.is_none()).await;
    next.settled().await;
    assert_eq!(next.letters().await.len(), 0);
    assert_eq!(next.values("out").await.len(), 33);
    let audit = next
        .session
        .dead_letters()
        .audit(&processor("p"), None, 10)
        .await
        .unwrap();
    assert!(audit.entries.iter().all(|entry| entry.by == "host"));
}

#[tokio::test]
async fn a_promotion_says_what_the_revision_did_wrong_on_trial() {
    let (rig, first) = worked().await;
    let name = processor("p");
    let odd = per_message(|batch, message| match text(batch.value(message)).as_str() {
        "odd" => Say::Retry(Some(60_000)),
        _ => Say::Pass,
    });
    let module = rig.upload_handler("odd", odd).await;
    let mut on_trial = ProcessorSpec { module, ..first };
    on_trial.retry.attempts_max = 5;
    on_trial.retry.delay_max_ms = 60_000;
    let canary = rig
        .session
        .processors()
        .deploy_canary(&name, on_trial.clone(), 99)
        .await;
    canary.unwrap();
    let keys: Vec<String> = (0..20).map(|n| n.to_string()).collect();
    let messages: Vec<(&str, &str)> = keys.iter().map(|key| (&key[..], "even")).collect();
    rig.produce(&messages).await;
    rig.settled().await;
    rig.produce(&[("7", "odd")]).await;
    rig.until(|all| all[0].parked == 1).await;
    // Deploying the same specification promotes it, too.
    let promoted = rig
        .session
        .processors()
        .deploy(&name, on_trial)
        .await
        .unwrap();
    let text = said(&promoted);
    assert!(
        text.starts_with(
            "takes over from revision 1; on trial it had 1 failed attempts and 0 failed calls over "
        ),
        "{text}"
    );
}

#[tokio::test]
async fn a_canary_that_is_about_to_be_withdrawn_is_promoted_only_by_force() {
    let (rig, first) = worked().await;
    let module = bad(&rig).await;
    let on_trial = ProcessorSpec { module, ..first };
    let processors = rig.session.processors();
    let canary = processors
        .deploy_canary(&processor("p"), on_trial, 90)
        .await;
    canary.unwrap();
    // The withdrawal cannot load the revision that it leaves, so the host does not complete it.
    rig.modules.know("a", Export::Stuck { at_upload: false });
    flood(&rig).await;
    for _ in 0..5_000 {
        let status = processors.processor(&processor("p")).await.unwrap();
        if status.canary.is_some_and(|canary| canary.trouble.is_some()) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    let refused = processors.promote(&processor("p")).await.unwrap_err();
    assert!(
        matches!(refused, ProcessorError::TrialFails { revision: 2, .. }),
        "{refused:?}"
    );
    let promoted = processors.promote_anyway(&processor("p")).await.unwrap();
    assert_eq!(promoted.current, 2);
    let text = said(&promoted);
    assert!(text.contains("on trial it had"), "{text}");
}
