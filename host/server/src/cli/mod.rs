//! The command line: `serve` runs a host; every other command talks to one over HTTP.
//!
//! Results go to standard output, progress and notes to standard error. If the reader of the output goes away, the command ends
//! quietly. Exit codes: 0 done, 1 failed, 2 usage or configuration, 3 not found, 4 refused, 5 host unreachable, 6 data directory in use,
//! 7 engine poisoned by a disk error, 130 interrupted.

mod access;
mod backup;
mod bench;
mod client;
mod command;
mod completions;
mod consume;
mod consumer;
mod context;
mod contexts;
mod copy;
mod damage;
mod delayed;
mod demo;
mod deploy;
mod develop;
mod dlq;
mod doctor;
mod failure;
mod feed;
mod gathered;
mod hosts;
mod keys;
mod login;
mod module;
mod oci;
mod output;
mod parked;
mod paths;
mod processor;
mod produce;
mod replay;
mod restore;
mod route;
mod schedule;
mod secret;
mod segment;
mod serve;
mod state;
mod status;
mod table;
mod target;
mod topic;
mod trials;
mod unix;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::modules::COMPILE_COMMAND;
use client::Client;
use contexts::{Contexts, Store};
use failure::Failure;
use target::Given;

const AFTER_HELP: &str = "\
Examples:
  millrace demo                                    see it work in a minute
  millrace serve                                   run a host
  millrace new greeter --lang rust                 write a component of your own
  millrace topic create orders --partitions 4
  millrace module push uppercase.wasm --tag uppercase@1.0.0
  millrace processor deploy shout --module uppercase@1.0.0 --topic orders --output loud
  millrace produce orders --key 17 '{\"item\":\"mill\"}'
  millrace consume loud --follow
  millrace consume loud --as billing               continue where this reader stopped
  millrace dlq list shout
  millrace backup backups/host                     copy everything while the host runs
  millrace doctor                                  is the data directory sound?
  millrace login --host https://mill.example.com   talk to that host from now on

Exit codes: 0 done, 1 failed, 2 usage or configuration, 3 not found, 4 refused, 5 host unreachable,
            6 data directory in use, 7 engine stopped by a disk error, 130 interrupted";

/// A message broker that runs your WebAssembly.
#[derive(Parser)]
#[command(name = "millrace", version, about = "A message broker that runs your WebAssembly", arg_required_else_help = true, after_help = AFTER_HELP, max_term_width = 110)]
struct Cli {
    /// The host to talk to: its URL, or unix:FILE for its Unix socket [default: that of the context, or http://127.0.0.1:7400]
    #[arg(long, global = true, value_name = "URL", env = "MILLRACE_HOST")]
    host: Option<String>,
    /// The context to use, see `millrace login` [default: the current one]
    #[arg(long, global = true, value_name = "NAME", env = "MILLRACE_CONTEXT")]
    context: Option<String>,
    /// Print JSON, for programs
    #[arg(long, global = true)]
    json: bool,
    /// How long to keep trying while the host is unreachable or busy [default: 0; produce: 30, consume --follow: 300]
    #[arg(long, global = true, value_name = "SECONDS")]
    retry_for: Option<u64>,
    /// A file with the token to send to the host; without it, the variable MILLRACE_TOKEN, or the context's
    #[arg(long, global = true, value_name = "FILE", env = "MILLRACE_TOKEN_FILE")]
    token_file: Option<PathBuf>,
    /// A PEM file with the certificates that the host's is checked against [default: the context's, or those of this machine]
    #[arg(long = "ca", global = true, value_name = "FILE", env = "MILLRACE_CA")]
    authority: Option<PathBuf>,
    /// A PEM file with this client's certificate, and those between it and its root
    #[arg(
        long,
        global = true,
        value_name = "FILE",
        env = "MILLRACE_CLIENT_CERTIFICATE"
    )]
    client_certificate: Option<PathBuf>,
    /// A PEM file with the key of this client's certificate
    #[arg(long, global = true, value_name = "FILE", env = "MILLRACE_CLIENT_KEY")]
    client_key: Option<PathBuf>,
    /// The same, with where the user said it.
    #[arg(skip)]
    given: Given,
    #[command(subcommand)]
    command: Command,
}

