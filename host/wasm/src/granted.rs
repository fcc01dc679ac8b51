//! Compares what a component imports with what it is granted.

use millrace_broker::handler::{AdmitError, Interface};
use millrace_model::processor::Grants;

use crate::admission::{own_interface, sends_messages};
use crate::logs::Owner;

/// Outbound HTTP; `wasi:http/types` alone reaches nobody.
const OUTGOING_HTTP: &str = "wasi:http/outgoing-handler@";

/// Refuses a component that imports more than its owner is granted.
pub(crate) fn check(
    imports: &[String],
    exports: &[Interface],
    grants: &Grants,
    owner: &Owner,
) -> Result<(), AdmitError> {
    let foreign: Vec<String> = imports
        .iter()
        .filter(|import| is_foreign(import, exports, owner))
        .cloned()
        .collect();
    if !foreign.is_empty() {
        let imports = foreign;
        return Err(AdmitError::UngrantedImports { imports });
    }
    let is_route = matches!(owner, Owner::Route(_));
    let has_state = !matches!(owner, Owner::Route(_) | Owner::Topic(_));
    let lacking = imports.iter().filter_map(|import| {
        let flag = match own_interface(import) {
            Some("state") if has_state && !grants.state => "--grant-state",
            Some("producer") if is_route && grants.topics.is_empty() => "--grant-topic TOPIC",
            Some("views") if is_route && grants.views.is_empty() => "--grant-view PROCESSOR",
            Some("metrics") if !grants.metrics => "--grant-metrics",
            Some("secrets") if grants.secrets.is_empty() => "--grant-secret NAME",
            None if import.starts_with(OUTGOING_HTTP) && grants.http.is_empty() => {
                "--grant-http ORIGIN"
            }
            _ => return None,
        };
        Some((import.clone(), flag))
    });
    let (imports, flags): (Vec<String>, Vec<&str>) = lacking.unzip();
    let flags = flags.join(" ");
    match owner {
        _ if imports.is_empty() => Ok(()),
        Owner::Processor(name) => {
            // A part of a processor, such as its shadow, has the processor's grants.
            let name = name.split('/').next().unwrap_or(name);
            let command = format!("millrace processor deploy {name} {flags}");
            Err(AdmitError::NotGranted { imports, command })
        }
        Owner::Route(path) => {
            let command = format!("millrace route set {path} {flags}");
            Err(AdmitError::NotGranted { imports, command })
        }
        Owner::Topic(_) | Owner::Admission(_) => Err(AdmitError::UngrantedImports { imports }),
    }
}

/// Whether an import belongs to another kind of owner. State is a processor's in a partition, so a route and a partitioner have none;
/// sending and reading others' state are a route's; what is sent by `wasi:messaging` is part of a processor's answer. A component that exports both kinds may import what either has: in the other role its calls get an error.
fn is_foreign(import: &str, exports: &[Interface], owner: &Owner) -> bool {
    let other = match (own_interface(import), owner) {
        (Some("state"), Owner::Route(_) | Owner::Topic(_)) => Interface::MessageProcessor,
        (Some("producer" | "views"), Owner::Processor(_) | Owner::Topic(_)) => {
            Interface::HttpHandler
        }
        (None, Owner::Route(_) | Owner::Topic(_)) if sends_messages(import) => {
            Interface::MessageProcessor
        }
        _ => return false,
    };
    !exports.contains(&other)
}

#[cfg(test)]
mod tests {
    use millrace_model::processor::Origin;
    use millrace_model::{ProcessorName, SecretName, TopicName};

    use super::*;

