//! Promises about progress and leases: which writer may set a group's progress, and that it is
//! kept.

use std::collections::BTreeSet;
use std::sync::Arc;

use millrace_model::{Attempt, GivenUp, Offset, Parked, Progress, ProgressChange, Timestamp};

use super::{append, at, end, entry, make_partition, make_topic, named, progress, values};
use crate::contract::{
    CommitError, Engine, EntryKind, GroupProgress, Hold, Lease, ProgressWrite, ReadError, Receipt,
    Transaction,
};

pub(super) fn up_to(next: u64) -> Progress {
    Progress {
        next: Offset(next),
        ..Progress::default()
    }
}

/// Progress with something in every field.
pub(super) fn with_parked(next: u64, parked: usize) -> Progress {
    let parked = (0..parked as u64).map(|offset| Parked {
        offset: Offset(offset),
        ordering: (offset % 2 == 0).then_some(u64::MAX - offset),
        due: (offset % 3 == 0).then_some(Timestamp(offset)),
        attempts: 3,
        revision: 2,
        own_attempts: 1,
        current_only: offset % 2 == 1,
        held_since: None,
        first_failed_at: Timestamp(7),
        log: vec![Attempt {
            at: Timestamp(9),
            revision: 2,
            class: "busy".to_owned(),
            reason: "the lookup said no: ↯".to_owned(),
        }],
    });
    Progress {
        next: Offset(next),
        revision: 4,
        parked: parked.collect(),
        first_call: Some(Offset(next + 1)),
        given_up: Some(GivenUp {
            run: 2,
            messages: 3,
        }),
    }
}

pub(super) async fn commit_progress(
    engine: &dyn Engine,
    lease: &Lease,
    committed: Progress,
) -> Result<Receipt, CommitError> {
    let write = ProgressWrite {
        partition: lease.partition,
        lease: lease.clone(),
        progress: committed.into(),
    };
    engine.commit(progress(write)).await
}

/// Progress that differs from [`with_parked`] with twenty messages: some are gone, some changed,
/// some are new.
pub(super) fn of_twenty_parked() -> Progress {
    let mut progress = with_parked(40, 30);
    progress.parked.retain(|parked| parked.offset.0 % 4 != 1);
    for parked in &mut progress.parked {
        parked.attempts += u32::from(parked.offset.0 % 5 == 0);
    }
    progress.first_call = None;
    progress
}

/// However much is parked, only the named messages change.
pub async fn a_change_says_what_became_of_each_parked_message(engine: Arc<dyn Engine>) {
    let partition = make_partition(&*engine, "orders").await;
    let old = engine
        .claim(&named("group"), partition)
        .await
        .expect("claimed")
        .lease;
    let (before, after) = (with_parked(20, 20), of_twenty_parked());
    let come = async |lease: &Lease, change: ProgressChange| {
        let write = ProgressWrite {
            lease: lease.clone(),
            partition,
            progress: change,
        };
        engine.commit(progress(write)).await
    };
    let shown = async || {
        engine
            .progress(&named("group"), partition)
            .await
            .expect("read")
    };
    // A change from empty progress contains all of it.
    let begun = come(&old, Progress::default().change_to(&before)).await;
    begun.expect("committed");
    assert_eq!(shown().await, Some(before.clone()));
    let lease = engine
        .claim(&named("group"), partition)
        .await
        .expect("claimed")
        .lease;
    let fenced = come(&old, before.change_to(&after)).await;
    assert_fenced(&fenced, &old);
    assert_eq!(shown().await, Some(before.clone()));
    for (from, to) in [(&before, &after), (&after, &after), (&after, &before)] {
        come(&lease, from.change_to(to)).await.expect("committed");
        assert_eq!(shown().await.as_ref(), Some(to));
    }
    come(&lease, up_to(50).into()).await.expect("committed");
    assert_eq!(shown().await, Some(up_to(50)), "nothing stays parked");
}

