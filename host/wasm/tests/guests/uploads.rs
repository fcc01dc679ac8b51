//! Hostile uploads: each is refused within bounds of time and memory, with a reason, and the next good upload is welcome.
//! `docs/reliability.md` lists which test holds which hostile input.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use guest_artifacts as guests;
use millrace_broker::handler::{AdmitError, Compiling, ModuleHost as _};
use millrace_model::Digest;
use wasmparser::{Parser, Payload};

use crate::bytes::{
    component, core_module, exported_instance, imported_instance, list, name, number, running,
    section,
};
use crate::support::{TestHost, digest, one};

const PROCESSOR: &str = "millrace:broker/message-processor@0.1.0";

/// A component with this core module beside an export that we look for.
fn with_module(module: &[u8]) -> Vec<u8> {
    component(&[running(module), exported_instance(PROCESSOR, 0)].concat())
}

/// A core module of functions with these bodies, each without parameters and results.
fn functions(bodies: &[Vec<u8>]) -> Vec<u8> {
    let sized = |body: &Vec<u8>| [number(body.len()), body.clone()].concat();
    let bodies: Vec<Vec<u8>> = bodies.iter().map(sized).collect();
    core_module(&[
        section(1, &list(&[vec![0x60, 0x00, 0x00]])),
        section(3, &list(&vec![vec![0x00]; bodies.len()])),
        section(10, &list(&bodies)),
    ])
}

/// The text of a refusal that needed no compiler.
async fn refused_at_sight(host: &TestHost, upload: &[u8]) -> String {
    let before = host.host.compiles();
    let error = host.admit(upload).await.unwrap_err();
    assert_eq!(host.host.compiles(), before, "{error}");
    assert!(matches!(error, AdmitError::Invalid(_)), "{error}");
    error.to_string()
}

#[tokio::test]
async fn code_beyond_every_measure_is_refused_before_it_is_compiled() {
    let host = TestHost::start();
    let tiny = vec![0x00, 0x0b];
    let long = [vec![0x00], vec![0x01; 7 << 20], vec![0x0b]].concat();
    let locals = [list(&[[number(5_001), vec![0x7f]].concat()]), vec![0x0b]].concat();
    for (bodies, says) in [
        (vec![tiny; 1_000_000], "functions"),
        (vec![long], "bytes of a function"),
        (vec![locals], "local variables"),
    ] {
        let text = refused_at_sight(&host, &with_module(&functions(&bodies))).await;
        assert!(text.contains(says), "{text}");
    }
}

#[tokio::test]
async fn memories_tables_segments_and_names_beyond_every_measure_are_refused_before_they_are_compiled()
 {
    let host = TestHost::start();
    let memory = |flags: u8, pages: usize| [vec![flags], number(pages)].concat();
    let data = [vec![0x01], number(0)].concat();
    let imports = {
        let instance_type = section(7, &list(&[vec![0x42, 0x00]]));
        let import =
            |n: usize| [vec![0], name(&format!("a:b/c{n}@1.0.0")), vec![0x05, 0x00]].concat();
        let imports: Vec<Vec<u8>> = (0..60_000).map(import).collect();
        [instance_type, section(10, &list(&imports))].concat()
    };
    for (upload, says) in [
        (
            with_module(&core_module(&[section(5, &list(&vec![memory(0, 1); 100]))])),
            "memories and tables",
        ),
        // 65,536 pages of 64 KiB, and 16 TiB in a memory of 64 bits.
        (
            with_module(&core_module(&[section(5, &list(&[memory(0, 1 << 16)]))])),
            "bytes of memory",
        ),
        (
            with_module(&core_module(&[section(5, &list(&[memory(4, 1 << 28)]))])),
            "bytes of memory",
        ),
        (
            with_module(&core_module(&[section(
                4,
                &list(&[[vec![0x70, 0x00], number(10_000_000)].concat()]),
            )])),
            "elements of a table",
        ),
        (
            with_module(&core_module(&[section(11, &list(&vec![data; 100_000]))])),
            "segments",
        ),
        (component(&[imports]), "imports"),
    ] {
        let text = refused_at_sight(&host, &upload).await;
        assert!(text.contains(says), "{says}: {text}");
    }
}

