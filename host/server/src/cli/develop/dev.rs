//! `dev`: runs a project on a host of its own, with everything in one terminal. Each save builds the component and deploys it as the
//! next revision, while messages continue to flow. A build that fails changes nothing.

use std::path::PathBuf;
use std::thread;

use millrace_component::Kind;
use millrace_model::processor::Origin;
use millrace_model::{ProcessorName, RoutePath, SecretName, TopicName};
use serde_json::{Map, Value, json};
use ureq::http::Method;

use super::build::{Component, build};
use super::project::Project;
use super::requests::Request;
use super::samples::{self, FOLDER};
use super::watch::{INTERVAL, Seen};
use crate::cli::client::{Client, TlsFiles, escaped};
use crate::cli::deploy::config_value;
use crate::cli::failure::{Exit, Failure};
use crate::cli::feed::heed;
use crate::cli::gathered::unseen;
use crate::cli::module;
use crate::cli::output::Output;
use crate::cli::processor::log_line;
use crate::cli::table::{cell, items, short};
use crate::config::Config;
use crate::host::Host;

const AFTER_HELP: &str = "\
Examples:
  millrace dev                                         topics in and out, on a free port
  millrace dev --listen 127.0.0.1:7400 --send first    send samples/first.ndjson, too
  millrace dev --data-dir dev-data --input orders --output loud
  millrace dev --config greeting=hi --secrets-dir secrets --grant-secret api-key
  millrace dev --path /hooks/orders --grant-topic orders   kind http: answer requests

Starts a host, creates the topics, builds the project and deploys it; then prints outputs, log lines and dead letters, and
builds and deploys again whenever a file of the project is saved. If a build fails, the running revision continues.
Send messages from another terminal: millrace produce in 'hello' --host URL. Ctrl-C stops the host.
A component of the kind http is set as a route; what it sends to the topics of its grants is printed. Its path and grants are those
of [route] in millrace.toml and of the flags.";

/// Printed if the user does not wait for the end.
const TWICE: &str = "interrupted twice; the host did not stop by itself";
/// Messages or dead letters that are shown per look.
const SHOWN_MAX: usize = 100;
/// Characters of an answer that are shown.
const ANSWER_CHARS_SHOWN_MAX: usize = 200;

/// Run a project on a host, and swap it whenever a source is saved
#[derive(clap::Args)]
#[command(after_help = AFTER_HELP)]
pub(in crate::cli) struct Args {
    /// The project's folder
    #[arg(value_name = "FOLDER", default_value = ".")]
    dir: PathBuf,
    /// Where the host listens; port 0 is a free one
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:0")]
    listen: String,
    /// Where the host stores its data [default: a temporary folder]
    #[arg(long, value_name = "FOLDER")]
    data_dir: Option<PathBuf>,
    /// The topic that the processor reads
    #[arg(long, value_name = "TOPIC", default_value = "in")]
    input: TopicName,
    /// The topic for its outputs
    #[arg(long, value_name = "TOPIC", default_value = "out")]
    output: TopicName,
    /// For the kind http: the route's path [default: that of millrace.toml, or the component's name]
    #[arg(long, value_name = "PATH")]
    path: Option<RoutePath>,
    /// For the kind http: a processor whose state it may read; repeat it for several
    #[arg(long = "grant-view", value_name = "PROCESSOR")]
    grant_views: Vec<ProcessorName>,
    /// Another topic that it may write to, which is created, too; repeat it for several
    #[arg(long = "grant-topic", value_name = "TOPIC")]
    grant_topics: Vec<TopicName>,
    /// A secret of the host that it may read; repeat it for several
    #[arg(long = "grant-secret", value_name = "SECRET")]
    grant_secrets: Vec<SecretName>,
    /// A server that it may send HTTP requests to; repeat it for several
    #[arg(long = "grant-http", value_name = "ORIGIN")]
    grant_http: Vec<Origin>,
    /// Let names of these servers resolve to private addresses
    #[arg(long)]
    grant_http_private: bool,
    /// A setting that its component reads; repeat it for several
    #[arg(long = "config", value_name = "KEY=VALUE", value_parser = config_value)]
    config: Vec<(String, String)>,
    /// Directory with one file for each secret of the host, named after it
    #[arg(long, value_name = "DIR")]
    secrets_dir: Option<PathBuf>,
    /// A sample whose messages or requests are sent after each deployment
    #[arg(long, value_name = "SAMPLE")]
    send: Option<String>,
}

