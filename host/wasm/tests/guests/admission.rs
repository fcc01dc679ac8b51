//! Which modules are refused, and with which texts.

use std::sync::Arc;
use std::time::{Duration, Instant};

use guest_artifacts as guests;
use millrace_broker::handler::{AdmitError, Interface, ModuleHost as _};
use millrace_model::GuestLimits;
use millrace_model::processor::Limits;

use crate::bytes::{
    compile_bomb_module, component, core_module, endless_start_module, exported_instance,
    imported_instance, memory_module, running, section, table_module,
};
use crate::support::{TestHost, digest, one, request};

const PROCESSOR: &str = "millrace:broker/message-processor@0.1.0";

#[tokio::test]
async fn a_good_module_is_admitted_with_its_facts() {
    let host = TestHost::start();
    let facts = host.admit(guests::UPPERCASE).await.unwrap();
    assert_eq!(facts.digest, digest(guests::UPPERCASE));
    assert_eq!(facts.byte_count, guests::UPPERCASE.len() as u64);
    assert_eq!(facts.exports, [Interface::MessageProcessor]);
    assert!(
        facts.imports.iter().all(|name| name.contains('@')),
        "{:?}",
        facts.imports
    );
    let facts = host.admit(guests::REGION_PARTITIONER).await.unwrap();
    assert_eq!(facts.exports, [Interface::Partitioner]);
    let facts = host.admit(guests::PATIENT_ERRORS).await.unwrap();
    assert_eq!(facts.exports, [Interface::ErrorHandler]);
}

#[tokio::test]
async fn what_is_no_component_is_named_for_what_it_is() {
    let host = TestHost::start();
    let core = core_module(&[]);
    for (bytes, said) in [
        (b"".as_slice(), "empty"),
        (b"abc", "text"),
        (b"\x7fELF\x02\x01\x01\0", "native program"),
        (b"\x1f\x8b\x08\0\0", "gzip"),
        (b"PK\x03\x04zip", "zip"),
        (b"\x89PNG\r\n\x1a\n", "image"),
        (b"<!DOCTYPE html><html>", "HTML"),
        (b"  (component)", "WebAssembly text"),
        (&core, "core WebAssembly module"),
        (b"\0asm\x07\0\x01\0", "unsupported"),
        (b"\xff\xfe\x00\x01", "unknown format"),
    ] {
        match host.admit(bytes).await {
            Err(AdmitError::NotAComponent(text)) => assert!(text.contains(said), "{said}: {text}"),
            other => panic!("{said}: {other:?}"),
        }
    }
    assert_eq!(
        host.host.compiles(),
        0,
        "nothing of this reached a compiler"
    );
}

#[tokio::test]
async fn a_truncated_or_garbled_component_is_invalid() {
    let host = TestHost::start();
    let whole = guests::PASSTHROUGH;
    for length in [8, 9, 100, whole.len() / 2, whole.len() - 1] {
        let error = host.admit(&whole[..length]).await.unwrap_err();
        let refused = matches!(
            error,
            AdmitError::Invalid(_) | AdmitError::MissingExport { .. }
        );
        assert!(refused, "{length}: {error}");
    }
    let garbled = component(&[section(1, &core_module(&[section(10, b"\x05garbage")]))]);
    let error = host.admit(&garbled).await.unwrap_err();
    assert!(matches!(error, AdmitError::Invalid(_)), "{error}");
}

#[tokio::test]
async fn a_missing_export_is_named_beside_what_is_there() {
    let host = TestHost::start();
    for (sections, there) in [
        (vec![], "nothing"),
        (
            exported_instance("wasi:cli/run@0.2.6", 0),
            "wasi:cli/run@0.2.6",
        ),
        (
            exported_instance("millrace:broker/message-processor@0.2.0", 0),
            "@0.2.0",
        ),
    ] {
        match host.admit(&component(&sections)).await {
            Err(AdmitError::MissingExport { wanted, found }) => {
                assert!(
                    wanted.contains("millrace:broker/message-processor@0.1"),
                    "{wanted}"
                );
                assert!(found.contains(there), "{found}");
            }
            other => panic!("{there}: {other:?}"),
        }
    }
}

#[tokio::test]
async fn a_module_is_not_loaded_as_what_it_does_not_export() {
    let host = TestHost::start();
    let error = host
        .host
        .partitioner(request("in", guests::UPPERCASE))
        .await
        .err()
        .unwrap();
    assert!(matches!(error, AdmitError::MissingExport { .. }), "{error}");
}

#[tokio::test]
async fn an_export_without_its_function_is_refused() {
    let host = TestHost::start();
    let hollow = component(&exported_instance(PROCESSOR, 0));
    let error = host.admit(&hollow).await.unwrap_err();
    assert!(matches!(error, AdmitError::MissingExport { .. }), "{error}");
}

