//! What hostile guests do while they run, below the level of any toolchain: each harms only its own call, within bounds of time and
//! memory. `docs/reliability.md` lists which test holds which attack.

use std::sync::Arc;
use std::time::{Duration, Instant};

use guest_artifacts as guests;
use millrace_broker::handler::{BatchHandler, CallError, LoadRequest, ModuleHost as _};
use millrace_model::SecretName;
use millrace_model::processor::{Grants, Limits};
use wit_component::StringEncoding;

use crate::forged::{Forged, answered, record};
use crate::state::attempt;
use crate::support::{TestHost, batch, one, request};

/// A loop without end.
const FOR_EVER: &str = "(loop $again (br $again))";

/// The time of a call here.
const CALL_MS: u64 = 200;

/// Far more than a call may take, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);

fn quick() -> Limits {
    Limits {
        call_ms_max: CALL_MS,
        ..Limits::default()
    }
}

/// Two calls of a forged guest, after each of which a good neighbour still answers.
async fn errors(host: &TestHost, what: &str, forged: &Forged) -> Vec<CallError> {
    let bytes = forged.component();
    let bad = host.limited("bad", &bytes, quick()).await;
    let good = host.processor("good", guests::UPPERCASE).await;
    let mut errors = Vec::new();
    for _ in 0..2 {
        let start = Instant::now();
        let ended = bad.process(&batch(["one", "two"])).await;
        assert!(start.elapsed() < PATIENCE, "{what}: {:?}", start.elapsed());
        errors.push(ended.expect_err(what));
        assert_eq!(one(&good, "steady").await.unwrap(), "STEADY", "{what}");
    }
    errors
}

fn assert_timeout(what: &str, errors: &[CallError]) {
    let timeout = CallError::Timeout(Duration::from_millis(CALL_MS));
    assert!(
        errors.iter().all(|error| *error == timeout),
        "{what}: {errors:?}"
    );
}

/// A failure of the guest, not of the host.
fn assert_its_own(what: &str, errors: &[CallError]) {
    let its_own = |error: &CallError| {
        matches!(
            error,
            CallError::Trap { .. } | CallError::BadAnswer(_) | CallError::Memory(_)
        )
    };
    assert!(errors.iter().all(its_own), "{what}: {errors:?}");
}

#[tokio::test]
async fn a_loop_wherever_the_host_calls_the_guest_is_stopped_in_time() {
    let host = TestHost::start();
    let unreachable = |code: &str| format!("{code} unreachable");
    let places = [
        (
            "process",
            Forged {
                process: unreachable(FOR_EVER),
                ..Forged::default()
            },
        ),
        (
            "realloc, for the batch",
            Forged {
                realloc: unreachable(FOR_EVER),
                ..Forged::default()
            },
        ),
        (
            "after the answer",
            Forged {
                post: FOR_EVER.to_owned(),
                ..Forged::default()
            },
        ),
        (
            "the destructor of a resource",
            Forged {
                world: "export things: interface { resource thing; }",
                items: format!(
                    r#"(import "[export]things" "[resource-new]thing" (func $make (param i32) (result i32)))
                    (import "[export]things" "[resource-drop]thing" (func $drop (param i32)))
                    (func (export "things#[dtor]thing") (param i32) {FOR_EVER})"#
                ),
                process: format!("(call $drop (call $make (i32.const 1))) {}", answered()),
                ..Forged::default()
            },
        ),
    ];
    for (what, forged) in places {
        let errors = errors(&host, what, &forged).await;
        assert_timeout(what, &errors);
    }
}

#[tokio::test]
async fn memory_ends_at_the_limit_however_small_the_steps() {
    let host = TestHost::start();
    // A million requests for a page each; most are refused. The guest goes on as if nothing were wrong.
    let page_by_page = Forged {
        process: format!(
            "(local $left i32) (local.set $left (i32.const 1000000))
            (loop $again
                (drop (memory.grow (i32.const 1)))
                (local.set $left (i32.sub (local.get $left) (i32.const 1)))
                (br_if $again (local.get $left)))
            (drop (memory.grow (i32.const 65535)))
            (if (i32.gt_u (memory.size) (i32.const 1024)) (then unreachable)) {}",
            answered()
        ),
        ..Forged::default()
    };
    let limits = Limits {
        call_ms_max: 60_000,
        memory_bytes_max: 64 << 20,
        ..Limits::default()
    };
    let bytes = page_by_page.component();
    let handler = host.limited("p", &bytes, limits).await;
    handler.process(&batch(["x"])).await.unwrap();

    let tables = Forged {
        items: "(table $t 1 funcref)".to_owned(),
        process: format!(
            "(loop $again (br_if $again (i32.ne (i32.const -1) (table.grow $t (ref.null func) (i32.const 1000))))) unreachable {}",
            answered()
        ),
        ..Forged::default()
    };
    let errors = errors(&host, "tables", &tables).await;
    let told = |error: &CallError| matches!(error, CallError::Memory(text) if text.contains("guest_table_elements_max"));
    assert!(errors.iter().all(told), "{errors:?}");
}

