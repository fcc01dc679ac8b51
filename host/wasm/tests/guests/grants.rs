//! What a component may use: settings, secrets, metrics, and nothing outside its sandbox.

use std::sync::Arc;

use guest_artifacts as guests;
use millrace_broker::handler::{AdmitError, BatchHandler, CallError, LoadRequest, ModuleHost as _};
use millrace_model::processor::{Config, Grants};
use millrace_model::{ProcessorName, SecretName};
use millrace_wasm::SecretStore;
use parking_lot::Mutex;

use crate::support::{TestHost, one, request};

const TOKEN: &str = "hunter22-and-more";

/// Secrets that a test changes.
#[derive(Debug, Default)]
struct Kept(Mutex<Option<String>>);

impl SecretStore for Kept {
    fn secret(&self, name: &SecretName) -> Result<Vec<u8>, String> {
        let value = self.0.lock().clone();
        value
            .map(String::into_bytes)
            .ok_or_else(|| format!("the host has no secret {name}"))
    }
}

fn grants() -> Grants {
    Grants {
        metrics: true,
        secrets: vec![SecretName::parse("token").unwrap()],
        ..Grants::default()
    }
}

async fn blabber(host: &TestHost, request: LoadRequest) -> Arc<dyn BatchHandler> {
    host.host.processor(request).await.unwrap()
}

fn granted() -> LoadRequest {
    LoadRequest {
        grants: grants(),
        ..request("p", guests::BLABBER)
    }
}

#[tokio::test]
async fn a_changed_setting_reaches_the_next_call() {
    let host = TestHost::start();
    let request = granted();
    let config = request.config.clone();
    let handler = blabber(&host, request).await;
    assert_eq!(one(&handler, "config greeting").await.unwrap(), "none");
    for greeting in ["hello", "good day"] {
        let values = [("greeting".to_owned(), Some(greeting.to_owned()))];
        config.set(&Config::default().with(values).unwrap());
        let read = one(&handler, "config greeting").await.unwrap();
        assert_eq!(read, greeting);
    }
    let all = one(&handler, "all").await.unwrap();
    assert_eq!(all, r#"[("greeting", "good day")]"#);
}

#[tokio::test]
async fn a_secret_is_read_anew_if_granted_and_a_missing_one_is_an_outage() {
    let kept = Arc::new(Kept::default());
    let store = Arc::clone(&kept);
    let host = TestHost::start_with(|options| options.secrets = store);
    let handler = blabber(&host, granted()).await;
    let missing = one(&handler, "secret token").await.unwrap_err();
    let CallError::Unavailable(reason) = missing else {
        panic!("{missing}");
    };
    assert!(reason.contains("no secret token"), "{reason}");
    for value in [TOKEN, "rotated"] {
        *kept.0.lock() = Some(value.to_owned());
        assert_eq!(one(&handler, "secret token").await.unwrap(), value);
    }
    for other in ["other", "../token", "", "TOKEN"] {
        let refused = one(&handler, &format!("secret {other}")).await.unwrap();
        assert!(refused.contains("is not granted"), "{refused}");
    }
}

#[tokio::test]
async fn a_secret_is_kept_out_of_logs_and_traps() {
    let kept = Arc::new(Kept(Mutex::new(Some(TOKEN.to_owned()))));
    let host = TestHost::start_with(|options| options.secrets = kept);
    let handler = blabber(&host, granted()).await;
    one(&handler, "log").await.unwrap();
    one(&handler, "print").await.unwrap();
    let trap = one(&handler, "panic").await.unwrap_err().to_string();
    let name = ProcessorName::parse("p").unwrap();
    let lines = host.host.logs(&name).into_iter().map(|line| line.text);
    let texts: Vec<String> = lines.chain([trap]).collect();
    for text in &texts {
        assert!(!text.contains("hunter22"), "{text}");
    }
    let hidden = texts.iter().filter(|text| text.contains("[secret token]"));
    assert!(hidden.count() >= 4, "{texts:?}");
}

#[tokio::test]
async fn metrics_are_taken_and_a_wrong_name_traps() {
    let host = TestHost::start();
    let handler = blabber(&host, granted()).await;
    one(&handler, "count handled").await.unwrap();
    for wrong in ["Handled", "a-b", "handled_total", ""] {
        let error = one(&handler, &format!("count {wrong}")).await.unwrap_err();
        assert!(matches!(error, CallError::Trap { .. }), "{wrong}: {error}");
    }
}

#[tokio::test]
async fn a_component_that_imports_more_than_it_is_granted_is_not_loaded() {
    let host = TestHost::start();
    for (grants, lacking) in [
        (Grants::default(), vec!["--grant-metrics", "--grant-secret"]),
        (
            Grants {
                metrics: false,
                ..grants()
            },
            vec!["--grant-metrics"],
        ),
    ] {
        let request = LoadRequest {
            grants,
            ..granted()
        };
        match host.host.processor(request).await.map(drop) {
            Err(AdmitError::NotGranted { imports, command }) => {
                assert_eq!(imports.len(), lacking.len(), "{imports:?}");
                assert!(
                    command.starts_with("millrace processor deploy p "),
                    "{command}"
                );
                assert!(
                    lacking.iter().all(|flag| command.contains(flag)),
                    "{command}"
                );
            }
            other => panic!("{other:?}"),
        }
    }
    let stateless = LoadRequest {
        grants: Grants {
            state: false,
            ..Grants::default()
        },
        ..request("p", guests::COUNTER)
    };
    let refused = host.host.processor(stateless).await.map(drop);
    assert!(
        matches!(refused, Err(AdmitError::NotGranted { .. })),
        "{refused:?}"
    );
}

#[tokio::test]
async fn filesystem_sockets_and_environment_are_there_and_empty() {
    let host = TestHost::start();
    let handler = host.processor("p", guests::SOCKET).await;
    for way in [
        "connect", "listen", "datagram", "name", "read", "write", "list", "variable",
    ] {
        let told = one(&handler, way).await.unwrap();
        assert!(told.starts_with("refused: "), "{way}: {told}");
    }
}
