//! The settings that result from file, variables and flags, in their present and their earlier
//! spellings.

use std::collections::BTreeSet;

use clap::{Args, Command, FromArgMatches};
use serde_json::Value;

use super::names::{RETIRED, variable, variable_read};
use super::settings::{check_variables, paths};
use super::*;

/// The settings for a command line, in an environment without Millrace's variables.
fn flags(flags: &[&str]) -> Settings {
    let command = Settings::augment_args(Command::new("serve").no_binary_name(true));
    let matches = command.try_get_matches_from(flags).expect("flags");
    Settings::from_arg_matches(&matches).expect("settings")
}

fn loaded(file: &str, settings: &[&str]) -> Result<(Config, Vec<String>), ConfigError> {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().join("millrace.toml");
    std::fs::write(&path, file).expect("a file");
    Config::load(&flags(settings), Some(&path))
}

fn load(file: &str, settings: &[&str]) -> Result<Config, ConfigError> {
    loaded(file, settings).map(|(config, _)| config)
}

fn refusal(file: &str) -> String {
    load(file, &[]).expect_err(file).to_string()
}

/// The paths of all fields of all sections.
fn leaves(before: &str, value: &Value, found: &mut BTreeSet<String>) {
    let Some(fields) = value.as_object() else {
        found.insert(before.to_owned());
        return;
    };
    for (name, value) in fields {
        let path = match before {
            "" => name.clone(),
            before => format!("{before}.{name}"),
        };
        leaves(&path, value, found);
    }
}

/// A value for each kind of setting, as written in the file and as a flag. None is a default.
fn sample(path: &str) -> (&'static str, &'static str) {
    match path {
        "listen.http.address" => ("'127.0.0.1:8'", "127.0.0.1:8"),
        "listen.http.allowed_hosts" => ("['a', 'b']", "a,b"),
        "listen.insecure_no_auth" => ("true", "true"),
        "access.required" => ("true", "true"),
        "listen.tls.certificate_file" => ("\"host.crt\"", "host.crt"),
        "listen.tls.client_ca_file" => ("\"clients.crt\"", "clients.crt"),
        "listen.tls.client_certificates" => ("'required'", "required"),
        "listen.socket" => ("'mill.sock'", "mill.sock"),
        "listen.tls.ca_file" => ("\"ca.crt\"", "ca.crt"),
        "listen.tls.key_file" => ("\"host.key\"", "host.key"),
        "engine.kind" => ("'memory'", "memory"),
        "log.format" => ("'json'", "json"),
        "log.guests" => ("'host'", "host"),
        "log.filter" => ("'debug'", "debug"),
        "data_dir" | "encryption.key_file" | "modules.http_roots_file" | "secrets.directory" => {
            ("'somewhere'", "somewhere")
        }
        "modules.compile_memory_bytes_max" | "limits.memory_bytes" => ("268435456", "268435456"),
        "modules.guest_memory_bytes_max" | "modules.module_bytes_max" => ("1048576", "1048576"),
        "modules.require_signature" => ("true", "true"),
        "modules.trusted_keys" => ("['a', 'b']", "a,b"),
        "modules.versions" => ("'monotonic'", "monotonic"),
        "modules.compile_cpu_seconds_max" => ("31", "31"),
        "engine.postgres.connections_max" => ("9", "9"),
        "engine.advertise" | "engine.postgres.url" | "engine.postgres.schema" => {
            ("'somewhere'", "somewhere")
        }
        "engine.jetstream.urls" => ("['a', 'b']", "a,b"),
        "engine.jetstream.replicas" => ("3", "3"),
        "engine.jetstream.synced" => ("true", "true"),
        path if path.starts_with("engine.jetstream.") => ("'somewhere'", "somewhere"),
        "engine.local.journal_file_bytes" => ("65536", "65536"),
        _ => ("70000", "70000"),
    }
}

/// The settings without which one is refused.
fn goes_with(path: &str) -> &'static [&'static str] {
    match path {
        "engine.jetstream.user" => &["engine.jetstream.password_file"],
        "engine.jetstream.password_file" => &["engine.jetstream.user"],
        "engine.jetstream.certificate_file" => &["engine.jetstream.key_file"],
        "engine.jetstream.key_file" => &["engine.jetstream.certificate_file"],
        "listen.tls.certificate_file" => &["listen.tls.key_file"],
        "listen.tls.key_file" => &["listen.tls.certificate_file"],
        "listen.tls.client_ca_file" => &["listen.tls.certificate_file", "listen.tls.key_file"],
        "listen.tls.client_certificates" => &[
            "listen.tls.certificate_file",
            "listen.tls.key_file",
            "listen.tls.client_ca_file",
        ],
        _ => &[],
    }
}

#[test]
fn every_field_is_a_setting_of_its_path_and_has_a_flag() {
    let mut fields = BTreeSet::new();
    let config = serde_json::to_value(Config::default()).expect("JSON");
    leaves("", &config, &mut fields);
    let settings: BTreeSet<String> = paths().into_iter().collect();
    assert_eq!(settings, fields);
    let command = Settings::augment_args(Command::new("serve"));
    for argument in command.get_arguments() {
        let long = argument.get_long().expect("a flag");
        assert!(!long.contains(['.', '_']), "{long}");
    }
}

