//! Positions of consumer groups: committed for many topics at once, returned unchanged, deleted
//! singly or together.

use std::collections::BTreeSet;
use std::sync::Arc;

use millrace_broker::{BrokerLimits, ConsumerError, GroupPosition, NewPosition};
use millrace_model::bounds::{GROUP_COMMIT_POSITIONS_MAX, POSITION_NOTE_BYTES_MAX};
use millrace_model::{ConsumerName, GroupName, Offset, PartitionId, SystemClock};

use crate::rig::{Rig, topic};

fn position(name: &str, partition: u32, offset: u64) -> NewPosition {
    NewPosition {
        topic: topic(name),
        partition: PartitionId(partition),
        offset: Offset(offset),
        leader_epoch: None,
        note: String::new(),
    }
}

fn group() -> GroupName {
    GroupName::consumer("billing")
}

async fn commit(rig: &Rig, positions: &[NewPosition]) -> Result<(), ConsumerError> {
    let groups = rig.session.consumers();
    groups.commit_positions(&group(), positions.to_vec()).await
}

async fn positions(rig: &Rig) -> Vec<NewPosition> {
    let positions = rig.session.consumers().positions(&group(), None).await;
    let positions = positions.unwrap().into_iter();
    positions
        .map(|GroupPosition { position, .. }| position)
        .collect()
}

#[tokio::test]
async fn positions_come_back_as_they_were_committed_also_after_a_restart() {
    let rig = Rig::start(3).await;
    rig.produce(&[("a", "1"), ("b", "2")]).await;
    assert!(positions(&rig).await.is_empty());
    let told = NewPosition {
        leader_epoch: Some(4),
        note: "as far as invoice 7 – ünïcode".to_owned(),
        ..position("in", 2, 0)
    };
    let committed = [told.clone(), position("out", 0, 0)];
    commit(&rig, &committed).await.unwrap();
    assert_eq!(positions(&rig).await, committed);
    let rig = Rig::on(Arc::clone(&rig.engine), Arc::clone(&rig.modules)).await;
    assert_eq!(positions(&rig).await, committed);
    let groups = rig.session.consumers();
    let of_topic = groups
        .positions(&group(), Some(&topic("in")))
        .await
        .unwrap();
    assert_eq!(of_topic.len(), 1);
    assert_eq!(of_topic[0].position, told);
    // A group may move backwards.
    rig.produce(&[("a", "1"); 9]).await;
    commit(&rig, &[position("out", 0, 0), position("in", 1, 1)])
        .await
        .unwrap();
    commit(&rig, &[position("in", 1, 0)]).await.unwrap();
    let expected = [position("in", 1, 0), told, position("out", 0, 0)];
    assert_eq!(positions(&rig).await, expected);
}

#[tokio::test]
async fn groups_do_not_meet_each_other_nor_consumers_of_the_same_name() {
    let rig = Rig::start(1).await;
    let groups = rig.session.consumers();
    let name = ConsumerName::parse("billing").unwrap();
    groups
        .make_consumer(&topic("in"), &name, None)
        .await
        .unwrap();
    commit(&rig, &[position("in", 0, 7)]).await.unwrap();
    let other = GroupName::consumer("billing2");
    let new = vec![position("in", 0, 1), position("out", 0, 2)];
    groups.commit_positions(&other, new).await.unwrap();
    assert_eq!(
        groups.groups().await.unwrap(),
        BTreeSet::from([group(), other])
    );
    assert_eq!(positions(&rig).await, [position("in", 0, 7)]);
    let consumers = groups.all_consumers().await.unwrap();
    assert_eq!(consumers.len(), 1);
    assert_eq!(
        groups
            .consumer(&topic("in"), &name)
            .await
            .unwrap()
            .partitions[0]
            .position
            .0,
        0
    );
    groups.delete_consumer(&topic("in"), &name).await.unwrap();
    assert_eq!(positions(&rig).await, [position("in", 0, 7)]);
}