#[allow(clippy::large_enum_variant, reason = "there is one in a process")]
#[derive(Subcommand)]
enum Command {
    /// Run a host
    Serve(serve::Args),
    /// See real messages go the whole way, in a minute
    Demo(demo::Args),
    /// Write a project from a template, for a component of your own
    New(develop::new::Args),
    /// Build a project's component
    Build(develop::build::Args),
    /// Run a project's component against sample messages
    Test(develop::test::Args),
    /// Run a project on a host, and swap it whenever a source is saved
    Dev(develop::dev::Args),
    /// Create, list, show, change, trim and delete topics
    #[command(subcommand)]
    Topic(topic::Verb),
    /// Append messages to a topic
    Produce(produce::Args),
    /// List and cancel delayed messages
    #[command(subcommand)]
    Delayed(delayed::Verb),
    /// Read messages of a topic
    Consume(consume::Args),
    /// Manage named readers, which continue where they stopped
    #[command(subcommand)]
    Consumer(consumer::Verb),
    /// Create messages by the clock
    #[command(subcommand)]
    Schedule(schedule::Verb),
    /// Manage routes: HTTP paths that components answer
    #[command(subcommand)]
    Route(route::Verb),
    /// Upload, list, show, tag, sign, copy and delete modules
    #[command(subcommand)]
    Module(module::Verb),
    /// Deploy and manage processors
    #[command(subcommand)]
    Processor(processor::Verb),
    /// Inspect dead letters and send them again
    #[command(subcommand)]
    Dlq(dlq::Verb),
    /// Show damage, and accept losses
    #[command(subcommand)]
    Damage(damage::Verb),
    /// Manage principals: who may do what, and their tokens and passwords
    #[command(subcommand)]
    Access(access::Verb),
    /// Keep a host's URL and a token for it, and use them from now on
    #[command(after_help = login::HELP)]
    Login,
    /// Forget the token that is kept for a host
    #[command(after_help = "Examples:\n  millrace logout\n  millrace logout prod")]
    Logout(context::LogoutArgs),
    /// List, choose, show and remove contexts: names for hosts, and how to reach them
    #[command(subcommand)]
    Context(context::Verb),
    /// Show what is running: version, uptime, counts, limits and settings in force
    Status(status::Args),
    /// List the hosts that share a store
    #[command(subcommand)]
    Host(hosts::Verb),
    /// Measure a running host
    Bench(bench::Args),
    /// Examine a data directory, a database or a NATS server, and repair a directory if asked to
    Doctor(doctor::Args),
    /// Back up a running host, or verify a backup
    Backup(backup::Args),
    /// Restore a backup to a data directory
    Restore(restore::Args),
    /// Copy everything from one engine to another
    Copy(copy::Args),
    /// Inspect a segment file without changing it
    #[command(subcommand)]
    Segment(segment::Verb),
    /// Print a completion script for a shell
    Completions(completions::CompletionsArgs),
    /// Print the manual page, or write a page for every command
    Man(completions::ManArgs),
}

/// Reads the command line, runs the command and reports the result.
#[must_use]
pub fn main() -> ExitCode {
    // The command that the host starts to compile an upload is not for people: it has no help, completion or suggestion.
    let mut words = std::env::args_os().skip(1);
    if words.next().is_some_and(|word| word == COMPILE_COMMAND) {
        let limits: Vec<String> = words.filter_map(|word| word.into_string().ok()).collect();
        return millrace_wasm::compile_child_main(&limits);
    }
    let matches = command::command().get_matches();
    let json = matches.get_flag("json");
    let cli = match command::understood(&matches) {
        Ok(cli) => cli.unwrap_or_else(|error| error.exit()),
        Err(failure) => return failure.report(json),
    };
    let serves = matches!(cli.command, Command::Serve(_));
    match cli.run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) if serves => serve::report(failure, json),
        Err(failure) => failure.report(json),
    }
}

impl Cli {
    fn run(self) -> Result<(), Failure> {
        let (json, retry_for, given) = (self.json, self.retry_for, self.given);
        // Not before a command needs it: others must not fail for what is wrong with contexts.
        let client = || {
            let contexts = match Store::new(json).read() {
                Err(_) if given.needs_no_context() => Contexts::default(),
                contexts => contexts?,
            };
            let target = given.target(&contexts)?;
            Client::of(target, json, retry_for)
        };
        match self.command {
            Command::Serve(args) => serve::run(args),
            Command::Doctor(args) => doctor::run(args, json),
            Command::Backup(args) => backup::run(args, client()),
            Command::Restore(args) => restore::run(args, json),
            Command::Copy(args) => wait_for(copy::run(args, json)),
            Command::Segment(verb) => segment::run(verb, json),
            Command::Completions(args) => completions::complete(&args, command::command()),
            Command::Man(args) => completions::man(&args, command::command()),
            Command::Demo(args) => wait_for(demo::run(args)),
            Command::New(args) => develop::new::run(args, json),
            Command::Build(args) => develop::build::run(&args, json),
            Command::Test(args) => develop::test::run(args, json),
            Command::Dev(args) => develop::dev::run(args, json),
            Command::Login => login::run(&given, json, retry_for),
            Command::Logout(args) => context::logout(args, json),
            Command::Context(verb) => context::run(verb, json),
            Command::Access(verb) => access::run(verb, &client()?),
            Command::Status(args) => status::run(args, &client()?),
            Command::Host(verb) => hosts::run(verb, &client()?),
            Command::Bench(args) => bench::run(args, &client()?),
            Command::Topic(verb) => topic::run(verb, &client()?),
            Command::Damage(verb) => damage::run(verb, &client()?),
            Command::Produce(args) => produce::run(args, &client()?),
            Command::Delayed(verb) => delayed::run(verb, &client()?),
            Command::Schedule(verb) => schedule::run(verb, &client()?),
            Command::Route(verb) => route::run(verb, &client()?),
            Command::Consume(args) => consume::run(args, &client()?),
            Command::Consumer(verb) => consumer::run(verb, &client()?),
            Command::Module(verb) => module::run(verb, &client()?),
            Command::Processor(verb) => processor::run(verb, &client()?),
            Command::Dlq(verb) => dlq::run(verb, &client()?),
        }
    }
}

/// Runs a command that needs a runtime.
fn wait_for(work: impl Future<Output = Result<(), Failure>>) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::failed(format!("the runtime does not start: {error}")))?;
    runtime.block_on(work)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        command::command().debug_assert();
    }

    #[test]
    fn every_command_has_examples_or_sub_commands() {
        for command in command::command().get_subcommands() {
            let has = command.has_subcommands() || command.get_after_help().is_some();
            assert!(has && !command.is_hide_set(), "{}", command.get_name());
        }
    }
}
