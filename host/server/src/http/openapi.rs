//! The OpenAPI document. Tests compare it with the code: it has every route, and the
//! [`super::shapes`] have the fields of their nouns.

mod finish;
mod plain;

use axum::Json;
use utoipa::OpenApi;

use self::finish::Finish;
use self::plain::Plain;
use super::{
    backup, configuring, consumers, consuming, credentials, damage, dead_letters, delays,
    deploying, fetch, fetch_all, health, history, host, lifetime, lookups, modules, parked,
    principals, processors, produce, replays, routes, schedules, states, topics, trials,
};

#[derive(OpenApi)]
#[openapi(
    modifiers(&Plain, &Finish),
    info(
        title = "Millrace",
        description = "A message broker that runs your WebAssembly. Every error has one shape: a code, a message, and what to do."
    ),
    paths(
        health::live,
        health::ready,
        health::metrics,
        document,
        host::show,
        host::list,
        principals::oneself,
        principals::check,
        principals::audit,
        principals::list,
        principals::show,
        principals::put,
        principals::remove,
        principals::limit,
        principals::grant,
        principals::withdraw,
        credentials::make_token,
        credentials::rotate_token,
        credentials::revoke_token,
        credentials::set_password,
        credentials::remove_password,
        principals::add_identity,
        principals::remove_identity,
        topics::list,
        topics::create,
        topics::show,
        topics::remove,
        lifetime::change,
        lifetime::trim,
        produce::produce,
        delays::list,
        delays::cancel,
        fetch::fetch,
        fetch::value,
        fetch_all::fetch_all,
        consumers::list_all,
        consumers::list_of_topic,
        consumers::show,
        consumers::make,
        consumers::remove,
        consumers::reset,
        consuming::messages,
        consuming::commit,
        damage::list,
        damage::accept,
        backup::make,
        modules::upload,
        modules::list,
        modules::show,
        modules::bytes,
        modules::remove,
        modules::tag,
        modules::untag,
        processors::list,
        processors::show,
        processors::deploy,
        deploying::amend,
        processors::remove,
        processors::rollback,
        configuring::show,
        configuring::replace,
        configuring::amend,
        processors::pause,
        processors::resume,
        processors::logs,
        history::show,
        parked::list,
        parked::try_now,
        parked::give_up,
        replays::make,
        trials::canary,
        trials::promote,
        trials::shadow,
        trials::end_shadow,
        routes::list,
        routes::show,
        routes::put,
        routes::remove,
        routes::rollback,
        routes::canary,
        routes::promote,
        schedules::list,
        schedules::show,
        schedules::put,
        schedules::remove,
        schedules::pause,
        schedules::resume,
        schedules::run,
        states::show,
        lookups::key,
        lookups::totals,
        states::write,
        dead_letters::list,
        dead_letters::groups,
        dead_letters::show,
        dead_letters::work::redrive,
        dead_letters::work::edit,
        dead_letters::work::dry_run,
        dead_letters::work::audit,
    )
)]
struct Document;

