//! Adds up what several hosts count: plain functions of their answers. A partition shows how it is on the host that works it.

use std::collections::BTreeMap;

use millrace_broker::{
    BreakerStatus, CanaryStatus, GuestLine, PartitionStatus, ShadowReport, SideStatus,
};
use millrace_model::bounds::{SHADOW_KINDS_MAX, SHADOW_SAMPLES_MAX};
use millrace_model::{Offset, PartitionId, ProcessorName, TopicName};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// What a host counts of a processor. The rest of its answer is in the store, and the same for all.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Counted {
    pub(super) name: ProcessorName,
    pub(super) partitions: Vec<PartitionStatus>,
    pub(super) breaker: Option<BreakerStatus>,
    pub(super) canary_status: Option<CanaryStatus>,
}

/// What a host counts of all processors.
#[derive(Debug, Deserialize)]
pub(super) struct CountedList {
    pub(super) processors: Vec<Counted>,
}

/// The log lines of one host.
#[derive(Debug, Deserialize)]
pub(super) struct LinesOfHost {
    pub(super) lines: Vec<GuestLine>,
    pub(super) dropped: Option<u64>,
}

/// A log line, and the host whose component logged it.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = LogLine)]
pub(super) struct Line {
    #[serde(flatten)]
    line: GuestLine,
    /// The host; absent if there is only one.
    #[serde(skip_serializing_if = "Option::is_none")]
    host: Option<String>,
}

/// What all hosts count together. `lacks` says which hosts gave no answer.
pub(super) fn add_up(
    this: &str,
    own: Counted,
    others: Vec<(String, Counted)>,
    lacks: impl Fn(&str) -> bool,
) -> Counted {
    let mut claims: BTreeMap<(TopicName, PartitionId), PartitionStatus> = BTreeMap::new();
    let mut ends: BTreeMap<(TopicName, PartitionId), Offset> = BTreeMap::new();
    let (mut breakers, mut canary_status) = (Vec::new(), own.canary_status);
    breakers.extend(own.breaker.map(|breaker| (this.to_owned(), breaker)));
    for (host, other) in others {
        for partition in other.partitions {
            let place = (partition.topic.clone(), partition.partition);
            let end = ends.entry(place).or_default();
            *end = partition.end.max(*end);
            // The others are only heard of by this host.
            if partition.host.as_ref() == Some(&host) {
                let place = (partition.topic.clone(), partition.partition);
                // While a partition moves, two hosts may claim it; one of them is further.
                let claim = claims.entry(place).or_insert_with(|| partition.clone());
                if claim.next < partition.next {
                    *claim = partition;
                }
            }
        }
        breakers.extend(other.breaker.map(|breaker| (host.clone(), breaker)));
        if let (Some(total), Some(more)) = (&mut canary_status, other.canary_status) {
            add_canary(total, &host, more);
        }
    }
    let on_its_host = |own: PartitionStatus| {
        let is_own = own.host.as_deref() == Some(this);
        let place = (own.topic.clone(), own.partition);
        let end = ends.remove(&place).unwrap_or_default().max(own.end);
        let shown = match claims.remove(&place) {
            Some(claim) if !is_own || claim.next > own.next => claim,
            None if !is_own && own.host.as_deref().is_some_and(&lacks) => PartitionStatus {
                state: format!(
                    "not known: host {} does not answer",
                    own.host.as_deref().unwrap_or_default()
                ),
                ..own
            },
            _ => own,
        };
        // A host hears of others' messages a moment later; none of them is to be overlooked.
        PartitionStatus {
            lag: shown.lag.saturating_add(end.0.saturating_sub(shown.end.0)),
            end,
            ..shown
        }
    };
    Counted {
        name: own.name,
        partitions: own.partitions.into_iter().map(on_its_host).collect(),
        breaker: one_breaker(breakers),
        canary_status,
    }
}