#[tokio::test]
async fn imports_that_are_not_granted_are_listed() {
    let host = TestHost::start();
    match host.admit(guests::OUTSIDER).await {
        Err(AdmitError::UngrantedImports { imports }) => {
            assert_eq!(imports, ["outside:places/telephone@1.0.0"]);
        }
        other => panic!("{other:?}"),
    }
    for import in [
        "wasi:filesystem/types@0.3.0",
        "millrace:broker/log@0.2.0",
        "millrace:broker/telephone@0.1.1",
        "wasi:http/types@0.3.0",
        "wasi:cli/run@0.3.0",
        "env:x/y@1.0.0",
    ] {
        let sections = [imported_instance(import), exported_instance(PROCESSOR, 1)].concat();
        let error = host.admit(&component(&sections)).await.unwrap_err();
        let listed = AdmitError::UngrantedImports {
            imports: vec![import.to_owned()],
        };
        assert_eq!(error, listed);
    }
}

#[tokio::test]
async fn a_module_that_is_too_large_is_refused_before_it_is_looked_at() {
    let host = TestHost::start_with(|options| options.limits.module_bytes_max = 1 << 20);
    let error = host.admit(&vec![0; (1 << 20) + 1]).await.unwrap_err();
    assert!(matches!(error, AdmitError::TooLarge { .. }), "{error}");
    let text = error.to_string();
    assert!(
        text.contains("setting module_bytes_max = 1048576"),
        "{text}"
    );
    assert_eq!(GuestLimits::default().module_bytes_max, 64 << 20);
}