/// This document.
#[utoipa::path(get, path = "/openapi.json", tag = "health", responses((status = 200, body = serde_json::Value)))]
pub(super) async fn document() -> Json<utoipa::openapi::OpenApi> {
    Json(Document::openapi())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use millrace_model::Processor;
    use serde_json::{Value, json};

    use super::*;

    fn document() -> Value {
        serde_json::to_value(Document::openapi()).expect("JSON")
    }

    #[test]
    fn the_document_has_every_route_and_no_other() {
        let document = document();
        let paths = document["paths"].as_object().expect("paths");
        let documented: BTreeSet<String> = paths
            .iter()
            .flat_map(|(path, item)| {
                let methods = item.as_object().expect("methods").keys();
                methods.map(move |method| format!("{} {path}", method.to_uppercase()))
            })
            .collect();
        let routed: BTreeSet<String> = super::super::every_route()
            .iter()
            // A path with slashes in it is a wildcard here, and a plain parameter there.
            .map(|route| format!("{} {}", route.method, route.path.replace("{*", "{")))
            // What is posted to a wildcard says in its last part what is to be done.
            .flat_map(|route| match route.as_str() {
                "POST /v1/routes/{path}" => {
                    let actions = routes::ACTIONS.iter();
                    actions.map(|action| format!("{route}/{action}")).collect()
                }
                _ => vec![route],
            })
            .collect();
        assert_eq!(documented, routed);
    }

    #[test]
    fn a_processor_has_the_fields_that_the_document_says() {
        let place = json!({"topic": "t", "partition": 0, "first": 1, "end": 2});
        let spec = json!({"topics": ["t"], "module": "ab".repeat(32)});
        let revision = json!({
            "number": 1, "spec": spec, "deployed_at": 1, "deployed_by": "me", "predecessor": 1, "trial": true, "note": "n",
            "redrive_due": {"from": 1, "since": 2},
        });
        let processor = json!({
            "name": "p", "made_at": 1, "current": 1, "paused": false, "config": {"key": "value"}, "revisions": [revision],
            "replay": {"of": "p", "revision": 1, "from": 1, "until": 2, "into": "o", "ranges": [place]},
            "start": [{"topic": "t", "id": 1, "offsets": [1]}], "resumes": {"count": 1},
            "changes": [{"at": 1, "what": "pause", "revision": 1}],
        });
        let stored = |trial: &str, on_trial: Value| {
            let mut processor = processor.clone();
            processor[trial] = on_trial;
            let processor: Processor = serde_json::from_value(processor).expect("a processor");
            json!(processor)
        };
        // One revision at most is on trial.
        let canary = stored("canary", json!({"revision": 1, "percent": 5, "since": 1}));
        let mut noun = stored("shadow", json!({"revision": 1, "since": 1}));
        noun["canary"] = canary["canary"].clone();
        let document = document();
        let fields = |value: &Value| -> BTreeSet<String> {
            value.as_object().expect("fields").keys().cloned().collect()
        };
        for (name, noun) in [
            ("Processor", &noun),
            ("Revision", &noun["revisions"][0]),
            ("Canary", &noun["canary"]),
            ("Shadow", &noun["shadow"]),
        ] {
            let shape = &document["components"]["schemas"][name]["properties"];
            assert_eq!(fields(shape), fields(noun), "{name}");
        }
    }

    #[test]
    fn each_field_of_settings_may_be_left_out_or_null_and_has_no_default() {
        let document = document();
        let schemas = &document["components"]["schemas"];
        for name in finish::SETTINGS.iter().chain(&finish::RECORDS) {
            let fields = schemas[name]["properties"].as_object().expect(name);
            for (field, shape) in fields {
                assert!(shape.get("default").is_none(), "{name}: {field}");
            }
        }
        for name in finish::SETTINGS {
            let shape = &schemas[name];
            assert!(shape["required"].is_null() && shape["additionalProperties"].is_null());
            for (field, shape) in shape["properties"].as_object().expect(name) {
                assert_eq!(shape["type"][1], "null", "{name}: {field}");
            }
        }
    }

    #[test]
    fn a_default_of_a_parameter_is_of_its_type() {
        let document = document();
        let operations = document["paths"].as_object().expect("paths");
        let operations = operations.values().filter_map(|path| path.as_object());
        let parameters = operations
            .flat_map(|path| path.values())
            .filter_map(|operation| operation["parameters"].as_array())
            .flatten();
        for parameter in parameters {
            let schema = &parameter["schema"];
            assert!(schema["allOf"].is_null(), "{parameter}");
            let fits = match &schema["default"] {
                Value::Null => true,
                Value::String(_) => schema["type"] == "string",
                Value::Bool(_) => schema["type"] == "boolean",
                _ => schema["type"] == "integer",
            };
            assert!(fits, "{parameter}");
        }
    }

    #[test]
    fn small_types_are_the_numbers_and_texts_that_they_are_in_json() {
        let document = document();
        let schemas = &document["components"]["schemas"];
        assert!(schemas["Offset"].is_null() && schemas["TopicName"].is_null());
        let status = &schemas["PartitionStatus"]["properties"];
        assert_eq!(status["topic"]["type"], "string");
        assert_eq!(status["next"]["format"], "int64");
        assert_eq!(status["next"]["description"], "The next offset to read.");
        let until = &status["waiting_until"]["type"];
        assert_eq!(until, &json!(["integer", "null"]));
    }

    /// Each operation, and what the document says of it.
    fn operations(document: &Value) -> Vec<(String, &Value)> {
        let paths = document["paths"].as_object().expect("paths");
        let methods = paths.iter().flat_map(|(path, item)| {
            let methods = item.as_object().expect("methods").iter();
            methods.map(move |(method, operation)| (format!("{method} {path}"), operation))
        });
        methods.collect()
    }

    #[test]
    fn every_answer_is_described_and_every_operation_declares_its_errors() {
        let document = document();
        for (name, operation) in operations(&document) {
            let responses = operation["responses"].as_object().expect("answers");
            assert!(responses.contains_key("default"), "{name}");
            for (status, response) in responses {
                let description = response["description"].as_str().unwrap_or_default();
                assert!(!description.is_empty(), "{name}: {status}");
            }
            if operation["parameters"].is_array() {
                assert!(responses.contains_key("400"), "{name}");
            }
        }
    }

    #[test]
    fn every_operation_has_an_id_of_its_own_that_says_what_it_is() {
        let document = document();
        let ids: Vec<&str> = operations(&document)
            .iter()
            .map(|(_, operation)| operation["operationId"].as_str().expect("an id"))
            .collect();
        let different: BTreeSet<&str> = ids.iter().copied().collect();
        assert_eq!(ids.len(), different.len(), "{ids:?}");
        for id in ["post_topic_messages", "get_processor", "get_processors"] {
            assert!(different.contains(id), "{id}");
        }
    }

    #[test]
    fn names_in_paths_have_patterns_and_bytes_are_binary() {
        let document = document();
        for (name, operation) in operations(&document) {
            for parameter in operation["parameters"].as_array().into_iter().flatten() {
                if parameter["in"] == "path"
                    && ["topic", "name"].contains(&parameter["name"].as_str().expect("a name"))
                {
                    assert!(parameter["schema"]["pattern"].is_string(), "{name}");
                }
            }
        }
        let value = "/v1/topics/{topic}/partitions/{partition}/messages/{offset}/value";
        let content = &document["paths"][value]["get"]["responses"]["200"]["content"];
        assert_eq!(
            content["application/octet-stream"]["schema"]["format"],
            "binary"
        );
    }

    #[test]
    fn whatever_takes_a_body_says_what_a_malformed_one_gets() {
        let document = document();
        for (name, operation) in operations(&document) {
            if !operation["requestBody"].is_null() {
                assert!(!operation["responses"]["400"].is_null(), "{name}");
            }
        }
    }

    #[test]
    fn whatever_records_who_asked_says_where_they_say_it() {
        let document = document();
        let records = |name: &str| {
            let processor = name.contains(" /v1/processors/{name}");
            let own = [
                "/dead-letters/dry-run",
                "/state",
                "get ",
                "delete /v1/processors/{name}",
            ];
            let own = own.iter().any(|part| name.contains(part));
            let of_processor = processor && (!own || name == "delete /v1/processors/{name}/shadow");
            let consumer = ["get ", "post "].into_iter().any(|method| {
                let path = "/v1/topics/{topic}/consumers/{name}/";
                name.starts_with(&format!("{method}{path}"))
            });
            of_processor
                || consumer
                || [
                    "post /v1/schedules/{name}/run",
                    "post /v1/modules",
                    "put /v1/routes/{path}",
                ]
                .contains(&name)
                || name.starts_with("post /v1/routes/{path}/")
        };
        for (name, operation) in operations(&document) {
            let declared = operation["parameters"].to_string().contains("Millrace-By");
            assert_eq!(declared, records(&name), "{name}");
        }
    }

    #[test]
    fn every_reference_in_the_document_is_defined() {
        let text = document().to_string();
        let document = document();
        let schemas = &document["components"]["schemas"];
        for reference in text.split("#/components/schemas/").skip(1) {
            let name = reference.split('"').next().expect("a name");
            assert!(
                !schemas[name].is_null(),
                "{name} is referred to but not defined"
            );
        }
    }
}