#[tokio::test]
async fn passive_data_costs_its_bytes_once_and_no_instance_anything() {
    let host = TestHost::start();
    let segment = [vec![0x01], number(16 << 20), vec![7; 16 << 20]].concat();
    let data = core_module(&[section(12, &number(1)), section(11, &list(&[segment]))]);
    let upload = starting(&data);
    host.admit(&upload).await.unwrap();
    let before = resident_bytes();
    let mut handlers = Vec::new();
    for n in 0..32 {
        let handler = host.processor(&format!("p{n}"), &upload).await;
        assert_eq!(one(&handler, "steady").await.unwrap(), "STEADY");
        handlers.push(handler);
    }
    // An instance for each handler; a copy for each would be 512 MiB. Other tests of this process need memory, too.
    let grown = resident_bytes().saturating_sub(before);
    assert!(grown < 384 << 20, "{grown} bytes");
}

/// The memory of this process that is its own, without pages of files.
fn resident_bytes() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let own = status
        .lines()
        .find_map(|line| line.strip_prefix("RssAnon:"));
    let kib = own.and_then(|own| own.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    kib.unwrap_or(0) << 10
}

/// Functions with tables of thousands of targets each: little code that becomes very much.
fn branch_tables() -> Vec<u8> {
    let targets: Vec<u8> = (0..4_800).map(|n| (n % 2) as u8).collect();
    let table = [
        vec![0x20, 0x00, 0x0e],
        number(targets.len()),
        targets,
        vec![0x02],
    ]
    .concat();
    let block = [vec![0x02, 0x40], table, vec![0x0b]].concat();
    let body = [
        vec![0x00],
        [0x02, 0x40].repeat(2),
        block.repeat(100),
        [0x0b].repeat(3),
    ]
    .concat();
    let body = [number(body.len()), body].concat();
    core_module(&[
        section(1, &list(&[vec![0x60, 0x01, 0x7f, 0x00]])),
        section(3, &list(&vec![vec![0x00]; 8])),
        section(10, &list(&vec![body; 8])),
    ])
}

/// Components that each make two instances of the one before: a few hundred bytes that stand for 2^40 instances.
fn doubling(levels: u8) -> Vec<u8> {
    let least = component(&running(&core_module(&[])));
    let double = |before: u8| {
        component(&[
            section(6, &list(&[vec![0x04, 0x02, 0x01, before]])),
            section(5, &list(&[vec![0x00, 0x00, 0x00], vec![0x00, 0x00, 0x00]])),
        ])
    };
    let levels_made = (0..levels).map(|level| section(4, &double(level)));
    let mut sections: Vec<Vec<u8>> = [section(4, &least)]
        .into_iter()
        .chain(levels_made)
        .collect();
    sections.push(section(5, &list(&[vec![0x00, levels, 0x00]])));
    sections.extend(exported_instance(PROCESSOR, 1));
    component(&sections)
}