#[tokio::test]
async fn instructions_over_all_of_memory_are_stopped_between_two_of_them() {
    let host = TestHost::start();
    // Nearly all of the 64 MiB that a guest has by default.
    let bytes = 60 << 20;
    for (what, instruction) in [
        (
            "fill",
            format!("(memory.fill (i32.const 0) (i32.const 7) (i32.const {bytes}))"),
        ),
        (
            "copy",
            format!(
                "(memory.copy (i32.const 8) (i32.const 0) (i32.const {}))",
                bytes - 8
            ),
        ),
    ] {
        let forged = Forged {
            pages: 60 << 4,
            process: format!("(loop $again {instruction} (br $again)) unreachable"),
            ..Forged::default()
        };
        let errors = errors(&host, what, &forged).await;
        assert_timeout(what, &errors);
    }
}

/// Positions of lists in `types.answer`.
const OUTCOMES: usize = 0;
const DETAILS: usize = 1;
const DATA: usize = 2;
const SOURCES: usize = 3;
const TOPIC_NAMES: usize = 4;
const TIMES: usize = 11;

#[tokio::test]
async fn an_answer_that_lies_about_its_memory_is_the_guests_failure() {
    let host = TestHost::start();
    let (pages, end) = (2, 2 << 16);
    let forged = |answer: Vec<u8>| Forged {
        pages,
        answer,
        ..Forged::default()
    };
    let lists = [OUTCOMES, DETAILS, DATA, SOURCES, TOPIC_NAMES, TIMES];
    for (what, pointer, length) in [
        ("a length of 2^31", 2_048, 1 << 31),
        ("the largest length", 2_048, u32::MAX),
        ("a pointer behind the memory", end, 1),
        ("an end behind the memory", end - 1, 2),
        ("a pointer that overflows", u32::MAX, 1),
    ] {
        for list in lists {
            let what = format!("{what} in list {list}");
            let errors = errors(&host, &what, &forged(record(&[(list, pointer, length)]))).await;
            assert_its_own(&what, &errors);
        }
    }
    for list in [DETAILS, SOURCES, TOPIC_NAMES, TIMES] {
        let errors = errors(&host, "misaligned", &forged(record(&[(list, 2_049, 1)]))).await;
        assert_its_own("misaligned", &errors);
    }
    // The last case of the result, of an option, and cases that do not exist.
    let mut no_such_case = record(&[]);
    no_such_case[0] = 2;
    let errors_of = errors(&host, "a case that does not exist", &forged(no_such_case)).await;
    assert_its_own("a case that does not exist", &errors_of);
    let unaligned_record = Forged {
        pages,
        process: "(i32.const 1025)".to_owned(),
        ..Forged::default()
    };
    let errors_of = errors(&host, "a record at an odd place", &unaligned_record).await;
    assert_its_own("a record at an odd place", &errors_of);
}

/// An answer with one topic name of these bytes.
fn named(text: &[u8], length: u32) -> Vec<u8> {
    let (list_at, text_at) = (2_048_u32, 2_056_u32);
    let mut answer = record(&[(TOPIC_NAMES, list_at, 1)]);
    answer.resize(list_at as usize - 1_024, 0);
    answer.extend(text_at.to_le_bytes());
    answer.extend(length.to_le_bytes());
    answer.extend(text);
    answer
}

