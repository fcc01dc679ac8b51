//! The rules of a route's revisions: which one is current, which one is a canary, which are kept, and what the history says. They
//! are those of a processor's revisions, as far as a route has the same.
//!
//! Each transition decides about one route from who asks and when; it reads and writes nothing else. A refused transition changes
//! nothing.

use std::time::Duration;

use millrace_model::bounds::{CHANGE_TEXT_BYTES_MAX, CHANGES_KEPT_MAX, REVISIONS_KEPT_MAX};
use millrace_model::{
    Change, ChangeKind, Route, RouteCanary, RoutePath, RouteRevision, RouteSpec, Timestamp,
};

use super::error::RouteError;
use crate::ground::caller::HOST;
use crate::ground::text::cut;

/// For this long after the host has withdrawn a canary, an operator's rollback must name its target.
const ASKED_AFTER_HOST: Duration = Duration::from_secs(60 * 60);

/// Who changes a route, and when.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asked<'a> {
    /// The name that the caller claims.
    pub(super) by: Option<&'a str>,
    pub(super) now: Timestamp,
}

/// The target of a rollback.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Asks {
    /// The target; `None` is the last revision before the current one.
    pub(super) to: Option<u32>,
    /// The revision that must be taken back; if it would be another one, the rollback is refused.
    pub(super) from: Option<u32>,
}

/// Whether the module of a revision still exists.
type CanRun<'a> = &'a dyn Fn(&RouteRevision) -> bool;

/// A route with its first revision.
pub(super) fn create(path: &RoutePath, spec: RouteSpec, asked: Asked) -> Route {
    let mut route = Route {
        path: path.clone(),
        current: 1,
        revisions: vec![revision(1, spec, asked)],
        canary: None,
        changes: Vec::new(),
    };
    record(&mut route, asked, ChangeKind::Deploy, 1, None);
    route
}

/// Makes a definition current. If it is on trial, it is promoted; if it is current already, nothing changes.
pub(super) fn set(
    route: &mut Route,
    asked: Asked,
    trouble: Option<&str>,
    spec: RouteSpec,
) -> Result<(), RouteError> {
    if route.current().is_some_and(|current| current.spec == spec) {
        return Ok(());
    }
    if is_tried(route, &spec) {
        return promote(route, asked, trouble, false);
    }
    let number = add(route, asked, spec, false);
    end_trial(route, asked, &format!("in favour of revision {number}"));
    route.current = number;
    record(route, asked, ChangeKind::Deploy, number, None);
    Ok(())
}

/// Puts a definition on trial for a share of the requests. If it is on trial already, its share changes; another trial ends.
pub(super) fn begin_canary(
    route: &mut Route,
    asked: Asked,
    spec: RouteSpec,
    percent: u32,
) -> Result<(), RouteError> {
    check_percent(percent)?;
    if route.current().is_some_and(|current| current.spec == spec) {
        return Err(RouteError::Invalid(format!(
            "it is the same as the current revision {}; there is nothing to try",
            route.current
        )));
    }
    let tried = route.canary.filter(|_| is_tried(route, &spec));
    if tried.is_some_and(|canary| canary.percent == percent) {
        return Ok(());
    }
    let number = match tried {
        Some(canary) => canary.revision,
        None => {
            let number = add(route, asked, spec, true);
            end_trial(route, asked, &format!("in favour of revision {number}"));
            number
        }
    };
    begin(route, asked, number, percent);
    Ok(())
}

fn begin(route: &mut Route, asked: Asked, revision: u32, percent: u32) {
    route.canary = Some(RouteCanary {
        revision,
        percent,
        since: asked.now,
    });
    let text = format!("{percent} % of the requests");
    record(route, asked, ChangeKind::Canary, revision, Some(text));
}