/// A type that is a list of lists of lists.
fn deep_type(depth: usize) -> Vec<u8> {
    let signed = |mut value: usize| {
        let mut bytes = Vec::new();
        loop {
            let low = (value & 0x7f) as u8;
            value >>= 7;
            if value == 0 && low & 0x40 == 0 {
                bytes.push(low);
                return bytes;
            }
            bytes.push(low | 0x80);
        }
    };
    let list_of = |index: usize| match index {
        0 => vec![0x70, 0x7d],
        index => [vec![0x70], signed(index - 1)].concat(),
    };
    let types: Vec<Vec<u8>> = (0..depth).map(list_of).collect();
    component(
        &[
            vec![section(7, &list(&types))],
            exported_instance(PROCESSOR, 0),
        ]
        .concat(),
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bomb_is_stopped_by_a_limit_and_refused_at_once_when_it_comes_again() {
    let host = TestHost::start_with(|options| {
        options.limits.compile_cpu_seconds_max = 2;
        options.limits.compile_memory_bytes_max = 128 << 20;
    });
    for (what, bomb) in [
        ("branch tables", with_module(&branch_tables())),
        ("doubling", doubling(40)),
    ] {
        let error = host.admit(&bomb).await.unwrap_err();
        match &error {
            AdmitError::CompileLimit(_) => {
                let (compiles, start) = (host.host.compiles(), Instant::now());
                assert_eq!(host.admit(&bomb).await.unwrap_err(), error);
                assert_eq!(host.host.compiles(), compiles, "{what} is remembered");
                assert!(
                    start.elapsed() < Duration::from_secs(2),
                    "{:?}",
                    start.elapsed()
                );
            }
            // Cheaper still: it was found out before it cost anything.
            AdmitError::Invalid(_) => {}
            other => panic!("{what}: {other}"),
        }
    }
    host.admit(guests::UPPERCASE).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn uploads_of_the_same_bytes_share_one_compile_and_what_became_of_it() {
    let host = TestHost::start_with(|options| {
        // The slow lane at once: others may compile beside it.
        options.quick_compile = Duration::ZERO;
        options.limits.compile_cpu_seconds_max = 2;
        options.limits.compile_memory_bytes_max = 128 << 20;
    });
    let bomb = with_module(&branch_tables());
    let digest = digest(&bomb);
    let all = async {
        tokio::join!(
            host.admit_of("a", &bomb),
            host.admit_of("b", &bomb),
            host.admit_of("c", &bomb)
        )
    };
    let began = async {
        while compiling(&host, digest).is_none_or(|compiling| compiling.begun_at.is_none()) {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    let (refused, ()) = tokio::join!(all, began);
    let first = refused.0.unwrap_err();
    assert!(
        matches!(first, AdmitError::CompileLimit(_) | AdmitError::Invalid(_)),
        "{first}"
    );
    for other in [refused.1, refused.2] {
        assert_eq!(other.unwrap_err(), first);
    }
    assert_eq!(host.host.compiles(), 1);
    assert_eq!(compiling(&host, digest), None);

    let good = guests::UPPERCASE;
    let (one, two) = tokio::join!(host.admit_of("a", good), host.admit_of("b", good));
    assert_eq!(one.unwrap().compile_ms, two.unwrap().compile_ms);
    assert_eq!(host.host.compiles(), 2);
}

fn compiling(host: &TestHost, digest: Digest) -> Option<Compiling> {
    host.host.compiling(digest)
}

#[test]
fn a_compiler_whose_host_is_gone_ends() {
    let script = r#"exec 3<&0; "$0" 1073741824 60 <&3 & echo $!; wait"#;
    let mut host = Command::new("sh")
        .args(["-c", script, env!("CARGO_BIN_EXE_millrace-compile-child")])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    // It waits for a component as long as this is open.
    let _open = host.stdin.take();
    let mut pid = String::new();
    let mut told = BufReader::new(host.stdout.take().unwrap());
    told.read_line(&mut pid).unwrap();
    let status = || fs::read_to_string(format!("/proc/{}/status", pid.trim())).unwrap_or_default();
    let until = |what: &str, is_so: &dyn Fn(&str) -> bool| {
        let start = Instant::now();
        while !is_so(&status()) {
            assert!(start.elapsed() < Duration::from_secs(60), "{what}");
            std::thread::sleep(Duration::from_millis(10));
        }
    };
    until("it watches its host", &|status| {
        status.contains("Threads:\t2")
    });
    host.kill().unwrap();
    host.wait().unwrap();
    // Whoever takes care of orphans may not have noticed yet.
    until("it is gone", &|status| {
        status.is_empty() || status.contains("State:\tZ")
    });
}

#[tokio::test]
async fn nesting_without_end_never_overflows_a_stack() {
    let host = TestHost::start();
    let text = refused_at_sight(&host, &deep_type(100_000)).await;
    assert!(text.contains("types"), "{text}");
    // Few enough to be looked at closely: by the compiler process, not by this one.
    let error = host.admit(&deep_type(40_000)).await.unwrap_err();
    assert!(
        matches!(error, AdmitError::Invalid(_) | AdmitError::CompileLimit(_)),
        "{error}"
    );
    host.admit(guests::UPPERCASE).await.unwrap();
}

/// A good component that also makes an instance of this core module when it starts.
fn starting(module: &[u8]) -> Vec<u8> {
    let mut depth = 0;
    let mut modules = 0;
    for payload in Parser::new(0).parse_all(guests::UPPERCASE) {
        match payload.unwrap() {
            Payload::ModuleSection { .. } => {
                modules += usize::from(depth == 0);
                depth += 1;
            }
            Payload::ComponentSection { .. } => depth += 1,
            Payload::End(_) if depth > 0 => depth -= 1,
            _ => {}
        }
    }
    let instance = [vec![0x00], number(modules), vec![0x00]].concat();
    let sections = [section(1, module), section(2, &list(&[instance]))].concat();
    [guests::UPPERCASE, &sections].concat()
}

/// A core module whose start function does this for ever.
fn starts_with(body: &[u8]) -> Vec<u8> {
    let body = [&[0x00, 0x03, 0x40], body, &[0x0c, 0x00, 0x0b, 0x0b]].concat();
    core_module(&[
        section(1, &list(&[vec![0x60, 0x00, 0x00]])),
        section(3, &list(&[vec![0x00]])),
        section(5, &list(&[vec![0x00, 0x01]])),
        section(8, &[0x00]),
        section(10, &list(&[[number(body.len()), body].concat()])),
    ])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_start_that_never_ends_or_takes_all_memory_is_stopped_in_time() {
    let host = TestHost::start_with(|options| options.limits.guest_start_ms_max = 2_000);
    host.admit(&starting(&core_module(&[]))).await.unwrap();
    // An empty loop, and one that takes a hundred pages each time.
    for body in [&[][..], &[0x41, 0xe4, 0x00, 0x40, 0x00, 0x1a]] {
        let error = host.admit(&starting(&starts_with(body))).await.unwrap_err();
        assert!(matches!(error, AdmitError::Start(_)), "{error}");
    }
    host.admit(guests::UPPERCASE).await.unwrap();
}

#[tokio::test]
async fn precompiled_code_is_never_accepted() {
    let host = TestHost::start();
    let compiled = wasmtime::Engine::default().precompile_component(guests::UPPERCASE);
    match host.admit(&compiled.unwrap()).await {
        Err(AdmitError::NotAComponent(text)) => assert!(text.contains("native code"), "{text}"),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn names_of_strangers_are_cut_and_cleaned_wherever_they_are_shown() {
    let host = TestHost::start();
    let evil = "\u{1b}[2J<script>alert(1)</script>\r\n\u{202e}";
    let long = "x".repeat(100_000);
    for name in [evil, &long] {
        let export = host
            .admit(&component(&exported_instance(name, 0)))
            .await
            .unwrap_err();
        let import = [imported_instance(name), exported_instance(PROCESSOR, 1)].concat();
        let import = host.admit(&component(&import)).await.unwrap_err();
        for text in [export.to_string(), import.to_string()] {
            assert!(
                !text.contains(char::is_control) && !text.contains('\u{202e}'),
                "{text:?}"
            );
            assert!(text.len() < 4_000, "{}", text.len());
        }
    }
    let mut not_text = component(&exported_instance("not-text", 0));
    let at = not_text
        .windows(8)
        .position(|part| part == b"not-text")
        .unwrap();
    not_text[at] = 0xff;
    let error = host.admit(&not_text).await.unwrap_err();
    assert!(matches!(error, AdmitError::Invalid(_)), "{error}");
}