/// The breakers of all hosts as one: open if any is, and then it says where.
fn one_breaker(breakers: Vec<(String, BreakerStatus)>) -> Option<BreakerStatus> {
    let is_alone = breakers.len() < 2;
    let mut breakers = breakers.into_iter();
    let (host, mut all) = breakers.next()?;
    let at_host = |host: &str, text: String| match is_alone {
        true => text,
        false => format!("at host {host}: {text}"),
    };
    all.text = all.text.map(|text| at_host(&host, text));
    for (host, one) in breakers {
        if one.state == "open" && all.state != "open" {
            (all.state, all.reason) = (one.state, one.reason);
        }
        let text = one.text.map(|text| at_host(&host, text));
        all.text = match (all.text, text) {
            (Some(before), Some(text)) => Some(format!("{before}; {text}")),
            (before, text) => before.or(text),
        };
        let earliest = |a: Option<_>, b: Option<_>| a.into_iter().chain(b).min();
        all.since = earliest(all.since, one.since);
        all.next_probe_at = earliest(all.next_probe_at, one.next_probe_at);
        all.probes = all.probes.saturating_add(one.probes);
        all.trips = all.trips.saturating_add(one.trips);
        all.dead_letters_left = all.dead_letters_left.saturating_add(one.dead_letters_left);
        all.dead_letters_accepted = all
            .dead_letters_accepted
            .saturating_add(one.dead_letters_accepted);
    }
    Some(all)
}

/// Adds another host's counts, if they are of the same canary.
pub(super) fn add_canary(total: &mut CanaryStatus, host: &str, other: CanaryStatus) {
    if other.canary.revision != total.canary.revision {
        return;
    }
    add_side(&mut total.canary, &other.canary);
    add_side(&mut total.current, &other.current);
    let trouble = other.trouble.map(|why| format!("at host {host}: {why}"));
    total.trouble = total.trouble.take().or(trouble);
}

fn add_side(total: &mut SideStatus, more: &SideStatus) {
    for (total, more) in [
        (&mut total.messages, more.messages),
        (&mut total.failed, more.failed),
        (&mut total.failed_calls, more.failed_calls),
        (&mut total.dead_letters, more.dead_letters),
        (&mut total.asked_again, more.asked_again),
    ] {
        *total = total.saturating_add(more);
    }
}

/// Adds other hosts' reports of the same shadow.
pub(super) fn add_reports(total: &mut ShadowReport, others: impl Iterator<Item = ShadowReport>) {
    for other in others.filter(|other| other.revision == total.revision) {
        total.since = total.since.min(other.since);
        for (total, more) in [
            (&mut total.compared, other.compared),
            (&mut total.alike, other.alike),
            (&mut total.outputs, other.outputs),
            (&mut total.not_answered, other.not_answered),
            (&mut total.skipped, other.skipped),
        ] {
            *total = total.saturating_add(more);
        }
        add_counts(&mut total.outcomes, other.outcomes);
        add_counts(&mut total.failed_calls, other.failed_calls);
        let room = SHADOW_SAMPLES_MAX.saturating_sub(total.samples.len());
        total.samples.extend(other.samples.into_iter().take(room));
    }
}

/// Each host bounds the kinds that it counts; together there may be more, as many as of two hosts.
fn add_counts(total: &mut BTreeMap<String, u64>, more: BTreeMap<String, u64>) {
    for (kind, count) in more {
        let is_full = total.len() > 2 * SHADOW_KINDS_MAX && !total.contains_key(&kind);
        let kind = if is_full { "other".to_owned() } else { kind };
        let before = total.entry(kind).or_default();
        *before = before.saturating_add(count);
    }
}