/// Changes the canary's share; 0 withdraws it.
pub(super) fn change_share(
    route: &mut Route,
    asked: Asked,
    percent: u32,
) -> Result<(), RouteError> {
    let canary = route
        .canary
        .ok_or_else(|| RouteError::NoTrial(route.path.clone()))?;
    if percent == 0 {
        return withdraw(route, asked, None);
    }
    check_percent(percent)?;
    if percent != canary.percent {
        begin(route, asked, canary.revision, percent);
    }
    Ok(())
}

/// Makes the canary current. Refused if it is about to be withdrawn (`trouble`), unless `anyway`.
pub(super) fn promote(
    route: &mut Route,
    asked: Asked,
    trouble: Option<&str>,
    anyway: bool,
) -> Result<(), RouteError> {
    let no_trial = || RouteError::NoTrial(route.path.clone());
    let revision = route.on_trial().ok_or_else(no_trial)?;
    kept(route, revision)?;
    if let Some(why) = trouble.filter(|_| !anyway) {
        return Err(RouteError::TrialFails {
            path: route.path.clone(),
            revision,
            why: why.to_owned(),
        });
    }
    let text = format!("takes over from revision {}", route.current);
    make_current(route, revision);
    route.canary = None;
    record(route, asked, ChangeKind::Promote, revision, Some(text));
    Ok(())
}

/// Ends the trial; the current revision answers all requests again.
pub(super) fn withdraw(
    route: &mut Route,
    asked: Asked,
    why: Option<String>,
) -> Result<(), RouteError> {
    let canary = route
        .canary
        .take()
        .ok_or_else(|| RouteError::NoTrial(route.path.clone()))?;
    make_void(route, canary.revision);
    record(route, asked, ChangeKind::Withdraw, canary.revision, why);
    Ok(())
}

/// Withdraws a failing canary on behalf of the host, if it is still on trial; returns whether it was.
pub(super) fn withdraw_failing(route: &mut Route, asked: Asked, revision: u32, why: &str) -> bool {
    route.on_trial() == Some(revision) && withdraw(route, asked, Some(why.to_owned())).is_ok()
}

/// Rolls back as asked. Without a target, or with the current revision as the target, a canary is withdrawn and the current one stays.
pub(super) fn roll_back(
    route: &mut Route,
    asked: Asked,
    asks: Asks,
    can_run: CanRun,
) -> Result<(), RouteError> {
    let trial = route.on_trial();
    let takes_back = trial.unwrap_or(route.current);
    if let Some(expected) = asks.from.filter(|&expected| expected != takes_back) {
        return Err(RouteError::OtherRevision {
            path: route.path.clone(),
            expected,
            current: takes_back,
        });
    }
    let is_current = |number| number == route.current;
    if asks.to.is_none_or(is_current) && trial.is_some() {
        return withdraw(route, asked, None);
    }
    let target = match asks.to {
        Some(number) if is_current(number) => return Ok(()),
        Some(number) => kept(route, number)?.number,
        None => one_step_back(route, asked.now, can_run)?,
    };
    let from = route.current;
    if trial == Some(target) {
        route.canary = None;
    } else {
        end_trial(route, asked, &format!("revision {from} was taken back"));
    }
    make_void(route, from);
    make_current(route, target);
    let text = format!("from revision {from}");
    record(route, asked, ChangeKind::Rollback, target, Some(text));
    Ok(())
}

/// The target of a rollback without a number.
fn one_step_back(route: &Route, now: Timestamp, can_run: CanRun) -> Result<u32, RouteError> {
    let before = route.way_back(can_run).map(|back| back.number);
    let before = before.ok_or_else(|| RouteError::NothingToRollBack(route.path.clone()))?;
    let by_host = |change: &&Change| {
        let is_recent = change.at.until(now) < ASKED_AFTER_HOST;
        change.what == ChangeKind::Withdraw && change.by.as_deref() == Some(HOST) && is_recent
    };
    match route.changes.last().filter(by_host) {
        Some(withdrawn) => Err(RouteError::RolledBackAlready {
            path: route.path.clone(),
            current: route.current,
            withdrawn: withdrawn.revision,
            further: before,
        }),
        None => Ok(before),
    }
}