#[tokio::test]
async fn text_that_is_none_is_the_guests_failure_in_every_encoding() {
    let host = TestHost::start();
    let (utf8, utf16, latin1) = (
        StringEncoding::UTF8,
        StringEncoding::UTF16,
        StringEncoding::CompactUTF16,
    );
    let tagged = |length: u32| length | 1 << 31;
    for (what, encoding, text, length) in [
        ("a byte that is no UTF-8", utf8, &b"\xff"[..], 1),
        ("half a character", utf8, &b"\xc3"[..], 1),
        ("a surrogate as UTF-8", utf8, &b"\xed\xa0\x80"[..], 3),
        ("half a pair of surrogates", utf16, &b"\x00\xd8"[..], 1),
        (
            "a length that overflows when doubled",
            utf16,
            &b""[..],
            1 << 31,
        ),
        ("a pair cut by its end", utf16, &b"\x00\xd8\x00"[..], 1),
        (
            "wide text with half a pair",
            latin1,
            &b"\x00\xdc"[..],
            tagged(1),
        ),
        (
            "wide text with the largest length",
            latin1,
            &b""[..],
            u32::MAX,
        ),
    ] {
        let forged = Forged {
            encoding,
            answer: named(text, length),
            ..Forged::default()
        };
        let errors = errors(&host, what, &forged).await;
        assert_its_own(what, &errors);
    }
    for (encoding, text, length) in [
        (utf8, "h\u{e4}".as_bytes(), 3),
        (utf16, &b"h\x00\xe4\x00"[..], 2),
        (latin1, &b"h\xe4"[..], 2),
        (latin1, &b"h\x00\xe4\x00"[..], tagged(2)),
    ] {
        let forged = Forged {
            encoding,
            answer: named(text, length),
            ..Forged::default()
        };
        let handler = host.limited("p", &forged.component(), quick()).await;
        let answer = handler.process(&batch(["x"])).await.unwrap();
        assert_eq!(answer.topic_names, ["h\u{e4}"], "{encoding:?}");
    }
}

#[tokio::test]
async fn memory_that_the_guest_hands_out_wrongly_is_its_own_failure() {
    let host = TestHost::start();
    for (what, pointer) in [
        ("behind the memory", "(i32.const 0x7fffffff)"),
        ("at the very end", "(i32.const -1)"),
        (
            "misaligned",
            "(i32.add (i32.const 3) (call $allocate (local.get $align) (local.get $new)))",
        ),
    ] {
        let forged = Forged {
            realloc: pointer.to_owned(),
            ..Forged::default()
        };
        let errors = errors(&host, what, &forged).await;
        assert_its_own(what, &errors);
    }
}

#[tokio::test]
async fn an_answer_that_repeats_the_same_bytes_is_read_no_further_than_its_limit() {
    let host = TestHost::start();
    // A million names, all of them the same mebibyte: 1 TiB if the host read them.
    let (names, list_at) = (1_000_000_u32, 1 << 20);
    let forged = Forged {
        pages: 9 << 4,
        process: format!(
            "(local $at i32) (local.set $at (i32.const {list_at}))
            (loop $again
                (i32.store offset=4 (local.get $at) (i32.const {}))
                (local.set $at (i32.add (local.get $at) (i32.const 8)))
                (br_if $again (i32.lt_u (local.get $at) (i32.const {}))))
            {}",
            1 << 20,
            list_at + names * 8,
            answered()
        ),
        answer: record(&[(TOPIC_NAMES, list_at, names)]),
        ..Forged::default()
    };
    let before = peak_bytes();
    let errors = errors(&host, "the same names", &forged).await;
    assert_its_own("the same names", &errors);
    // Its limits are 16 MiB of bytes and the columns of as many outputs and messages as it may have; other tests need memory, too.
    let grown = peak_bytes() - before;
    assert!(grown < 1 << 30, "{grown} bytes");
}

/// The most memory that this process has had.
fn peak_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = peak.and_then(|peak| peak.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    kib.unwrap_or(0) << 10
}

#[tokio::test]
async fn handles_end_at_their_bound() {
    let host = TestHost::start();
    let own = Forged {
        world: "export things: interface { resource thing; }",
        items: r#"(import "[export]things" "[resource-new]thing" (func $make (param i32) (result i32)))"#
            .to_owned(),
        process: "(loop $again (drop (call $make (i32.const 1))) (br $again)) unreachable".to_owned(),
        ..Forged::default()
    };
    let of_the_host = Forged {
        world: "import wasi:clocks/monotonic-clock@0.2.12;",
        items: r#"(import "wasi:clocks/monotonic-clock@0.2.12" "subscribe-duration" (func $make (param i64) (result i32)))"#
            .to_owned(),
        process: "(loop $again (drop (call $make (i64.const 1))) (br $again)) unreachable".to_owned(),
        ..Forged::default()
    };
    for (what, forged) in [("its own", own), ("the host's", of_the_host)] {
        let errors = errors(&host, what, &forged).await;
        let told = |error: &CallError| matches!(error, CallError::Trap { .. });
        assert!(errors.iter().all(told), "{what}: {errors:?}");
    }
}