#[test]
fn an_old_key_says_the_same_as_the_new_one_and_is_told_of() {
    for (old, new) in RETIRED {
        let (value, _) = sample(new);
        let (before, hints) = loaded(&format!("{old} = {value}\n"), &[]).expect(old);
        assert_eq!(hints.len(), 1, "{old}");
        assert!(
            hints[0].contains(old) && hints[0].contains(new),
            "{hints:?}"
        );
        let (after, hints) = loaded(&format!("{new} = {value}\n"), &[]).expect(new);
        assert_eq!(hints, [""; 0]);
        assert_eq!(before, after, "{old}");
        assert_ne!(after, Config::default(), "{new} = {value} says nothing");
    }
}

#[test]
fn every_setting_is_the_same_by_flag_and_by_file() {
    let command = Settings::augment_args(Command::new("serve"));
    for argument in command.get_arguments() {
        let path = argument.get_id().as_str();
        let (in_file, by_flag) = sample(path);
        let flag = format!("--{}={by_flag}", argument.get_long().expect("a flag"));
        let others = goes_with(path).iter();
        let other: String = others
            .map(|other| format!("{other} = {}\n", sample(other).0))
            .collect();
        let of_flag = load(&other, &[&flag]).expect(path);
        let of_file = load(&format!("{path} = {in_file}\n{other}"), &[]).expect(path);
        assert_eq!(of_flag, of_file);
        let without: Config = toml::from_str(&other).expect("a configuration");
        assert_ne!(of_flag, without, "{flag} says nothing");
    }
}

#[test]
fn both_spellings_of_a_setting_are_refused_with_the_one_to_keep() {
    for (old, new) in RETIRED {
        let (value, _) = sample(new);
        let told = refusal(&format!("{old} = {value}\n{new} = {value}\n"));
        assert!(told.contains(&format!("keep `{new}`")), "{told}");
    }
    let told = refusal("engine = 'memory'\n[engine.local]\nsegment_bytes = 4096\n");
    assert!(told.contains("keep `engine.kind`"), "{told}");
}

#[test]
fn an_old_variable_is_read_and_told_of_and_both_are_refused() {
    let old = "MILLRACE_SEGMENT_BYTES";
    let new = "MILLRACE_ENGINE_LOCAL_SEGMENT_BYTES";
    let path = "engine.local.segment_bytes";
    assert_eq!(variable(path), new);
    assert_eq!(variable_read(path, |_| false), new);
    assert_eq!(variable_read(path, |name| name == old), old);
    assert_eq!(variable_read(path, |_| true), new);
    let hints = check_variables(|name| name == old).expect("one spelling");
    assert!(
        hints.len() == 1 && hints[0].contains(old) && hints[0].contains(new),
        "{hints:?}"
    );
    let told = check_variables(|name| [old, new].contains(&name)).expect_err("both");
    assert!(told.to_string().contains(&format!("keep {new}")), "{told}");
    // A setting whose spelling did not change has no old spelling.
    let hints = check_variables(|name| name == "MILLRACE_LOG_FILTER").expect("one spelling");
    assert_eq!(hints, [""; 0]);
}

#[test]
fn settings_go_before_the_file_and_the_file_before_the_defaults() {
    let file =
        "[listen.http]\naddress = '127.0.0.1:8'\nidle_ms = 5000\n[engine]\nkind = 'memory'\n";
    let config = load(file, &["--listen", "127.0.0.1:9"]).expect("a configuration");
    assert_eq!(config.listen.http.address, "127.0.0.1:9");
    assert_eq!(config.listen.http.idle_ms, 5_000);
    assert_eq!(config.engine.kind, EngineKind::Memory);
    assert_eq!(config.data_dir, Config::default().data_dir);
}

#[test]
fn an_unknown_key_is_refused_with_its_line_and_the_nearest_right_name() {
    let file = "stop_deadline_ms = 1\n\n";
    for (line, wrong, right) in [
        (3, "data_dri = 'x'\n", "data_dir"),
        (3, "segment_byte = 1\n", "engine.local.segment_bytes"),
        (3, "lisen = '127.0.0.1:0'\n", "listen.http.address"),
        (4, "[listen.http]\nadress = 'x'\n", "listen.http.address"),
        (
            4,
            "[engine.locl]\nsegment_bytes = 1\n",
            "engine.local.segment_bytes",
        ),
        (4, "[log]\nfromat = 'json'\n", "log.format"),
    ] {
        let text = refusal(&format!("{file}{wrong}"));
        assert!(text.contains(&format!("millrace.toml:{line}: ")), "{text}");
        let hint = format!("did you mean `{right}`?");
        assert!(text.contains(&hint), "{text}");
    }
    refusal("[nothing]\n");
}