pub(in crate::cli) fn run(args: Args, json: bool) -> Result<(), Failure> {
    let project = Project::read(&args.dir)?;
    if !matches!(project.kind, Kind::Processor | Kind::Http) {
        let message = format!(
            "`millrace dev` runs processors and components that answer HTTP, and this is a {}",
            project.kind
        );
        return Err(Failure::usage(message).with_hint("use `millrace test --watch`"));
    }
    if let Some(sample) = &args.send {
        samples::check(&project, sample)?;
    }
    if project.kind == Kind::Processor && (args.path.is_some() || !args.grant_views.is_empty()) {
        let message = "--path and --grant-view are for components of the kind http";
        return Err(Failure::usage(message).with_hint("leave them out"));
    }
    let scratch = tempfile::tempdir()?;
    let mut config = Config {
        data_dir: args
            .data_dir
            .clone()
            .unwrap_or_else(|| scratch.path().join("data")),
        ..Config::default()
    };
    config.listen.http.address.clone_from(&args.listen);
    config.secrets.directory.clone_from(&args.secrets_dir);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    let host = runtime.block_on(Host::start(config))?;
    let client = Client::new(&host.url(), TlsFiles::default(), json, None);
    let ended = client.and_then(|client| {
        heed(client.interrupt.clone(), TWICE, || {})?;
        Loop::new(&args, project, &client)?.run()
    });
    runtime.block_on(host.stop());
    match ended {
        Err(Failure::ClosedPipe) => Ok(()),
        ended => ended,
    }
}

/// What the component is deployed as.
enum Role {
    Processor(ProcessorName),
    Route(RoutePath),
}

/// A topic whose new messages are printed.
struct Followed {
    topic: TopicName,
    /// Where they go on.
    next: u64,
}

/// The running loop.
struct Loop<'a> {
    args: &'a Args,
    client: &'a Client,
    project: Project,
    role: Role,
    out: Output,
    /// What is deployed: the specification, which names the component by its digest.
    deployed: Option<Value>,
    /// The topics whose new messages are printed.
    followed: Vec<Followed>,
    /// The last log lines that were shown.
    lines: Vec<Value>,
    /// Where dead letters go on.
    next_letter: Option<String>,
}

impl Role {
    fn of(args: &Args, project: &Project) -> Result<Self, Failure> {
        if project.kind != Kind::Http {
            let name = ProcessorName::parse(&project.name);
            let name = name.map_err(|error| Failure::usage(error.to_string()))?;
            return Ok(Self::Processor(name));
        }
        let given = args.path.as_ref().or(project.route.path.as_ref());
        let path = match given {
            Some(path) => path.clone(),
            None => RoutePath::parse(&format!("/{}", project.name)).map_err(|error| {
                Failure::usage(error.to_string()).with_hint("choose a path with --path")
            })?,
        };
        Ok(Self::Route(path))
    }
}

/// Where the messages of a topic's only partition are.
fn messages_of(topic: &TopicName) -> String {
    format!("/v1/topics/{topic}/partitions/0/messages")
}

impl<'a> Loop<'a> {
    fn new(args: &'a Args, project: Project, client: &'a Client) -> Result<Self, Failure> {
        let role = Role::of(args, &project)?;
        let mut new = Self {
            args,
            client,
            project,
            role,
            out: client.output(),
            deployed: None,
            followed: Vec::new(),
            lines: Vec::new(),
            next_letter: None,
        };
        for topic in new.topics() {
            new.create(&topic)?;
        }
        let followed = match new.role {
            Role::Processor(_) => vec![args.output.clone()],
            Role::Route(_) => new.topics(),
        };
        for topic in followed {
            new.follow_topic(topic)?;
        }
        Ok(new)
    }