#[tokio::test]
async fn components_nested_without_end_are_refused() {
    let host = TestHost::start();
    let deep = (0..1_000).fold(component(&[]), |inner, _| component(&[section(4, &inner)]));
    let error = host.admit(&deep).await.unwrap_err();
    assert!(matches!(error, AdmitError::Invalid(_)), "{error}");
    let wide = component(&vec![section(4, &component(&[])); 1_000]);
    let error = host.admit(&wide).await.unwrap_err();
    assert!(matches!(error, AdmitError::Invalid(_)), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_compile_bomb_is_stopped_and_costs_its_time_once() {
    let host = TestHost::start_with(|options| {
        options.limits.compile_cpu_seconds_max = 1;
    });
    let bomb = [
        running(&compile_bomb_module(600)),
        exported_instance(PROCESSOR, 0),
    ]
    .concat();
    let bomb = component(&bomb);
    assert!(bomb.len() < 16 << 10, "{}", bomb.len());
    for round in 0..2 {
        let start = Instant::now();
        let error = host.admit(&bomb).await.unwrap_err();
        let limit = "1 s of CPU time; setting compile_cpu_seconds_max = 1";
        assert_eq!(error, AdmitError::CompileLimit(limit.into()));
        let bound = if round == 0 {
            Duration::from_secs(25)
        } else {
            Duration::from_secs(1)
        };
        assert!(start.elapsed() < bound, "{:?}", start.elapsed());
    }
    assert_eq!(host.host.compiles(), 1);
    let good = host.processor("good", guests::UPPERCASE).await;
    assert_eq!(one(&good, "still here").await.unwrap(), "STILL HERE");
}

#[tokio::test]
async fn a_compile_that_wants_too_much_memory_is_stopped() {
    let host = TestHost::start_with(|options| {
        options.limits.compile_memory_bytes_max = 8 << 20;
    });
    // A compiler needs memory for what it compiles.
    let padding = section(0, &[&[1, b'n'][..], &vec![0; 48 << 20]].concat());
    let large = [guests::QUAKE_CLASSIFIER, &padding].concat();
    let error = host.admit(&large).await.unwrap_err();
    assert!(matches!(error, AdmitError::CompileLimit(_)), "{error}");
    let text = error.to_string();
    assert!(
        text.contains("compile_memory_bytes_max = 8388608"),
        "{text}"
    );
}

#[tokio::test]
async fn a_module_that_does_not_start_is_refused_and_nothing_is_kept_of_it() {
    let host = TestHost::start();
    let endless = component(
        &[
            running(&endless_start_module()),
            exported_instance(PROCESSOR, 0),
        ]
        .concat(),
    );
    match host.admit(guests::START_TRAP).await {
        Err(AdmitError::Start(reason)) => assert!(reason.contains("trap"), "{reason}"),
        other => panic!("{other:?}"),
    }
    // The empty export is found first; the test only needs the call to end.
    assert!(host.admit(&endless).await.is_err());
    let kept = std::fs::read_dir(host.directory.path().join("code")).unwrap();
    let kept: Vec<_> = kept.map(|entry| entry.unwrap().file_name()).collect();
    assert!(!kept.iter().any(|name| {
        name.to_string_lossy()
            .starts_with(&digest(guests::START_TRAP).to_string())
    }));
}

#[tokio::test]
async fn memory_that_no_limit_allows_is_refused() {
    let host = TestHost::start();
    let huge = component(
        &[
            running(&memory_module(65_536)),
            exported_instance(PROCESSOR, 0),
        ]
        .concat(),
    );
    let error = host.admit(&huge).await.unwrap_err();
    assert!(!matches!(error, AdmitError::Host(_)), "{error}");
}

#[tokio::test]
async fn a_module_that_begins_with_more_than_the_default_is_admitted_and_its_specification_decides()
{
    let host = TestHost::start();
    host.admit(guests::BEGINS_LARGE).await.unwrap();
    let small = request("large", guests::BEGINS_LARGE);
    let error = host.host.processor(small).await.err().unwrap();
    let text = error.to_string();
    assert!(
        text.contains("(limits.memory_bytes_max = 67108864)"),
        "{text}"
    );
    let limits = Limits {
        memory_bytes_max: 256 << 20,
        ..Limits::default()
    };
    let good = host.limited("large", guests::BEGINS_LARGE, limits).await;
    assert_eq!(one(&good, "through").await.unwrap(), "through");
}

#[tokio::test]
async fn what_begins_beyond_a_setting_is_refused_by_its_name_and_value_before_it_is_compiled() {
    let host = TestHost::start_with(|options| {
        options.limits.guest_memory_bytes_max = 64 << 20;
        options.limits.guest_table_elements_max = 1_000;
    });
    let large = host.admit(guests::BEGINS_LARGE).await.unwrap_err();
    let text = large.to_string();
    assert!(
        text.contains("setting guest_memory_bytes_max = 67108864"),
        "{text}"
    );
    let tables = component(
        &[
            running(&table_module(1_001)),
            exported_instance(PROCESSOR, 0),
        ]
        .concat(),
    );
    let text = host.admit(&tables).await.unwrap_err().to_string();
    assert!(
        text.contains("setting guest_table_elements_max = 1000"),
        "{text}"
    );
    assert_eq!(host.host.compiles(), 0);
}

fn bomb(size: usize) -> Vec<u8> {
    let bomb = [
        running(&compile_bomb_module(size)),
        exported_instance(PROCESSOR, 0),
    ];
    component(&bomb.concat())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_uploader_s_bombs_delay_an_honest_one_by_one_compile_at_the_most() {
    let host = Arc::new(TestHost::start_with(|options| {
        options.limits.compile_cpu_seconds_max = 2;
        options.quick_compile = Duration::from_millis(300);
    }));
    let began = Instant::now();
    let bombs: Vec<_> = (0..4)
        .map(|n| {
            let host = Arc::clone(&host);
            tokio::spawn(async move {
                let error = host.admit_of("mallory", &bomb(600 + n * 10)).await;
                (error.unwrap_err(), began.elapsed())
            })
        })
        .collect();
    // Both lanes are busy, and more uploads wait.
    while host.host.compiles() < 2 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let start = Instant::now();
    let facts = host.admit_of("ada", guests::UPPERCASE).await.unwrap();
    let took = start.elapsed().as_millis() as u64;
    assert!(facts.compile_ms > 0, "{facts:?}");
    assert!(
        facts.waited_ms + facts.compile_ms <= took,
        "{facts:?} of {took} ms"
    );
    let mut first = Duration::MAX;
    for bomb in bombs {
        let (error, ended) = bomb.await.unwrap();
        let refused = matches!(error, AdmitError::CompileLimit(_) | AdmitError::Busy { .. });
        assert!(refused, "{error}");
        first = first.min(ended);
    }
    let (waited, one) = (facts.waited_ms, first.as_millis() as u64);
    assert!(waited <= one, "{waited} ms, and one compile took {one} ms");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_sends_bombs_has_to_pause_with_slow_compiles_and_only_with_these() {
    let host = TestHost::start_with(|options| {
        options.limits.compile_cpu_seconds_max = 1;
        options.quick_compile = Duration::from_millis(300);
    });
    for n in 0..2 {
        let error = host.admit_of("mallory", &bomb(600 + n)).await.unwrap_err();
        assert!(matches!(error, AdmitError::CompileLimit(_)), "{error}");
    }
    match host.admit_of("mallory", &bomb(650)).await {
        Err(AdmitError::Busy {
            reason,
            retry_after_s,
        }) => {
            assert!(reason.contains("last 2 modules of mallory"), "{reason}");
            assert!((1..=31).contains(&retry_after_s), "{retry_after_s}");
        }
        other => panic!("{other:?}"),
    }
    host.admit_of("mallory", guests::UPPERCASE).await.unwrap();
    let error = host.admit_of("ada", &bomb(651)).await.unwrap_err();
    assert!(matches!(error, AdmitError::CompileLimit(_)), "{error}");
}