fn make_current(route: &mut Route, number: u32) {
    for revision in route.revisions.iter_mut().filter(|r| r.number == number) {
        (revision.trial, revision.voided) = (false, false);
    }
    route.current = number;
}

fn make_void(route: &mut Route, number: u32) {
    for revision in route.revisions.iter_mut().filter(|r| r.number == number) {
        revision.voided = true;
    }
}

/// Adds a revision that is about to become current or a canary; returns its number.
fn add(route: &mut Route, asked: Asked, spec: RouteSpec, trial: bool) -> u32 {
    let newest = route.revisions.iter().map(|r| r.number).max();
    let number = newest.unwrap_or(0).max(route.current) + 1;
    route.revisions.push(RouteRevision {
        trial,
        ..revision(number, spec, asked)
    });
    forget_oldest(route, number);
    number
}

/// Removes revisions beyond the maximum: first those that no rollback leads to by itself, then the oldest.
fn forget_oldest(route: &mut Route, newest: u32) {
    while route.revisions.len() > REVISIONS_KEPT_MAX {
        let back = route.way_back(|_| true).map(|r| r.number);
        let stays = |r: &RouteRevision| {
            [Some(newest), Some(route.current), route.on_trial(), back].contains(&Some(r.number))
        };
        let revisions = &route.revisions;
        let idle = |r: &RouteRevision| (r.trial || r.voided) && !stays(r);
        let oldest = revisions.iter().position(idle);
        match oldest.or_else(|| revisions.iter().position(|r| !stays(r))) {
            Some(oldest) => route.revisions.remove(oldest),
            None => break,
        };
    }
}

fn revision(number: u32, spec: RouteSpec, asked: Asked) -> RouteRevision {
    RouteRevision {
        number,
        spec,
        set_at: asked.now,
        set_by: asked.by.map(str::to_owned),
        trial: false,
        voided: false,
    }
}

/// Ends a trial if there is one. The history records `why`.
fn end_trial(route: &mut Route, asked: Asked, why: &str) {
    // Without a trial there is nothing to end.
    let _ = withdraw(route, asked, Some(why.to_owned()));
}

/// Adds a change to the history.
fn record(route: &mut Route, asked: Asked, what: ChangeKind, revision: u32, text: Option<String>) {
    let excess = (route.changes.len() + 1).saturating_sub(CHANGES_KEPT_MAX);
    route.changes.drain(..excess);
    route.changes.push(Change {
        at: asked.now,
        by: asked.by.map(str::to_owned),
        what,
        revision,
        text: text.map(|text| cut(text, CHANGE_TEXT_BYTES_MAX)),
    });
}

/// The revision with this number, or an error that names the kept ones.
fn kept(route: &Route, number: u32) -> Result<&RouteRevision, RouteError> {
    let unknown = || RouteError::NoSuchRevision {
        path: route.path.clone(),
        revision: number,
        kept: route.revisions.iter().map(|r| r.number).collect(),
    };
    route.revision(number).ok_or_else(unknown)
}

/// Whether the canary has this definition.
fn is_tried(route: &Route, spec: &RouteSpec) -> bool {
    let tried = route.on_trial().and_then(|number| route.revision(number));
    tried.is_some_and(|revision| revision.spec == *spec)
}