#[tokio::test]
async fn neither_random_numbers_nor_clocks_nor_sleep_hold_the_host() {
    let host = TestHost::start();
    let random = Forged {
        world: "import wasi:random/random@0.2.12;",
        items: r#"(import "wasi:random/random@0.2.12" "get-random-bytes" (func $random (param i64 i32)))"#
            .to_owned(),
        process: format!(
            "(call $random (i64.const 0x100000000) (i32.const 2048)) {}",
            answered()
        ),
        ..Forged::default()
    };
    let errors_of = errors(&host, "4 GiB of random bytes", &random).await;
    assert_its_own("4 GiB of random bytes", &errors_of);

    let clocks = r#"(import "wasi:clocks/monotonic-clock@0.2.12" "now" (func $now (result i64)))
        (import "wasi:clocks/monotonic-clock@0.2.12" "subscribe-duration" (func $after (param i64) (result i32)))
        (import "wasi:io/poll@0.2.12" "[method]pollable.block" (func $block (param i32)))
        (import "wasi:io/poll@0.2.12" "[resource-drop]pollable" (func $drop (param i32)))"#;
    let of_clocks = |process: &str| Forged {
        world: "import wasi:clocks/monotonic-clock@0.2.12; import wasi:io/poll@0.2.12;",
        items: clocks.to_owned(),
        process: format!("{process} unreachable"),
        ..Forged::default()
    };
    for (what, process) in [
        (
            "reads the clock for ever",
            "(loop $again (drop (call $now)) (br $again))",
        ),
        // An hour, and naps without end.
        (
            "sleeps",
            "(call $block (call $after (i64.const 3600000000000)))",
        ),
        (
            "naps",
            "(local $nap i32)
            (loop $again
                (local.set $nap (call $after (i64.const 1000000)))
                (call $block (local.get $nap))
                (call $drop (local.get $nap))
                (br $again))",
        ),
    ] {
        let errors = errors(&host, what, &of_clocks(process)).await;
        assert_timeout(what, &errors);
    }
}

#[tokio::test]
async fn no_clock_is_finer_than_a_millisecond() {
    let host = TestHost::start();
    // Every reading, one after the other, as the times of the answer.
    let (readings, list_at) = (10_000, 1 << 17);
    let forged = Forged {
        world: "import wasi:clocks/monotonic-clock@0.2.12;",
        items: r#"(import "wasi:clocks/monotonic-clock@0.2.12" "now" (func $now (result i64)))"#
            .to_owned(),
        process: format!(
            "(local $at i32) (local.set $at (i32.const {list_at}))
            (loop $again
                (i64.store (local.get $at) (call $now))
                (local.set $at (i32.add (local.get $at) (i32.const 8)))
                (br_if $again (i32.lt_u (local.get $at) (i32.const {}))))
            {}",
            list_at + readings * 8,
            answered()
        ),
        answer: record(&[(TIMES, list_at, readings)]),
        ..Forged::default()
    };
    let limits = Limits {
        call_ms_max: 60_000,
        ..Limits::default()
    };
    let handler = host.limited("p", &forged.component(), limits).await;
    let times = handler.process(&batch(["x"])).await.unwrap().times;
    assert_eq!(times.len(), readings as usize);
    let is_coarse = |time: &u64| time.is_multiple_of(1_000_000);
    assert!(times.iter().all(is_coarse), "{:?}", &times[..8]);
    assert!(times.is_sorted());
}

#[tokio::test]
async fn nothing_in_memory_or_tables_is_left_for_the_next_instance_in_the_same_place() {
    // Memory for one instance at a time, so that each gets the place of the one before.
    let host = TestHost::start_with(|options| options.instances_max = 1);
    let pages = 300;
    let leaves = Forged {
        pages,
        process: format!(
            "(memory.fill (i32.const 0) (i32.const 0xaa) (i32.const {})) unreachable",
            pages << 16
        ),
        ..Forged::default()
    };
    // Nothing before the answer's record and nothing behind the heap's beginning, which the batch is far from filling.
    let looks = Forged {
        pages,
        process: format!(
            "(local $at i32) (local.set $at (i32.const {}))
            (loop $again
                (if (i64.ne (i64.const 0) (i64.load (local.get $at))) (then unreachable))
                (local.set $at (i32.add (local.get $at) (i32.const 8)))
                (br_if $again (i32.lt_u (local.get $at) (i32.const {}))))
            {}",
            1 << 17,
            pages << 16,
            answered()
        ),
        ..Forged::default()
    };
    let (leaves, looks) = (leaves.component(), looks.component());
    for round in 0..5 {
        let leaver = host.limited("leaver", &leaves, Limits::default()).await;
        let trapped = leaver.process(&batch(["x"])).await;
        assert!(
            matches!(trapped, Err(CallError::Trap { .. })),
            "{trapped:?}"
        );
        drop(leaver);
        let looker = host.limited("looker", &looks, Limits::default()).await;
        let clean = looker.process(&batch(["x"])).await;
        clean.unwrap_or_else(|error| panic!("round {round}: {error}"));
    }
}

