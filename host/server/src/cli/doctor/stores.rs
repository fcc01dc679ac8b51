//! Findings about stores that are no data directory, for people and programs.

use std::sync::Arc;

use millrace_engine::findings::{Finding, Severity, worst};
use millrace_postgres::{OpenError, PostgresOptions, Thresholds};
use serde_json::{Value, json};

use super::super::failure::{Exit, Failure};
use super::super::output::Output;
use super::super::table::table;
use super::super::wait_for;
use crate::engine::place::Place;

/// Examines a database.
pub(super) fn database(
    place: &Place,
    options: PostgresOptions,
    findings_only: bool,
    as_json: bool,
) -> Result<(), Failure> {
    let found = Arc::new(parking_lot::Mutex::new(Vec::new()));
    let into = Arc::clone(&found);
    wait_for(async move {
        let examined = millrace_postgres::examine(&options, &Thresholds::default()).await;
        *into.lock() = examined.map_err(not_examined)?;
        Ok(())
    })?;
    let findings = std::mem::take(&mut *found.lock());
    report(&place.name(), &findings, findings_only, as_json)
}

fn not_examined(error: OpenError) -> Failure {
    let message = error.to_string();
    match error {
        OpenError::NoSchema(_) => Failure::new(Exit::Unknown, "no-schema", message)
            .with_hint("name it after the address, like postgres://db/queue#SCHEMA"),
        OpenError::Unreachable(_) | OpenError::Full(_) => {
            Failure::new(Exit::Unreachable, "unreachable", message)
        }
        _ => Failure::failed(message),
    }
}

/// Prints what was found; a fault is a failure.
pub(super) fn report(
    store: &str,
    findings: &[Finding],
    findings_only: bool,
    as_json: bool,
) -> Result<(), Failure> {
    let listed: Vec<Value> = findings.iter().map(shown).collect();
    let worst = worst(findings);
    let answer = json!({"store": store, "worst": worst.as_str(), "findings": listed});
    Output::new(as_json).answer(&answer, |_| for_people(store, findings, findings_only))?;
    match worst {
        Severity::Fault => Err(Failure::new(
            Exit::Failed,
            "faults",
            format!("{store} has faults"),
        )),
        Severity::Ok | Severity::Note => Ok(()),
    }
}

fn shown(finding: &Finding) -> Value {
    json!({
        "severity": finding.severity.as_str(),
        "place": finding.place,
        "meaning": finding.meaning,
        "advice": finding.advice,
    })
}

fn for_people(store: &str, findings: &[Finding], findings_only: bool) -> String {
    let row = |finding: &Finding| {
        let what = match &finding.advice {
            Some(advice) => format!("{}\n→ {advice}", finding.meaning),
            None => finding.meaning.clone(),
        };
        vec![
            finding.severity.as_str().to_owned(),
            finding.place.clone(),
            what,
        ]
    };
    let is_listed = |finding: &&Finding| !findings_only || finding.severity != Severity::Ok;
    let rows: Vec<_> = findings.iter().filter(is_listed).map(row).collect();
    let sound = findings.len() - rows.len();
    let mut text = table(&["", "WHERE", "WHAT"], rows, "nothing is wrong");
    if sound > 0 {
        text.push_str(&format!("\n{sound} things are as they should be"));
    }
    let verdict = match worst(findings) {
        Severity::Ok => "is sound",
        Severity::Note => "keeps its promises; the notes are worth reading",
        Severity::Fault => "has faults",
    };
    format!("{text}\n\n{store} {verdict}")
}