    /// The topics that it uses. Those of millrace.toml may change with a save.
    fn topics(&self) -> Vec<TopicName> {
        let own = match self.role {
            Role::Processor(_) => vec![self.args.input.clone(), self.args.output.clone()],
            Role::Route(_) => self.project.route.topics.clone(),
        };
        let mut topics = own;
        for topic in &self.args.grant_topics {
            if !topics.contains(topic) {
                topics.push(topic.clone());
            }
        }
        topics
    }

    /// Prints what a topic gets from now on.
    fn follow_topic(&mut self, topic: TopicName) -> Result<(), Failure> {
        let answer = self
            .client
            .get(&format!("{}?from=latest&max=1", messages_of(&topic)))?;
        let next = answer["next"].as_u64().unwrap_or(0);
        self.followed.push(Followed { topic, next });
        Ok(())
    }

    /// Creates a topic, unless the data directory has it.
    fn create(&self, topic: &TopicName) -> Result<(), Failure> {
        let about = json!({ "name": topic, "partitions": 1 });
        match self.client.send(Method::POST, "/v1/topics", &about) {
            Err(Failure::Told {
                exit: Exit::Refused,
                ..
            }) => self.client.get(&format!("/v1/topics/{topic}")).map(drop),
            other => other.map(drop),
        }
    }

    fn url(&self, rest: &str) -> String {
        match &self.role {
            Role::Processor(name) => format!("/v1/processors/{name}{rest}"),
            Role::Route(path) => format!("/v1/routes{path}{rest}"),
        }
    }

    fn run(mut self) -> Result<(), Failure> {
        let url = self.client.url().to_owned();
        let (input, output) = (&self.args.input, &self.args.output);
        let (text, object) = match &self.role {
            Role::Processor(name) => (
                format!("{url}: topic {input} -> {name} -> topic {output}"),
                json!({"url": url}),
            ),
            Role::Route(path) => (
                format!("{url}: requests to {url}{path}"),
                json!({"url": url, "path": path}),
            ),
        };
        self.tell("host", &text, object)?;
        loop {
            let seen = Seen::now(&self.args.dir);
            match self.next_revision() {
                Ok(()) => {}
                Err(Failure::ClosedPipe) => return Err(Failure::ClosedPipe),
                Err(failure) => self.refused(failure)?,
            }
            loop {
                if self.client.interrupt.is_wanted() {
                    return self.tell("stopped", "stopping the host", json!({}));
                }
                self.follow()?;
                if let Some(path) = Seen::now(&self.args.dir).changed_since(&seen) {
                    let path = path.strip_prefix(&self.args.dir).unwrap_or(path);
                    let path = path.display().to_string();
                    self.tell("saved", &path, json!({ "file": path }))?;
                    break;
                }
                thread::sleep(INTERVAL);
            }
        }
    }

    /// Builds and deploys, unless the component is the same as before.
    fn next_revision(&mut self) -> Result<(), Failure> {
        self.project = Project::read(&self.args.dir)?;
        let component = build(&self.project)?;
        let digest = component.digest.to_string();
        let spec = self.spec(&component, &digest);
        if self.deployed.as_ref() == Some(&spec) {
            return self.tell(
                "unchanged",
                "the component is the same as before",
                json!({}),
            );
        }
        let body = component.bytes.as_slice();
        module::upload(self.client, None, None, None, body)?;
        for topic in self.topics() {
            let is_known = self.followed.iter().any(|followed| followed.topic == topic);
            if matches!(self.role, Role::Route(_)) && !is_known {
                self.create(&topic)?;
                self.follow_topic(topic)?;
            }
        }
        let (method, revision) = match self.role {
            Role::Processor(_) => (Method::PATCH, "current"),
            Role::Route(_) => (Method::PUT, "revision"),
        };
        let answer = self.client.send(method, &self.url(""), &spec)?;
        let is_new = self.deployed.replace(spec).is_none();
        let revision = &answer[revision];
        let which = short(&json!(digest));
        let text = format!(
            "revision {revision} runs, component {which}, {} bytes",
            component.bytes.len()
        );
        let paused = answer["paused"] == true;
        self.tell(
            "deployed",
            &text,
            json!({"revision": revision, "digest": digest, "paused": paused}),
        )?;
        if is_new {
            self.start_following()?;
        }
        self.send_sample()
    }