/// Like the offsets of a consumer group within a transaction.
pub async fn several_groups_come_on_together_or_not_at_all(engine: Arc<dyn Engine>) {
    let topic = make_topic(&*engine, "orders", 2).await;
    let claim = async |group, partition| {
        let hold = engine.claim(&named(group), at(&topic, partition)).await;
        hold.expect("claimed").lease
    };
    let leases = [
        claim("a", 0).await,
        claim("a", 1).await,
        claim("b", 0).await,
    ];
    let come = async |next| {
        let progress = leases.iter().map(|lease| ProgressWrite {
            lease: lease.clone(),
            partition: lease.partition,
            progress: up_to(next).into(),
        });
        let transaction = Transaction {
            appends: vec![append(at(&topic, 1), &["output"])],
            progress: progress.collect(),
            ..Transaction::default()
        };
        engine.commit(transaction).await
    };
    let shown = async || {
        let mut shown = Vec::new();
        for lease in &leases {
            let found = engine.progress(&lease.group, lease.partition).await;
            shown.push(found.expect("read").map(|progress| progress.next.0));
        }
        shown
    };
    come(3).await.expect("committed");
    assert_eq!(shown().await, [Some(3); 3]);
    claim("b", 0).await;
    assert_fenced(&come(4).await, &leases[2]);
    assert_eq!(shown().await, [Some(3); 3]);
    assert_eq!(values(&*engine, at(&topic, 1)).await, ["output"]);
}

pub(super) fn assert_fenced(refused: &Result<Receipt, CommitError>, lease: &Lease) {
    assert!(
        matches!(refused, Err(CommitError::Fenced { group, partition })
            if *group == lease.group && *partition == lease.partition),
        "{refused:?}"
    );
}

/// Including its appends and entries; the newer lease continues as if nothing had happened.
pub async fn a_newer_claim_fences_the_older_lease_and_its_commit_changes_nothing(
    engine: Arc<dyn Engine>,
) {
    let topic = make_topic(&*engine, "orders", 2).await;
    let (input, output) = (at(&topic, 0), at(&topic, 1));
    let old = engine
        .claim(&named("group"), input)
        .await
        .expect("claimed")
        .lease;
    assert_eq!((&old.group, old.partition), (&named("group"), input));
    let under_old = commit_progress(&*engine, &old, up_to(1)).await;
    under_old.expect("nobody claimed anew");

    let new = engine
        .claim(&named("group"), input)
        .await
        .expect("claimed")
        .lease;
    assert!(new.epoch > old.epoch, "epochs count the claims");
    let before = end(&*engine, output);
    let fenced = engine
        .commit(Transaction {
            appends: vec![append(output, &["by the old one"])],
            progress: vec![ProgressWrite {
                partition: old.partition,
                lease: old.clone(),
                progress: up_to(2).into(),
            }],
            entries: vec![entry(EntryKind::Redriven, "key", Some("by the old one"))],
            ..Transaction::default()
        })
        .await;
    assert_fenced(&fenced, &old);
    assert_eq!(end(&*engine, output), before);
    assert_eq!(values(&*engine, output).await, [""; 0]);
    assert_eq!(engine.entry(EntryKind::Redriven, "key"), None);
    let stored = engine.progress(&named("group"), input).await.unwrap();
    assert_eq!(stored, Some(up_to(1)));

    let under_new = commit_progress(&*engine, &new, up_to(3)).await;
    under_new.expect("the newest lease");
    let fenced = commit_progress(&*engine, &old, up_to(4)).await;
    assert_fenced(&fenced, &old);
    let stored = engine.progress(&named("group"), input).await.unwrap();
    assert_eq!(stored, Some(up_to(3)));
}

