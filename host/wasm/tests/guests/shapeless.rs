//! Answers of any shape, as the runtime reads them: any bytes as the record of an answer, and any calls of WASI's HTTP in any order.
//! `MILLRACE_FUZZ_SECONDS` makes them go on for longer, from a seed of their own.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use fastrand::Rng;
use guest_artifacts as guests;
use millrace_broker::handler::{
    CallError, HTTP_BODY_PARTS_MAX, HttpPart, HttpRequest, LoadRequest, ModuleHost as _,
};
use millrace_model::processor::Limits;
use tokio::sync::{mpsc, oneshot};
use wit_component::StringEncoding;

use crate::forged::{ANSWER_AT, Forged, answered, encoded, record};
use crate::support::{TestHost, batch, one, request};

/// Far more than a call takes, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

fn limits() -> Limits {
    Limits {
        call_ms_max: 10_000,
        answer_bytes_max: 1 << 20,
        answer_outputs_max: 1_000,
        ..Limits::default()
    }
}

/// How long a test goes on: so many runs, or for the time that the environment says.
struct Runs {
    seed: u64,
    time: Option<Duration>,
    start: Instant,
    usual: u64,
}

impl Runs {
    fn new(usual: u64) -> Self {
        let seconds = std::env::var("MILLRACE_FUZZ_SECONDS").ok();
        let time = seconds.and_then(|seconds| seconds.parse().ok());
        let time = time.map(Duration::from_secs);
        Self {
            seed: time.map_or(7, |_| fastrand::u64(..)),
            time,
            start: Instant::now(),
            usual,
        }
    }

    fn go_on(&self, runs: u64) -> bool {
        self.time
            .map_or(runs < self.usual, |time| self.start.elapsed() < time)
    }
}

/// A failure of the guest, not of the host.
fn is_its_own(error: &CallError) -> bool {
    matches!(
        error,
        CallError::Trap { .. }
            | CallError::BadAnswer(_)
            | CallError::Memory(_)
            | CallError::Unavailable(_)
    )
}

#[tokio::test]
async fn any_bytes_as_an_answer_are_within_its_limits_or_the_guests_failure() {
    let host = TestHost::start();
    // Its message's value becomes the answer's record and what follows it.
    let relay = Forged {
        process: format!(
            "(memory.copy (i32.const {ANSWER_AT}) (i32.load offset=12 (local.get $batch)) (i32.load offset=16 (local.get $batch))) {}",
            answered()
        ),
        ..Forged::default()
    };
    let handler = host.limited("p", &relay.component(), limits()).await;
    let runs = Runs::new(2_000);
    let mut rng = Rng::with_seed(runs.seed);
    let (mut count, mut read) = (0, 0);
    while runs.go_on(count) {
        let bytes = any_record(&mut rng);
        match handler.process(&batch([&bytes])).await {
            Ok(answer) => {
                read += 1;
                assert!(answer.data.len() <= 1 << 20 && answer.sources.len() <= 1_000);
            }
            Err(error) => assert!(
                is_its_own(&error),
                "seed {}, run {count}: {error}",
                runs.seed
            ),
        }
        count += 1;
    }
    println!(
        "{count} records from seed {}, {read} of them read",
        runs.seed
    );
    assert!(read > count / 20, "only {read} of {count}");
    let good = host.processor("good", guests::UPPERCASE).await;
    assert_eq!(one(&good, "steady").await.unwrap(), "STEADY");
}

/// A record with pointers and lengths into its memory, mostly, and bytes behind it that its lists may point to.
fn any_record(rng: &mut Rng) -> Vec<u8> {
    let lists: Vec<(usize, u32, u32)> = (0..rng.usize(..5))
        .map(|_| {
            let pointer = match rng.u32(..5) {
                0 => rng.u32(..),
                1 => (2 << 20) - rng.u32(..9),
                _ => ANSWER_AT as u32 + rng.u32(..300) * 8,
            };
            let length = match rng.u32(..6) {
                0 => rng.u32(..),
                1 => 1 << rng.u32(..32),
                _ => rng.u32(..40),
            };
            (rng.usize(..12), pointer, length)
        })
        .collect();
    let mut bytes = record(&lists);
    let behind: Vec<u8> = (0..rng.usize(..2_000))
        .map(|_| if rng.bool() { rng.u8(..4) } else { rng.u8(..) })
        .collect();
    bytes.extend(behind);
    for _ in 0..rng.usize(..3) {
        let at = rng.usize(..bytes.len());
        bytes[at] = rng.u8(..);
    }
    bytes
}