    fn spec(&self, component: &Component, digest: &str) -> Value {
        let topics = match self.role {
            Role::Processor(_) => self.args.grant_topics.clone(),
            Role::Route(_) => self.topics(),
        };
        let views = self.project.route.views.iter();
        let views: Vec<_> = views.chain(&self.args.grant_views).collect();
        let grants = json!({
            "topics": topics,
            "metrics": component.imports("millrace:broker/metrics"),
            "secrets": self.args.grant_secrets,
            "http": self.args.grant_http,
            "http_private": self.args.grant_http_private,
            "views": views,
        });
        let config = self.args.config.iter();
        let config: Map<String, Value> = config
            .map(|(key, value)| (key.clone(), json!(value)))
            .collect();
        match self.role {
            Role::Processor(_) => json!({
                "module": digest,
                "topics": [self.args.input],
                "output": self.args.output,
                "grants": grants,
                "config": config,
            }),
            Role::Route(_) => json!({ "module": digest, "grants": grants, "config": config }),
        }
    }

    /// What an earlier run left in the data directory is not shown.
    fn start_following(&mut self) -> Result<(), Failure> {
        loop {
            let letters = self.letters()?;
            if letters.is_empty() {
                return Ok(());
            }
        }
    }

    fn send_sample(&mut self) -> Result<(), Failure> {
        let Some(name) = &self.args.send else {
            return Ok(());
        };
        if let Role::Route(path) = &self.role {
            let path = path.clone();
            let samples = samples::read_all(&self.project, std::slice::from_ref(name))?;
            let mut requests = samples.iter().flat_map(|sample| &sample.requests);
            return requests.try_for_each(|request| self.send_request(&path, request));
        }
        let file = self.args.dir.join(FOLDER).join(format!("{name}.ndjson"));
        let bytes = std::fs::read(&file).map_err(|error| {
            Failure::usage(format!("{} cannot be read: {error}", file.display()))
        })?;
        let path = format!("/v1/topics/{}/messages", self.args.input);
        let sent = self
            .client
            .upload(&path, "application/x-ndjson", bytes.as_slice())?;
        let count = sent["count"].clone();
        self.tell(
            "sent",
            &format!("{count} messages of sample {name}"),
            json!({ "count": count }),
        )
    }

    /// Sends a request to the route, and prints the answer.
    fn send_request(&mut self, route: &RoutePath, request: &Request) -> Result<(), Failure> {
        let target = &request.target;
        let path = target.split('?').next().unwrap_or(target);
        // A sample need not know where the component is mounted.
        let target = match route.covers(path) {
            true => target.clone(),
            false => format!("{route}{target}"),
        };
        let method = Method::from_bytes(request.method.as_bytes());
        let method = method.map_err(|error| Failure::usage(error.to_string()))?;
        let headers = request.headers.iter();
        let headers: Vec<(&str, &str)> = headers
            .filter(|(name, _)| name != "content-length")
            .filter_map(|(name, value)| Some((name.as_str(), str::from_utf8(value).ok()?)))
            .collect();
        let (status, body) = self.client.raw(method, &target, &headers, &request.body)?;
        let body = String::from_utf8_lossy(&body);
        let shown: String = body.chars().take(ANSWER_CHARS_SHOWN_MAX).collect();
        let shown = shown.replace(char::is_control, " ");
        self.tell(
            "answer",
            &format!("{} {target}: {status}  {shown}", request.method),
            json!({"method": request.method, "path": target, "status": status, "body": body}),
        )
    }