    #[test]
    fn a_component_that_imports_more_than_it_is_granted_is_refused_with_the_command_that_grants_it()
    {
        let imports = [
            "millrace:broker/log@0.1.1",
            "millrace:broker/config@0.1.1",
            "millrace:broker/state@0.1.0",
            "millrace:broker/metrics@0.1.1",
            "millrace:broker/secrets@0.1.1",
            "wasi:http/types@0.2.6",
            "wasi:http/outgoing-handler@0.2.6",
            "wasi:clocks/wall-clock@0.2.6",
        ]
        .map(str::to_owned);
        let owner = Owner::Processor("p".into());
        let none = Grants {
            state: false,
            ..Grants::default()
        };
        let Err(AdmitError::NotGranted {
            imports: lacking,
            command,
        }) = check(&imports, &[], &none, &owner)
        else {
            panic!("it was not refused");
        };
        assert_eq!(lacking.len(), 4);
        assert_eq!(
            command,
            "millrace processor deploy p --grant-state --grant-metrics --grant-secret NAME --grant-http ORIGIN"
        );
        let all = Grants {
            metrics: true,
            secrets: vec![SecretName::parse("token").expect("a name")],
            http: vec![Origin::parse("https://example.com").expect("an origin")],
            ..Grants::default()
        };
        assert_eq!(check(&imports, &[], &all, &owner), Ok(()));
        let route = Owner::Route("/a".into());
        assert!(matches!(
            check(&imports, &[], &all, &route),
            Err(AdmitError::UngrantedImports { imports }) if imports == ["millrace:broker/state@0.1.0"]
        ));
        let imports_of_a_route = &imports[6..7];
        let Err(AdmitError::NotGranted { command, .. }) =
            check(imports_of_a_route, &[], &Grants::default(), &route)
        else {
            panic!("it was not refused");
        };
        assert_eq!(command, "millrace route set /a --grant-http ORIGIN");
        let topic = check(&imports, &[], &Grants::default(), &Owner::Topic("t".into()));
        assert!(matches!(topic, Err(AdmitError::UngrantedImports { .. })));
    }

    #[test]
    fn a_partitioner_has_no_state_unless_its_component_is_a_processor_too() {
        let imports = ["millrace:broker/state@0.1.1".to_owned()];
        let check = |exports: &[Interface]| {
            let owner = Owner::Topic("t".into());
            check(&imports, exports, &Grants::default(), &owner)
        };
        assert!(matches!(
            check(&[Interface::Partitioner]),
            Err(AdmitError::UngrantedImports { imports: refused }) if refused == imports
        ));
        let both = [Interface::Partitioner, Interface::MessageProcessor];
        assert_eq!(check(&both), Ok(()));
    }

    #[test]
    fn sending_and_views_are_a_routes_and_state_a_processors_unless_a_component_is_both() {
        let imports = [
            "millrace:broker/producer@0.1.1",
            "millrace:broker/views@0.1.1",
            "millrace:broker/state@0.1.1",
        ]
        .map(str::to_owned);
        let (processor, route) = (Owner::Processor("p".into()), Owner::Route("/a".into()));
        let none = Grants::default();
        let foreign =
            |owner: &Owner, export: Interface| match check(&imports, &[export], &none, owner) {
                Err(AdmitError::UngrantedImports { imports }) => imports,
                other => panic!("{other:?}"),
            };
        assert_eq!(
            foreign(&processor, Interface::MessageProcessor),
            imports[..2]
        );
        assert_eq!(foreign(&route, Interface::HttpHandler), imports[2..]);

        let both = [Interface::MessageProcessor, Interface::HttpHandler];
        assert_eq!(check(&imports, &both, &none, &processor), Ok(()));
        let Err(AdmitError::NotGranted { command, .. }) = check(&imports, &both, &none, &route)
        else {
            panic!("it was not refused");
        };
        assert_eq!(
            command,
            "millrace route set /a --grant-topic TOPIC --grant-view PROCESSOR"
        );
        let granted = Grants {
            topics: vec![TopicName::parse("out").expect("a name")],
            views: vec![ProcessorName::parse("counts").expect("a name")],
            ..Grants::default()
        };
        assert_eq!(check(&imports, &both, &granted, &route), Ok(()));
    }

    #[test]
    fn only_a_processor_sends_by_wasi_messaging() {
        let imports = ["wasi:messaging/producer@0.2.0-draft".to_owned()];
        let none = Grants::default();
        let check = |export: Interface, owner: Owner| check(&imports, &[export], &none, &owner);
        let processor = Owner::Processor("p".into());
        assert_eq!(check(Interface::MessageProcessor, processor), Ok(()));
        for (export, owner) in [
            (Interface::HttpHandler, Owner::Route("/a".into())),
            (Interface::Partitioner, Owner::Topic("t".into())),
        ] {
            let refused = check(export, owner);
            assert!(
                matches!(refused, Err(AdmitError::UngrantedImports { .. })),
                "{refused:?}"
            );
        }
    }
}
