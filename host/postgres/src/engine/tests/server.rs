//! The server of this process's tests, started with the first of them.

use std::path::Path;
use std::sync::OnceLock;

#[expect(
    unreachable_pub,
    reason = "it is part of the harness, for more than these tests"
)]
#[path = "../../../../../tests/src/postgres.rs"]
mod postgres;

pub(super) use self::postgres::Postgres;

/// The address of a server to use instead.
const GIVEN: &str = "MILLRACE_TEST_POSTGRES";

static SERVER: OnceLock<Postgres> = OnceLock::new();

/// The address of the server.
pub(super) fn url() -> String {
    let started = || Postgres::start().expect("PostgreSQL starts");
    let of_own = || SERVER.get_or_init(started).url();
    std::env::var(GIVEN).unwrap_or_else(|_| of_own())
}

/// A server for one test.
pub(super) fn start() -> Postgres {
    Postgres::start().expect("PostgreSQL starts")
}

/// As [`start`], after statements of the shell.
pub(super) fn start_with(before: &str) -> Postgres {
    Postgres::start_with(before, "").expect("PostgreSQL starts")
}

/// Each directory has a schema of its own.
pub(super) fn schema_of(directory: &Path) -> String {
    let name = directory.file_name().unwrap_or_default();
    let digits = name.to_string_lossy();
    // Capital and small letters are the same in a schema's name.
    let digits = digits.bytes().map(|byte| format!("{byte:02x}"));
    format!("t{}", digits.collect::<String>())
}