    /// Says why the running revision stays.
    fn refused(&mut self, failure: Failure) -> Result<(), Failure> {
        let stays = match self.deployed {
            None => "nothing runs yet; save a correction".to_owned(),
            Some(_) => "the running revision stays".to_owned(),
        };
        failure.report(self.client.json);
        self.tell("not deployed", &stays, json!({}))
    }

    /// Prints what is new: outputs, log lines, dead letters.
    fn follow(&mut self) -> Result<(), Failure> {
        if self.deployed.is_none() {
            return Ok(());
        }
        for index in 0..self.followed.len() {
            self.follow_messages(index)?;
        }
        let logs = match self.role {
            Role::Processor(_) => self.url("/logs"),
            Role::Route(_) => self.url(""),
        };
        let answer = self.client.get(&logs)?;
        let lines = items(&answer["lines"]).to_vec();
        for line in unseen(&self.lines, &lines) {
            self.tell("log", &log_line(line), json!({ "line": line }))?;
        }
        self.lines = lines;
        for letter in self.letters()? {
            let text = format!(
                "{} of {}: {} {}: {}",
                cell(&letter["message"]["key"]),
                cell(&letter["origin_topic"]),
                cell(&letter["cause"]),
                cell(&letter["class"]),
                cell(&letter["reason"])
            );
            self.tell("dead letter", &text, json!({ "dead_letter": letter }))?;
        }
        Ok(())
    }

    /// Prints the new messages of a followed topic.
    fn follow_messages(&mut self, index: usize) -> Result<(), Failure> {
        let Followed { topic, next } = &self.followed[index];
        let path = format!("{}?from={next}&max={SHOWN_MAX}", messages_of(topic));
        let answer = self.client.get(&path)?;
        let topic = topic.clone();
        let next = answer["next"].as_u64();
        for message in items(&answer["messages"]) {
            let text = [("key", "key_base64"), ("value", "value_base64")].map(|(text, encoded)| {
                let shown = if message[text].is_null() {
                    &message[encoded]
                } else {
                    &message[text]
                };
                cell(shown)
            });
            let text = text.join("  ");
            match self.role {
                Role::Processor(_) => {
                    self.tell("output", &text, json!({ "message": message }))?;
                }
                Role::Route(_) => {
                    let object = json!({ "topic": topic, "message": message });
                    self.tell("sent", &format!("{topic}  {text}"), object)?;
                }
            }
        }
        let followed = &mut self.followed[index];
        followed.next = next.unwrap_or(followed.next);
        Ok(())
    }

    /// The dead letters after the last that was read; a route has none.
    fn letters(&mut self) -> Result<Vec<Value>, Failure> {
        if let Role::Route(_) = self.role {
            return Ok(Vec::new());
        }
        let from = self.next_letter.as_ref();
        let from = from.map_or_else(String::new, |from| format!("&from={}", escaped(from)));
        let path = self.url(&format!("/dead-letters?max={SHOWN_MAX}{from}"));
        let letters = items(&self.client.get(&path)?["dead_letters"]).to_vec();
        if let Some(last) = letters.last() {
            let offset = last["offset"].as_u64().unwrap_or(0) + 1;
            let (topic, partition) = (cell(&last["topic"]), cell(&last["partition"]));
            self.next_letter = Some(format!("{topic}/{partition}/{offset}"));
        }
        Ok(letters)
    }

    /// A line for people, an object for programs.
    fn tell(&mut self, what: &str, text: &str, mut object: Value) -> Result<(), Failure> {
        match self.out.is_json() {
            true => {
                object["event"] = json!(what);
                self.out.json_line(&object)?;
            }
            false => self.out.line(&format!("{what:>12}  {text}"))?,
        }
        self.out.flush()
    }
}