/// Every function that a processor may import, with the parameters that it has in a core module.
const FUNCTIONS: [(&str, &str, &str); 11] = [
    ("log", "log", "i32 i32 i32"),
    ("state", "get", "i32 i32 i32 i32 i32"),
    (
        "state",
        "set",
        "i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32",
    ),
    (
        "state",
        "add",
        "i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32",
    ),
    ("state", "scan", "i32 i32 i32 i32 i32 i32 i32"),
    ("config", "get", "i32 i32 i32"),
    ("config", "all", "i32"),
    ("secrets", "get", "i32 i32 i32"),
    ("metrics", "add", "i32 i32 i32 i32 i64"),
    ("metrics", "set", "i32 i32 i32 i32 f64"),
    ("metrics", "observe", "i32 i32 i32 i32 f64"),
];

/// Arguments of each call, of eight bytes each.
const ARGUMENTS: usize = 11;

/// A component that calls the function whose number its message's value begins with, with the numbers that follow there.
fn caller() -> Forged {
    let mut items = String::new();
    let mut process =
        "(local $at i32) (local.set $at (i32.load offset=12 (local.get $batch)))".to_owned();
    for (number, (interface, function, parameters)) in FUNCTIONS.into_iter().enumerate() {
        items += &format!(
            "(import \"millrace:broker/{interface}@0.1.1\" \"{function}\" (func $f{number} (param {parameters})))\n"
        );
        let argument = |(at, kind): (usize, &str)| {
            format!("({kind}.load offset={} (local.get $at))", (at + 1) * 8)
        };
        let arguments: String = parameters.split(' ').enumerate().map(argument).collect();
        process += &format!(
            "(if (i32.eq (i32.const {number}) (i32.load (local.get $at))) (then (call $f{number} {arguments})))\n"
        );
    }
    Forged {
        world: "import millrace:broker/log@0.1.1; import millrace:broker/state@0.1.1; import millrace:broker/config@0.1.1;
            import millrace:broker/secrets@0.1.1; import millrace:broker/metrics@0.1.1;",
        items,
        process: process + &answered(),
        ..Forged::default()
    }
}

#[tokio::test]
async fn no_arguments_of_any_imported_function_are_the_hosts_failure() {
    let host = TestHost::start();
    let bytes = caller().component();
    let limits = Limits {
        call_ms_max: 60_000,
        ..Limits::default()
    };
    let request = LoadRequest {
        limits,
        grants: Grants {
            metrics: true,
            secrets: vec![SecretName::parse("token").unwrap()],
            ..Grants::default()
        },
        ..request("p", &bytes)
    };
    let handler = host.host.processor(request).await.unwrap();
    let mut random = fastrand::Rng::with_seed(15);
    let (mut returned, mut failed) = (0, 0);
    for round in 0..3_000 {
        let number = random.usize(..FUNCTIONS.len());
        let mut value = (number as u64).to_le_bytes().to_vec();
        for _ in 0..ARGUMENTS {
            // Lengths that fit, places in memory, ends of the range, and anything at all.
            let argument = match random.u32(..8) {
                0..=2 => random.u64(..5),
                3 | 4 => random.u64(..1 << 12) * 8,
                5 => random.u64(..3 << 20),
                6 => u64::MAX - random.u64(..3),
                _ => random.u64(..),
            };
            value.extend(argument.to_le_bytes());
        }
        match called(&handler, &value).await {
            Ok(()) => returned += 1,
            Err(CallError::Host(why)) => panic!("round {round}, function {number}: {why}"),
            Err(CallError::Timeout(_)) => panic!("round {round}, function {number}: no end"),
            Err(_) => failed += 1,
        }
    }
    assert!(returned > 100 && failed > 100, "{returned} {failed}");
    let good = host.processor("good", guests::UPPERCASE).await;
    assert_eq!(one(&good, "steady").await.unwrap(), "STEADY");
}

async fn called(handler: &Arc<dyn BatchHandler>, value: &[u8]) -> Result<(), CallError> {
    // Its only message has nothing but the value, so the batch's data is the value.
    let batch = batch([value]);
    let state = attempt(&batch);
    handler.process_with_state(&batch, state).await.map(drop)
}