fn check_percent(percent: u32) -> Result<(), RouteError> {
    match percent {
        1..=99 => Ok(()),
        _ => Err(RouteError::Invalid(format!(
            "a canary's share is 1 to 99 %, not {percent} %. To give it all requests, promote it; to give it none, withdraw it (a share of 0)"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use millrace_model::Digest;
    use millrace_model::bounds::REVISIONS_KEPT_MAX;

    use super::*;

    fn spec(number: u8) -> RouteSpec {
        RouteSpec {
            module: Digest([number; 32]),
            grants: Default::default(),
            config: Default::default(),
            limits: Default::default(),
            breaker: Default::default(),
            public: false,
        }
    }

    fn asked(at: u64) -> Asked<'static> {
        Asked {
            by: Some("ops"),
            now: Timestamp(at),
        }
    }

    fn by_host(at: u64) -> Asked<'static> {
        Asked {
            by: Some(HOST),
            now: Timestamp(at),
        }
    }

    /// A route with this many revisions, the last one current.
    fn route(revisions: u8) -> Route {
        let path = RoutePath::parse("/a").unwrap();
        let mut route = create(&path, spec(1), asked(1));
        for number in 2..=revisions {
            set(&mut route, asked(number.into()), None, spec(number)).unwrap();
        }
        route
    }

    fn back(route: &mut Route, to: Option<u32>) -> Result<(), RouteError> {
        let asks = Asks { to, from: None };
        roll_back(route, asked(100), asks, &|_| true)
    }

    fn last(route: &Route) -> (ChangeKind, u32) {
        let change = route.changes.last().unwrap();
        (change.what, change.revision)
    }

    #[test]
    fn the_same_definition_again_is_no_revision() {
        let mut route = route(2);
        let before = route.clone();
        set(&mut route, asked(9), None, spec(2)).unwrap();
        assert_eq!(route, before);
        set(&mut route, asked(9), None, spec(1)).unwrap();
        assert_eq!((route.current, route.revisions.len()), (3, 3));
    }

    #[test]
    fn a_canary_takes_its_share_beside_the_current_revision_until_it_is_promoted() {
        let mut route = route(1);
        begin_canary(&mut route, asked(5), spec(2), 10).unwrap();
        assert_eq!((route.current, route.on_trial()), (1, Some(2)));
        assert!(route.revision(2).unwrap().trial);
        begin_canary(&mut route, asked(6), spec(2), 50).unwrap();
        assert_eq!(route.canary.unwrap().percent, 50);
        assert_eq!(route.revisions.len(), 2, "it goes on");
        change_share(&mut route, asked(7), 60).unwrap();
        promote(&mut route, asked(8), None, false).unwrap();
        assert_eq!((route.current, route.on_trial()), (2, None));
        assert!(!route.revision(2).unwrap().trial);
        assert_eq!(last(&route), (ChangeKind::Promote, 2));
        back(&mut route, None).unwrap();
        assert_eq!(route.current, 1);
    }

    #[test]
    fn setting_the_definition_of_the_canary_promotes_it_and_setting_another_ends_it() {
        let mut one = route(1);
        begin_canary(&mut one, asked(5), spec(2), 10).unwrap();
        let mut other = one.clone();
        set(&mut one, asked(6), None, spec(2)).unwrap();
        assert_eq!((one.current, one.on_trial()), (2, None));
        set(&mut other, asked(6), None, spec(3)).unwrap();
        assert_eq!((other.current, other.on_trial()), (3, None));
        assert!(other.revision(2).unwrap().voided);
        back(&mut other, None).unwrap();
        assert_eq!(other.current, 1, "what was only tried is passed over");
    }

    #[test]
    fn what_is_no_trial_is_refused_and_changes_nothing() {
        let mut route = route(1);
        let before = route.clone();
        for percent in [0, 100] {
            let refused = begin_canary(&mut route, asked(5), spec(2), percent);
            assert!(matches!(refused, Err(RouteError::Invalid(_))));
        }
        let same = begin_canary(&mut route, asked(5), spec(1), 10);
        assert!(matches!(same, Err(RouteError::Invalid(_))));
        let none = promote(&mut route, asked(5), None, false);
        assert!(matches!(none, Err(RouteError::NoTrial(_))));
        let none = change_share(&mut route, asked(5), 10);
        assert!(matches!(none, Err(RouteError::NoTrial(_))));
        assert_eq!(route, before);
    }

    #[test]
    fn a_failing_canary_is_promoted_only_by_force_and_withdrawn_once() {
        let mut route = route(1);
        begin_canary(&mut route, asked(5), spec(2), 10).unwrap();
        let refused = promote(&mut route, asked(6), Some("it fails"), false);
        assert!(matches!(refused, Err(RouteError::TrialFails { .. })));
        let mut forced = route.clone();
        promote(&mut forced, asked(6), Some("it fails"), true).unwrap();
        assert_eq!(forced.current, 2);
        assert!(!withdraw_failing(&mut forced, by_host(7), 2, "it fails"));
        assert_eq!(forced.current, 2, "it is no canary any more");
        assert!(withdraw_failing(&mut route, by_host(7), 2, "it fails"));
        assert_eq!((route.current, route.on_trial()), (1, None));
        assert_eq!(last(&route), (ChangeKind::Withdraw, 2));
    }

    #[test]
    fn a_rollback_goes_one_revision_further_back_each_time() {
        let mut route = route(3);
        back(&mut route, None).unwrap();
        assert_eq!(route.current, 2);
        back(&mut route, None).unwrap();
        assert_eq!(route.current, 1);
        let end = back(&mut route, None);
        assert!(matches!(end, Err(RouteError::NothingToRollBack(_))));
        back(&mut route, Some(3)).unwrap();
        assert_eq!(route.current, 3);
        let unknown = back(&mut route, Some(9));
        assert!(matches!(unknown, Err(RouteError::NoSuchRevision { .. })));
        set(&mut route, asked(101), None, spec(4)).unwrap();
        back(&mut route, None).unwrap();
        assert_eq!(route.current, 3, "what was made current again counts again");
    }

    #[test]
    fn a_rollback_passes_over_a_revision_whose_module_is_gone() {
        let mut route = route(3);
        let can_run = |revision: &RouteRevision| revision.number != 2;
        roll_back(&mut route, asked(9), Asks::default(), &can_run).unwrap();
        assert_eq!(route.current, 1);
    }

    #[test]
    fn a_rollback_withdraws_a_canary_and_a_late_one_goes_no_step_too_far() {
        let mut route = route(2);
        begin_canary(&mut route, asked(5), spec(3), 10).unwrap();
        let mut withdrawn = route.clone();
        back(&mut withdrawn, None).unwrap();
        assert_eq!((withdrawn.current, withdrawn.on_trial()), (2, None));

        let expecting = Asks {
            to: None,
            from: Some(3),
        };
        withdraw_failing(&mut route, by_host(6), 3, "it fails");
        let late = roll_back(&mut route, asked(7), expecting, &|_| true);
        assert!(matches!(late, Err(RouteError::OtherRevision { .. })));
        let late = roll_back(&mut route, asked(7), Asks::default(), &|_| true);
        assert!(matches!(
            late,
            Err(RouteError::RolledBackAlready {
                withdrawn: 3,
                further: 1,
                ..
            })
        ));
        let hour_later = asked(6 + 60 * 60 * 1_000);
        roll_back(&mut route, hour_later, Asks::default(), &|_| true).unwrap();
        assert_eq!(route.current, 1);
    }

    #[test]
    fn revisions_are_kept_up_to_a_bound_and_those_that_run_are_among_them() {
        let mut route = route(2);
        for number in 3..=100 {
            begin_canary(&mut route, asked(number.into()), spec(number), 10).unwrap();
            assert!(route.revisions.len() <= REVISIONS_KEPT_MAX);
            let kept = [1, 2, number.into()].map(|number| route.revision(number).is_some());
            assert_eq!(kept, [true; 3], "{number}");
        }
        for number in 101..=200 {
            set(&mut route, asked(number.into()), None, spec(number)).unwrap();
        }
        assert_eq!(route.revisions.len(), REVISIONS_KEPT_MAX);
        assert!(route.changes.len() <= CHANGES_KEPT_MAX);
        let newest: Vec<u32> = route.revisions.iter().map(|r| r.number).collect();
        let oldest = 200 - REVISIONS_KEPT_MAX as u32 + 1;
        assert_eq!(newest, Vec::from_iter(oldest..=200));
    }
}