#[test]
fn a_value_of_the_wrong_kind_is_refused_with_its_line() {
    for file in [
        "listen = 7400\n",
        "listen.http = 7400\n",
        "listen.http.address = 7400\n",
        "log = 'json'\n",
    ] {
        assert!(refusal(file).contains("millrace.toml:1: "), "{file}");
    }
    for file in ["\nengine = 'locl'\n", "\nengine.kind = 'locl'\n"] {
        let text = refusal(file);
        assert!(text.contains(":2: ") && text.contains("`local`"), "{text}");
    }
}

#[test]
fn an_address_that_others_reach_is_refused_unless_said_to_be_meant() {
    let exposed = ["--listen", "0.0.0.0:0"];
    let error = load("", &exposed).expect_err("refused");
    assert!(error.to_string().contains("--insecure-no-auth"), "{error}");
    load("[listen]\ninsecure_no_auth = true", &exposed).expect("meant");
    load("", &["--listen", "0.0.0.0:0", "--insecure-no-auth"]).expect("meant");
}

#[test]
fn values_that_cannot_be_are_refused() {
    for file in [
        "listen.http.address = 'nowhere'",
        "listen.http.address = '127.0.0.1:70000'",
        "data_dir = '/'",
        "data_dir = ''",
        "listen.http.connections_max = 0",
        "listen.http.connections_max = -1",
        "listen.http.idle_ms = 10",
        "listen.http.idle_ms = 100000000",
        "engine.local.journal_file_bytes = 1000",
        "engine.local.segment_bytes = 1000",
        "engine.local.checkpoint_journal_bytes = 0",
        "engine.local.cleaning_interval_ms = 0",
        "limits.memory_bytes = 1000",
        "limits.kept_bytes_max = -1",
        "modules.module_bytes_max = 1",
        "modules.guest_memory_bytes_max = 5000000000",
        "modules.compile_cpu_seconds_max = 0",
    ] {
        refusal(file);
    }
}

#[test]
fn variables_that_mean_nothing_are_found() {
    let names = [
        "MILLRACE_LISTEN",
        "MILLRACE_LISTEN_HTTP_ADDRESS",
        "MILLRACE_HOST",
        "MILLRACE_LISTNE",
        "PATH",
    ];
    let unknown = unknown_variables(names.map(str::to_owned));
    assert_eq!(unknown, ["MILLRACE_LISTNE"]);
}

#[test]
fn a_data_directory_whose_name_is_no_text_is_taken_as_it_is() {
    use std::os::unix::ffi::OsStrExt as _;
    let name = std::ffi::OsStr::from_bytes(b"--data-dir=\xff");
    let command = Settings::augment_args(Command::new("serve").no_binary_name(true));
    let matches = command.try_get_matches_from([name]).expect("flags");
    let settings = Settings::from_arg_matches(&matches).expect("settings");
    let (config, _) = Config::load(&settings, None).expect("a configuration");
    assert_eq!(config.data_dir.as_os_str().as_bytes(), b"\xff");
    serde_json::to_value(&config).expect("it can be shown");
}

#[test]
fn the_example_in_the_documentation_is_a_configuration() {
    let text = include_str!("../../../../docs/operations.md");
    let section = text
        .split("\n## Configuration\n")
        .nth(1)
        .expect("it is there");
    let example = section.split("```toml\n").nth(1).expect("an example");
    let example = example.split("```").next().expect("its end");
    let (config, hints) = loaded(example, &[]).expect("a configuration");
    assert_eq!(hints, [""; 0]);
    assert_eq!(config.listen.http.allowed_hosts, ["broker.example"]);
    for path in paths() {
        let (section, _) = path.rsplit_once('.').unwrap_or_default();
        assert!(
            section.is_empty() || example.contains(&format!("[{section}]")) || section == "listen",
            "{path}"
        );
    }
}

#[test]
fn identity_providers_are_tables_of_the_file_and_flags_leave_them() {
    let file = "[[access.providers]]\nissuer = 'https://id.example'\naudience = 'mill'\nprincipal = 'users'\n\
                [[access.providers]]\nissuer = 'other'\naudience = ['a', 'b']\njwks_file = 'keys.json'\nprincipal_claim = 'role'\n";
    let config = load(file, &["--require-tokens"]).expect("a configuration");
    let providers = &config.access.providers;
    assert_eq!(providers.len(), 2);
    assert_eq!(providers[0].audience, ["mill"]);
    assert_eq!(providers[1].audience, ["a", "b"]);
    assert_eq!(providers[0].algorithms, ["RS256", "ES256", "EdDSA"]);
    assert!(config.access.required);
    for (wrong, said) in [
        ("strips = true", "strip"),
        ("audience = 7", "list of texts"),
        ("leeway_s = 1000", "300"),
        ("algorithms = ['none']", "RS256"),
        ("keys = ['{sub}*']", "user:{sub}:*"),
    ] {
        let first = "[[access.providers]]\nissuer = 'https://id.example'\nprincipal = 'users'\n";
        let audience = if wrong.starts_with("audience") {
            ""
        } else {
            "audience = 'mill'\n"
        };
        let told = refusal(&format!("{first}{audience}{wrong}\n"));
        assert!(told.contains(said), "{wrong}: {told}");
    }
}