/// A claim affects only one group in one partition.
pub async fn claims_elsewhere_do_not_fence(engine: Arc<dyn Engine>) {
    let topic = make_topic(&*engine, "orders", 2).await;
    let other_topic = make_partition(&*engine, "returns").await;
    let lease = engine
        .claim(&named("group"), at(&topic, 0))
        .await
        .unwrap()
        .lease;
    for (group, partition) in [
        ("group", at(&topic, 1)),
        ("other", at(&topic, 0)),
        ("group", other_topic),
    ] {
        engine
            .claim(&named(group), partition)
            .await
            .expect("claimed");
        engine
            .claim(&named(group), partition)
            .await
            .expect("claimed again");
    }
    let kept = commit_progress(&*engine, &lease, up_to(1)).await;
    kept.expect("nobody claimed the same");
}

/// An invented epoch is not accepted either.
pub async fn a_lease_that_was_never_given_is_fenced(engine: Arc<dyn Engine>) {
    let partition = make_partition(&*engine, "orders").await;
    let mut invented = Lease {
        group: named("group"),
        partition,
        epoch: 1,
    };
    let refused = commit_progress(&*engine, &invented, up_to(1)).await;
    assert_fenced(&refused, &invented);
    let given = engine
        .claim(&named("group"), partition)
        .await
        .expect("claimed")
        .lease;
    invented.epoch = given.epoch + 1;
    let refused = commit_progress(&*engine, &invented, up_to(1)).await;
    assert_fenced(&refused, &invented);
    assert_eq!(
        engine.progress(&named("group"), partition).await.unwrap(),
        None
    );
}

/// Only once; releasing a hold after the work was taken again has no effect.
pub async fn what_is_given_back_as_left_is_told_to_whoever_holds_it_next(engine: Arc<dyn Engine>) {
    let partition = make_partition(&*engine, "orders").await;
    let hold = async || {
        let held = engine.hold(&named("group"), partition).await;
        held.expect("the partition is there")
            .expect("nobody has it")
    };
    let give_back = async |mut hold: Hold, left| {
        hold.left = left;
        let given = engine.release(hold).await;
        given.expect("given back");
    };
    let first = hold().await;
    let second = hold().await;
    give_back(first, true).await;
    give_back(second, false).await;
    let third = hold().await;
    assert!(!third.left, "nothing was left");
    give_back(third, true).await;
    let claimed = engine.claim(&named("group"), partition).await;
    engine
        .release(claimed.expect("claimed"))
        .await
        .expect("given back");
    let fourth = hold().await;
    assert!(fourth.left, "whoever claimed it was not to work");
    give_back(fourth, false).await;
    assert!(!hold().await.left, "it was told");
}

/// Concurrent claims get different epochs, and only one of them can commit.
pub async fn of_many_claims_only_the_newest_commits(engine: Arc<dyn Engine>) {
    let partition = make_partition(&*engine, "orders").await;
    let claims: Vec<_> = (0..16)
        .map(|_| {
            let engine = engine.clone();
            tokio::spawn(async move { engine.claim(&named("group"), partition).await })
        })
        .collect();
    let mut leases = Vec::new();
    for claim in claims {
        let claimed = claim.await.expect("the task finished");
        leases.push(claimed.expect("claimed").lease);
    }
    let epochs: BTreeSet<u64> = leases.iter().map(|lease| lease.epoch).collect();
    assert_eq!(epochs.len(), leases.len(), "each claim has its own epoch");
    for lease in &leases {
        let result = commit_progress(&*engine, lease, up_to(lease.epoch)).await;
        if Some(&lease.epoch) == epochs.last() {
            result.expect("the newest lease");
        } else {
            assert_fenced(&result, lease);
        }
    }
    let stored = engine.progress(&named("group"), partition).await.unwrap();
    assert_eq!(stored, epochs.last().map(|&epoch| up_to(epoch)));
}

/// The next holder continues where the last one stopped.
pub async fn a_claim_leaves_progress_alone(engine: Arc<dyn Engine>) {
    let partition = make_partition(&*engine, "orders").await;
    let lease = engine
        .claim(&named("group"), partition)
        .await
        .expect("claimed")
        .lease;
    let unwritten = engine.progress(&named("group"), partition).await.unwrap();
    assert_eq!(unwritten, None, "a claim is no progress");
    let kept = with_parked(9, 3);
    let written = commit_progress(&*engine, &lease, kept.clone()).await;
    written.expect("committed");
    engine
        .claim(&named("group"), partition)
        .await
        .expect("claimed");
    let stored = engine.progress(&named("group"), partition).await.unwrap();
    assert_eq!(stored, Some(kept));
}

