//! Answers to which several hosts contribute: which hosts are missing, and which log lines of each are new.

use std::collections::BTreeMap;

use serde_json::Value;

use super::table::{cell, items};

/// The hosts that are missing from an answer, one a line; `None` if it is complete.
pub(super) fn missing(answer: &Value) -> Option<String> {
    let name = |host: &Value| match host["address"].as_str() {
        None | Some("") => cell(&host["id"]),
        Some(_) => cell(&host["address"]),
    };
    let line = |host: &Value| {
        format!(
            "partial: host {} is missing: {}",
            name(host),
            cell(&host["why"])
        )
    };
    let lines: Vec<String> = items(&answer["missing_hosts"]).iter().map(line).collect();
    (!lines.is_empty()).then(|| lines.join("\n"))
}

/// The log lines of each host as they were seen last. What a host keeps changes only at both ends, which is not so for the lines of several
/// hosts together.
#[derive(Default)]
pub(super) struct SeenLines(BTreeMap<String, Vec<Value>>);

impl SeenLines {
    /// The new ones of these lines, in their order. A host that is missing this time keeps what was seen of it.
    pub(super) fn unseen(&mut self, lines: &[Value]) -> Vec<Value> {
        let host = |line: &Value| line["host"].as_str().unwrap_or_default().to_owned();
        let mut of_hosts: BTreeMap<String, Vec<Value>> = BTreeMap::new();
        for line in lines {
            of_hosts.entry(host(line)).or_default().push(line.clone());
        }
        let old = |(host, now): (&String, &Vec<Value>)| {
            let seen = self.0.get(host).map_or(&[][..], Vec::as_slice);
            (host.clone(), now.len() - unseen(seen, now).len())
        };
        let mut old: BTreeMap<String, usize> = of_hosts.iter().map(old).collect();
        let is_new = |line: &&Value| match old.get_mut(&host(line)) {
            Some(left) if *left > 0 => {
                *left -= 1;
                false
            }
            _ => true,
        };
        let new = lines.iter().filter(is_new).cloned().collect();
        self.0.extend(of_hosts);
        new
    }
}

/// The host keeps the newest lines. The lines seen last time are the beginning of the present ones, unless some were dropped.
pub(super) fn unseen<'a>(seen: &[Value], lines: &'a [Value]) -> &'a [Value] {
    let overlap = (0..=seen.len().min(lines.len()))
        .rev()
        .find(|&count| seen.ends_with(&lines[..count]));
    &lines[overlap.unwrap_or(0)..]
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn lines_are_shown_once_although_old_ones_go() {
        let lines = |range: std::ops::Range<u32>| range.map(|n| json!(n)).collect::<Vec<_>>();
        assert_eq!(unseen(&lines(0..5), &lines(2..8)), lines(5..8));
        assert_eq!(unseen(&lines(0..5), &lines(0..5)), lines(0..0));
        assert_eq!(unseen(&[], &lines(0..2)), lines(0..2));
        assert_eq!(unseen(&lines(0..2), &lines(7..9)), lines(7..9));
    }

    #[test]
    fn lines_of_several_hosts_are_shown_once_although_one_is_silent_for_a_while() {
        let line = |host: &str, text: &str| json!({"host": host, "text": text});
        let (a1, a2, b1, b2) = (
            line("a", "1"),
            line("a", "2"),
            line("b", "1"),
            line("b", "2"),
        );
        let mut seen = SeenLines::default();
        assert_eq!(
            seen.unseen(&[a1.clone(), b1.clone()]),
            [a1.clone(), b1.clone()]
        );
        // b is missing, and has a line of before a's when it is back.
        let with_a2 = [a1.clone(), a2.clone()];
        assert_eq!(seen.unseen(&with_a2), with_a2[1..]);
        assert_eq!(seen.unseen(&[a1, b1, b2.clone(), a2]), [b2]);
    }

    #[test]
    fn missing_hosts_are_named_by_what_is_known_of_them() {
        assert_eq!(missing(&json!({"processors": []})), None);
        let answer = json!({"partial": true, "missing_hosts": [
            {"id": "01", "address": "10.0.0.5:7400", "why": "it is late"}, {"id": "02", "address": "", "why": "it gave no address"},
        ]});
        let shown = missing(&answer).expect("two hosts");
        assert_eq!(
            shown,
            "partial: host 10.0.0.5:7400 is missing: it is late\npartial: host 02 is missing: it gave no address"
        );
    }
}