/// Functions of WASI's HTTP: name, what its parameters are, and whether it returns a number. A parameter is a handle, a pointer, a length, a
/// status, a case, a long number, or where the result goes.
const FUNCTIONS: [(&str, &str, &str, bool); 22] = [
    ("types", "[constructor]fields", "", true),
    ("types", "[static]fields.from-list", "plr", false),
    ("types", "[method]fields.append", "hplplr", false),
    ("types", "[method]fields.set", "hplplr", false),
    ("types", "[method]fields.delete", "hplr", false),
    ("types", "[method]fields.entries", "hr", false),
    ("types", "[method]fields.clone", "h", true),
    ("types", "[resource-drop]fields", "h", false),
    ("types", "[constructor]outgoing-response", "h", true),
    (
        "types",
        "[method]outgoing-response.set-status-code",
        "hs",
        true,
    ),
    ("types", "[method]outgoing-response.headers", "h", true),
    ("types", "[method]outgoing-response.body", "hr", false),
    ("types", "[resource-drop]outgoing-response", "h", false),
    ("types", "[method]outgoing-body.write", "hr", false),
    ("types", "[static]outgoing-body.finish", "hchr", false),
    ("types", "[resource-drop]outgoing-body", "h", false),
    ("types", "[static]response-outparam.set", "hchcjplcc", false),
    ("types", "[method]incoming-request.consume", "hr", false),
    ("types", "[resource-drop]incoming-request", "h", false),
    ("streams", "[method]output-stream.write", "hplr", false),
    (
        "streams",
        "[method]output-stream.blocking-write-and-flush",
        "hplr",
        false,
    ),
    ("streams", "[resource-drop]output-stream", "h", false),
];

/// Letters of one call in a program: the function, and up to nine arguments.
const CALL_LETTERS: usize = 10;

/// The letter of the number 0; those of the others follow, as far as a path may have them.
const ZERO: u8 = b'@';

/// The numbers that have a letter.
const LETTERS: u8 = 32;

/// A component that makes the calls that the path of its request spells.
fn speller() -> Vec<u8> {
    let (mut imports, mut calls) = (String::new(), String::new());
    for (number, (interface, function, parameters, returns)) in FUNCTIONS.into_iter().enumerate() {
        let package = if interface == "types" { "http" } else { "io" };
        let kinds = parameters
            .chars()
            .map(|kind| if kind == 'j' { " i64" } else { " i32" });
        let kinds: String = kinds.collect();
        let result = if returns { "(result i32)" } else { "" };
        imports += &format!(
            "(import \"wasi:{package}/{interface}@0.2.12\" \"{function}\" (func $f{number} (param{kinds}) {result}))\n"
        );
        let argument = |(at, kind): (usize, char)| {
            let letter = format!(
                "(i32.sub (i32.load8_u offset={} (local.get $at)) (i32.const {ZERO}))",
                at + 1
            );
            match kind {
                'p' => format!("(i32.mul {letter} (i32.const 16))"),
                's' => format!("(i32.mul {letter} (i32.const 32))"),
                'c' => format!("(i32.and {letter} (i32.const 1))"),
                'j' => format!("(i64.extend_i32_u {letter})"),
                'r' => "(i32.const 2048)".to_owned(),
                _ => letter,
            }
        };
        let arguments: String = parameters.chars().enumerate().map(argument).collect();
        let call = format!("(call $f{number} {arguments})");
        let call = if returns {
            format!("(drop {call})")
        } else {
            call
        };
        calls += &format!(
            "(if (i32.eq (i32.load8_u (local.get $at)) (i32.const {})) (then {call}))\n",
            usize::from(ZERO) + number
        );
    }
    let core = format!(
        r#"(module
        {imports}
        (import "wasi:http/types@0.2.12" "[method]incoming-request.path-with-query" (func $path (param i32 i32)))
        (memory (export "memory") 4)
        (global $next (mut i32) (i32.const 65536))
        (func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32)
            (global.set $next (i32.and (i32.add (global.get $next) (i32.const 15)) (i32.const -16)))
            (global.get $next)
            (global.set $next (i32.add (global.get $next) (local.get 3))))
        (func (export "wasi:http/incoming-handler@0.2.12#handle") (param $request i32) (param $out i32)
            (local $at i32) (local $end i32)
            (call $path (local.get $request) (i32.const 3072))
            (local.set $at (i32.add (i32.load (i32.const 3076)) (i32.const 1)))
            (local.set $end (i32.add (i32.load (i32.const 3076)) (i32.load (i32.const 3080))))
            (block $done (loop $again
                (br_if $done (i32.gt_u (i32.add (local.get $at) (i32.const {CALL_LETTERS})) (local.get $end)))
                {calls}
                (local.set $at (i32.add (local.get $at) (i32.const {CALL_LETTERS})))
                (br $again))))
        (data (i32.const 0) "x-first         content-length  5               10              transfer-encodinchunked         {}")
        (data (i32.const 256) "\00\00\00\00\07\00\00\00\20\00\00\00\01\00\00\00"))"#,
        "set-cookie\\0d\\0a  \\ff\\fe\\00"
    );
    let world = "import wasi:http/types@0.2.12; import wasi:io/streams@0.2.12; export wasi:http/incoming-handler@0.2.12;";
    encoded(&core, world, StringEncoding::UTF8)
}