/// The lines of this host, if it is one of several by its name, and of others, by their times. Lines of one host stay in their order.
pub(super) fn in_order(
    this: Option<String>,
    own: Vec<GuestLine>,
    others: Vec<(String, LinesOfHost)>,
) -> Vec<Line> {
    let mut lines: Vec<Line> = own
        .into_iter()
        .map(|line| Line {
            line,
            host: this.clone(),
        })
        .collect();
    let is_alone = others.is_empty();
    for (host, of) in others {
        lines.extend(of.lines.into_iter().map(|line| Line {
            line,
            host: Some(host.clone()),
        }));
    }
    if !is_alone {
        lines.sort_by_key(|line| line.line.at);
    }
    lines
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn counted(host: &str, partitions: &[(u32, &str, u64, &str)], open: bool) -> Counted {
        let partitions: Vec<_> = partitions
            .iter()
            .map(|(partition, at, next, state)| {
                json!({
                    "topic": "in", "partition": partition, "next": next, "end": 100, "lag": 1, "parked": 0, "revision": 1,
                    "state": state, "host": at,
                })
            })
            .collect();
        let text = open.then(|| format!("the reason of {host}"));
        let side = json!({"revision": 2, "messages": 10, "failed": 1, "failed_calls": 0, "dead_letters": 0, "asked_again": 2});
        serde_json::from_value(json!({
            "name": "p", "partitions": partitions,
            "breaker": {
                "state": if open { "open" } else { "closed" }, "reason": open.then_some("outage"), "text": text, "since": open.then_some(7),
                "next_probe_at": null, "probes": 1, "trips": 2, "dead_letters_left": 30, "dead_letters_accepted": 0,
            },
            "canary_status": {"percent": 10, "canary": side, "current": side},
        }))
        .expect("what a host counts")
    }

    #[test]
    fn each_partition_is_shown_as_it_is_on_the_host_that_works_it() {
        let own = counted(
            "a",
            &[
                (0, "a", 9, "running"),
                (1, "b", 3, "at host b"),
                (2, "c", 4, "at host c"),
                (3, "b", 5, "at host b"),
            ],
            false,
        );
        let b = counted(
            "b",
            &[
                (0, "a", 1, "at host a"),
                (1, "b", 8, "waiting: for a reason"),
                (2, "c", 1, "at host c"),
                (3, "a", 5, "at host a"),
            ],
            true,
        );
        let mut b = b;
        b.partitions[0].end.0 += 5;
        let all = add_up("a", own, vec![("b".to_owned(), b)], |host| host == "c");
        let behind: Vec<_> = all
            .partitions
            .iter()
            .map(|one| (one.end.0, one.lag))
            .collect();
        assert_eq!(behind[..2], [(105, 6), (100, 1)], "b knew more messages");
        let shown: Vec<_> = all
            .partitions
            .iter()
            .map(|one| (one.next.0, one.state.as_str()))
            .collect();
        assert_eq!(
            shown,
            [
                (9, "running"),
                (8, "waiting: for a reason"),
                (4, "not known: host c does not answer"),
                // It moves: neither claims it.
                (5, "at host b"),
            ]
        );
        let breaker = all.breaker.expect("a breaker");
        assert_eq!(
            (&*breaker.state, breaker.trips, breaker.dead_letters_left),
            ("open", 4, 60)
        );
        assert_eq!(breaker.reason.as_deref(), Some("outage"));
        assert_eq!(
            breaker.text.as_deref(),
            Some("at host b: the reason of b"),
            "it says where"
        );
        let canary = all.canary_status.expect("a canary");
        assert_eq!(
            (canary.canary.messages, canary.current.asked_again),
            (20, 4)
        );
    }

    #[test]
    fn a_host_that_is_alone_says_what_it_always_said() {
        let own = counted("a", &[(0, "a", 9, "running")], true);
        let all = add_up("a", own.clone(), Vec::new(), |_| false);
        assert_eq!(all.breaker, own.breaker);
    }

    #[test]
    fn reports_of_the_same_shadow_are_added_and_their_samples_stay_bounded() {
        let said = json!({"outcome": "ack", "output_count": 0, "outputs": []});
        let sample = json!({
            "topic": "in", "partition": 0, "offset": 1, "key": null, "key_lossy": false, "differs": "outputs", "current": said, "shadow": said,
        });
        let report = |revision: u32, since: u64, samples: usize| -> ShadowReport {
            serde_json::from_value(json!({
                "revision": revision, "since": since, "compared": 10, "alike": 8, "outcomes": {"ack -> emit": 1}, "outputs": 1,
                "failed_calls": {"trap": 1}, "not_answered": 0, "skipped": 3, "samples": vec![sample.clone(); samples],
            }))
            .expect("a report")
        };
        let mut total = report(2, 9, 1);
        let others = [report(2, 5, SHADOW_SAMPLES_MAX), report(1, 1, 0)];
        add_reports(&mut total, others.into_iter());
        assert_eq!((total.since.0, total.compared, total.skipped), (5, 20, 6));
        assert_eq!(total.outcomes["ack -> emit"], 2);
        assert_eq!(total.failed_calls["trap"], 2);
        assert_eq!(total.samples.len(), SHADOW_SAMPLES_MAX);
    }

    #[test]
    fn lines_of_several_hosts_are_in_the_order_of_their_times() {
        let line = |at: u64, text: &str| -> GuestLine {
            serde_json::from_value(json!({"at": at, "level": "info", "revision": 1, "text": text}))
                .expect("a line")
        };
        let other = LinesOfHost {
            lines: vec![line(2, "b"), line(5, "d")],
            dropped: None,
        };
        let own = vec![line(1, "a"), line(5, "c")];
        let lines = in_order(Some("x".to_owned()), own, vec![("y".to_owned(), other)]);
        let shown: Vec<_> = lines
            .iter()
            .map(|line| {
                (
                    line.line.text.as_str(),
                    line.host.as_deref().unwrap_or_default(),
                )
            })
            .collect();
        assert_eq!(shown, [("a", "x"), ("b", "y"), ("c", "x"), ("d", "y")]);
    }
}