#[tokio::test]
async fn deleted_positions_are_gone_and_so_are_those_of_deleted_topics() {
    let rig = Rig::start(2).await;
    let all = [
        position("in", 0, 0),
        position("in", 1, 0),
        position("out", 0, 0),
        position("out", 1, 0),
    ];
    commit(&rig, &all).await.unwrap();
    let groups = rig.session.consumers();
    let places = BTreeSet::from([
        (topic("in"), PartitionId(1)),
        (topic("out"), PartitionId(0)),
        (topic("out"), PartitionId(9)),
    ]);
    let deleted = groups.delete_positions(&group(), Some(&places)).await;
    assert_eq!(deleted.unwrap(), 2);
    assert_eq!(positions(&rig).await, [all[0].clone(), all[3].clone()]);
    rig.session
        .catalogue()
        .delete_topic(&topic("in"), false)
        .await
        .unwrap();
    assert_eq!(positions(&rig).await, [all[3].clone()]);
    assert_eq!(groups.delete_positions(&group(), None).await.unwrap(), 1);
    assert!(groups.groups().await.unwrap().is_empty());
    assert_eq!(groups.delete_positions(&group(), None).await.unwrap(), 0);
}

#[tokio::test]
async fn a_refused_commit_writes_none_of_its_positions() {
    let rig = Rig::start(1).await;
    let sound = position("in", 0, 0);
    let long = NewPosition {
        note: "x".repeat(POSITION_NOTE_BYTES_MAX + 1),
        ..position("in", 0, 0)
    };
    for bad in [position("none", 0, 0), position("in", 1, 0), long] {
        let error = commit(&rig, &[sound.clone(), bad]).await;
        assert!(error.is_err());
    }
    let many = vec![sound.clone(); GROUP_COMMIT_POSITIONS_MAX + 1];
    assert!(matches!(
        commit(&rig, &many).await,
        Err(ConsumerError::TooManyPositions { .. })
    ));
    let groups = rig.session.consumers();
    for bad in [
        GroupName::service("x"),
        GroupName::consumer(&"x".repeat(300)),
    ] {
        let error = groups.commit_positions(&bad, vec![sound.clone()]).await;
        assert!(matches!(error, Err(ConsumerError::GroupName)), "{bad}");
    }
    assert!(positions(&rig).await.is_empty());
    commit(&rig, &[]).await.unwrap();
}

#[tokio::test]
async fn a_position_past_the_end_is_taken_and_a_restart_moves_it_to_the_end() {
    let rig = Rig::start(1).await;
    rig.produce(&[("a", "1")]).await;
    commit(&rig, &[position("in", 0, 1 << 40), position("out", 0, 0)])
        .await
        .unwrap();
    assert_eq!(positions(&rig).await[0], position("in", 0, 1 << 40));
    let rig = Rig::on(Arc::clone(&rig.engine), Arc::clone(&rig.modules)).await;
    assert_eq!(
        positions(&rig).await,
        [position("in", 0, 1), position("out", 0, 0)]
    );
}

#[tokio::test]
async fn two_hosts_commit_in_turns_and_each_finds_what_the_other_committed() {
    let one = Rig::start(2).await;
    one.produce(&[("a", "1"); 40]).await;
    let clock = Arc::new(SystemClock::new());
    let (engine, modules) = (one.engine.second_host(), Arc::clone(&one.modules));
    let two = Rig::beside(clock, engine, modules, BrokerLimits::default()).await;
    for round in 0..20 {
        let (writes, reads) = match round % 2 {
            0 => (&one, &two),
            _ => (&two, &one),
        };
        let new = [position("in", 0, round), position("out", 1, round)];
        commit(writes, &new).await.unwrap();
        // After its own commit, a host sees all earlier ones of other hosts.
        commit(reads, &[position("in", 1, round)]).await.unwrap();
        let all = positions(reads).await;
        assert_eq!(all[0], new[0]);
        assert_eq!(all[1], position("in", 1, round));
    }
    let at = |offset| [position("in", 0, offset), position("out", 0, offset)];
    let (first, second) = (at(30), at(31));
    let (a, b) = tokio::join!(commit(&one, &first), commit(&two, &second));
    a.unwrap();
    b.unwrap();
    commit(&one, &[position("in", 1, 0)]).await.unwrap();
    commit(&one, &[position("out", 1, 0)]).await.unwrap();
    let all = positions(&one).await;
    assert_eq!(all[0].offset, all[2].offset, "both or neither: {all:?}");
}