/// One call: its function by name, and its arguments.
fn call(function: &str, arguments: &[u8]) -> [u8; CALL_LETTERS] {
    let at = FUNCTIONS.iter().position(|(_, name, ..)| *name == function);
    let mut letters = [ZERO; CALL_LETTERS];
    letters[0] = ZERO + at.expect("a function") as u8;
    for (letter, argument) in letters[1..].iter_mut().zip(arguments) {
        *letter = ZERO + argument;
    }
    letters
}

/// Calls that answer with a header, a status and a body, as a toolchain makes them. The request is handle 1 and the means to answer 2; the
/// next ones follow, and the latest that is free is taken first.
fn sound_program() -> Vec<[u8; CALL_LETTERS]> {
    vec![
        call("[constructor]fields", &[]),
        call("[method]fields.append", &[3, 0, 7, 2, 1]),
        call("[constructor]outgoing-response", &[3]),
        call("[method]outgoing-response.set-status-code", &[3, 7]),
        call("[method]outgoing-response.body", &[3]),
        call("[static]response-outparam.set", &[2, 0, 3]),
        call("[method]outgoing-body.write", &[4]),
        call(
            "[method]output-stream.blocking-write-and-flush",
            &[3, 0, 30],
        ),
        call("[method]output-stream.write", &[3, 0, 20]),
        call("[resource-drop]output-stream", &[3]),
        call("[static]outgoing-body.finish", &[4, 0, 0]),
    ]
}

fn any_program(rng: &mut Rng) -> Vec<[u8; CALL_LETTERS]> {
    let mut program = sound_program();
    for _ in 0..rng.usize(..5) {
        let at = rng.usize(..=program.len());
        match rng.u32(..5) {
            0 if at < program.len() => drop(program.remove(at)),
            1 if at < program.len() => program.insert(at, program[at]),
            2 if at > 0 && at < program.len() => program.swap(at - 1, at),
            3 if at < program.len() => {
                let letter = rng.usize(1..CALL_LETTERS);
                program[at][letter] = ZERO + any_argument(rng);
            }
            _ => {
                let mut letters = [ZERO; CALL_LETTERS];
                letters[0] = ZERO + rng.u8(..FUNCTIONS.len() as u8);
                letters[1..].fill_with(|| ZERO + any_argument(rng));
                program.insert(at, letters);
            }
        }
    }
    program
}

/// A small number, mostly: a handle that may be there.
fn any_argument(rng: &mut Rng) -> u8 {
    match rng.bool() {
        true => rng.u8(..6),
        false => rng.u8(..LETTERS),
    }
}

#[tokio::test]
async fn any_calls_of_http_in_any_order_give_an_answer_or_are_the_guests_failure() {
    let host = TestHost::start();
    let bytes = speller();
    let load = LoadRequest {
        limits: limits(),
        ..request("/spell", &bytes)
    };
    let handler = host.host.http_handler(load).await.unwrap();
    let runs = Runs::new(1_000);
    let mut rng = Rng::with_seed(runs.seed);
    let (mut count, mut whole) = (0, 0);
    while runs.go_on(count) {
        let program = match count {
            0 => sound_program(),
            _ => any_program(&mut rng),
        };
        let path = format!("/{}", String::from_utf8(program.concat()).unwrap());
        let (sender, body) = mpsc::channel(HTTP_BODY_PARTS_MAX);
        sender.send(HttpPart::End).await.unwrap();
        let asked = HttpRequest {
            method: "GET".to_owned(),
            target: path.clone(),
            authority: "example.com".to_owned(),
            headers: vec![("x-asked".to_owned(), Bytes::from_static(b"politely"))],
            body,
        };
        let (sender, head) = oneshot::channel();
        let handler = Arc::clone(&handler);
        let serving = tokio::spawn(async move { handler.handle(asked, sender).await });
        let mut is_whole = false;
        if let Ok(mut answer) = head.await {
            let mut bytes = 0;
            while let Some(part) = answer.body.recv().await {
                match part {
                    HttpPart::Bytes(part) => bytes += part.len(),
                    HttpPart::End => is_whole = true,
                }
            }
            assert!(bytes <= 1 << 20 && answer.status < 1_000, "{path}");
        }
        let ended = tokio::time::timeout(PATIENCE, serving).await;
        let ended = ended
            .unwrap_or_else(|_| panic!("no end of {path}"))
            .unwrap();
        let place = format!("seed {}, run {count}, {path}: {ended:?}", runs.seed);
        assert!(ended.as_ref().err().is_none_or(is_its_own), "{place}");
        assert!(ended.is_err() || is_whole, "{place}");
        assert!(count > 0 || is_whole, "{place}");
        whole += u64::from(is_whole);
        count += 1;
    }
    println!(
        "{count} programs from seed {}, {whole} whole answers",
        runs.seed
    );
    assert!(whole > count / 20, "only {whole} of {count}");
}