/// Nothing of the old progress remains: neither its parked messages nor its position.
pub async fn progress_is_replaced_whole(engine: Arc<dyn Engine>) {
    let partition = make_partition(&*engine, "orders").await;
    let lease = engine
        .claim(&named("group"), partition)
        .await
        .expect("claimed")
        .lease;
    for next in [with_parked(9, 3), with_parked(12, 50), up_to(12), up_to(2)] {
        let written = commit_progress(&*engine, &lease, next.clone()).await;
        written.expect("committed");
        let stored = engine.progress(&named("group"), partition).await.unwrap();
        assert_eq!(stored, Some(next));
    }
}

/// Groups in one partition, and one group in several partitions, do not mix.
pub async fn progress_is_kept_per_group_and_partition(engine: Arc<dyn Engine>) {
    let topic = make_topic(&*engine, "orders", 2).await;
    let places = [("a", 0), ("a", 1), ("b", 0), ("b", 1)];
    for (number, (group, partition)) in places.into_iter().enumerate() {
        let lease = engine
            .claim(&named(group), at(&topic, partition))
            .await
            .unwrap()
            .lease;
        let written = commit_progress(&*engine, &lease, up_to(number as u64)).await;
        written.expect("committed");
    }
    for (number, (group, partition)) in places.into_iter().enumerate() {
        let stored = engine.progress(&named(group), at(&topic, partition)).await;
        assert_eq!(stored.unwrap(), Some(up_to(number as u64)));
    }
    let nobody = engine.progress(&named("c"), at(&topic, 0)).await.unwrap();
    assert_eq!(nobody, None);
}

/// Which groups have progress in a partition, and where a group has some. A claim alone creates
/// none, and a deleted topic leaves none.
pub async fn it_is_known_who_has_progress_where(engine: Arc<dyn Engine>) {
    let topic = make_topic(&*engine, "orders", 2).await;
    let (first, second) = (at(&topic, 0), at(&topic, 1));
    for (group, partition) in [("b", first), ("a", first), ("a", second)] {
        let lease = engine
            .claim(&named(group), partition)
            .await
            .expect("claimed")
            .lease;
        let written = commit_progress(&*engine, &lease, up_to(1)).await;
        written.expect("committed");
    }
    engine.claim(&named("c"), first).await.expect("claimed");
    let asked = [named("a"), named("c")];
    let at_once = engine.progress_at_once(&asked).await.expect("readable");
    if let Some(mut all) = at_once {
        all.sort_by_key(|one| one.partition);
        let of_a = [first, second].map(|partition| GroupProgress {
            group: named("a"),
            partition,
            progress: up_to(1),
        });
        assert_eq!(all, of_a);
    }
    let groups = async |partition| engine.groups(partition).await.expect("a partition");
    assert_eq!(groups(first).await, [named("a"), named("b")]);
    assert_eq!(groups(second).await, [named("a")]);
    assert_eq!(
        engine
            .progress_partitions(&named("a"))
            .await
            .expect("readable"),
        [first, second]
    );
    assert_eq!(
        engine
            .progress_partitions(&named("b"))
            .await
            .expect("readable"),
        [first]
    );
    assert_eq!(
        engine
            .progress_partitions(&named("c"))
            .await
            .expect("readable"),
        []
    );
    engine
        .delete_topic(&topic.spec.name, Vec::new())
        .await
        .expect("deleted");
    assert_eq!(
        engine
            .progress_partitions(&named("a"))
            .await
            .expect("readable"),
        []
    );
    let gone = engine.groups(first).await;
    assert!(matches!(gone, Err(ReadError::UnknownPartition(_))));
}
