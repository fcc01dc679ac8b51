//! What holds for every operation of the document: each answer has a description, names have patterns, bytes are binary, and errors are
//! declared.

use millrace_model::bounds::{
    CONSUMER_NAME_CHARS_MAX, PROCESSOR_NAME_CHARS_MAX, SCHEDULE_NAME_CHARS_MAX,
    TOPIC_NAME_CHARS_MAX,
};
use utoipa::Modify;
use utoipa::openapi::path::{Operation, ParameterIn};
use utoipa::openapi::schema::{
    KnownFormat, Object, ObjectBuilder, Schema, SchemaFormat, SchemaType, Type,
};
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme};
use utoipa::openapi::{Content, OpenApi, Ref, RefOr, Response, ResponseBuilder};

use super::super::{Route, every_route};
use super::plain::or_null;

/// The characters of names. Client generators need not know that `.`, `..` and names that begin with `__` are reserved.
const NAME_PATTERN: &str = "^[A-Za-z0-9._-]+$";
/// Groups of settings, which requests give in part and answers in full.
pub(super) const SETTINGS: [&str; 7] = [
    "BatchPolicy",
    "BreakerPolicy",
    "DeadLetterPolicy",
    "Limits",
    "RetryPolicy",
    "RouteBreaker",
    "TopicSettings",
];
/// Parts of answers whose stored form may lack fields.
pub(super) const RECORDS: [&str; 2] = ["Resumes", "RevisionRecord"];
const BYTES: &str = "application/octet-stream";
const BAD_REQUEST: &str = "400";
/// The names of the schemes by which callers prove who they are.
const TOKEN: &str = "token";
const BASIC: &str = "basic";
const OTHERWISE: &str = "default";

/// Completes the document.
pub(super) struct Finish;

impl Modify for Finish {
    fn modify(&self, document: &mut OpenApi) {
        let schemas = document.components.iter_mut();
        for (name, schema) in schemas.flat_map(|components| &mut components.schemas) {
            let RefOr::T(Schema::Object(object)) = schema else {
                continue;
            };
            let name = name.as_str();
            if SETTINGS.contains(&name) {
                leave_open(object);
            }
            if SETTINGS.contains(&name) || RECORDS.contains(&name) {
                object.properties.values_mut().for_each(drop_default);
            }
        }
        let token = HttpBuilder::new()
            .scheme(HttpAuthScheme::Bearer)
            .description(Some("A token of `POST /v1/access/principals/{name}/tokens`, on a host that asks for one."));
        let components = document.components.get_or_insert_default();
        components.add_security_scheme(TOKEN, SecurityScheme::Http(token.build()));
        let basic = HttpBuilder::new()
            .scheme(HttpAuthScheme::Basic)
            .description(Some("A principal and its password, which `PUT /v1/access/principals/{name}/password` sets, for clients that cannot send a token."));
        components.add_security_scheme(BASIC, SecurityScheme::Http(basic.build()));
        let guarded = guarded();
        for (path, item) in &mut document.paths.paths {
            let operations = [
                ("get", &mut item.get),
                ("put", &mut item.put),
                ("post", &mut item.post),
                ("delete", &mut item.delete),
                ("patch", &mut item.patch),
            ];
            for (method, operation) in operations {
                let Some(operation) = operation else {
                    continue;
                };
                operation.operation_id = Some(operation_id(method, path));
                if guarded
                    .iter()
                    .any(|(of, at)| of == method && path.starts_with(at.as_str()))
                {
                    ask_for_token(operation);
                }
                give_patterns(path, operation);
                declare_errors(operation);
                describe_answers(operation);
                say_bytes(operation);
            }
        }
    }
}

/// The operations that take a right: method and path, without what is posted to a wildcard.
fn guarded() -> Vec<(String, String)> {
    let routes = every_route().into_iter();
    let guarded = routes.filter(|route| route.verb.is_some());
    let place = |route: &Route| {
        let method = route.method.as_str().to_ascii_lowercase();
        (method, route.path.replace("{*", "{"))
    };
    guarded.map(|route| place(&route)).collect()
}

/// A host that asks for no tokens takes the request without one.
fn ask_for_token(operation: &mut Operation) {
    let none = SecurityRequirement::default();
    let by = |scheme| SecurityRequirement::new(scheme, Vec::<String>::new());
    operation.security = Some(vec![none, by(TOKEN), by(BASIC)]);
    let responses = &mut operation.responses.responses;
    for (status, description) in [
        (
            "401",
            "The host asks for a token or a password, and the request has none that is known",
        ),
        (
            "403",
            "The caller has no right to do this; the error names the missing one",
        ),
    ] {
        responses
            .entry(status.to_owned())
            .or_insert_with(|| error(description));
    }
}

/// No field has to be given, and in a change null resets one. The answers of later hosts may have more fields.
fn leave_open(settings: &mut Object) {
    settings.required.clear();
    settings.additional_properties = None;
    for property in settings.properties.values_mut() {
        if let RefOr::T(Schema::Object(value)) = property {
            or_null(value);
        }
    }
}

/// The derive shows the defaults of a noun. A generated client would fill them in, and so change settings that its caller did not give.
fn drop_default(property: &mut RefOr<Schema>) {
    match property {
        RefOr::T(Schema::Object(value)) => value.default = None,
        RefOr::T(Schema::Array(array)) => array.default = None,
        RefOr::T(Schema::OneOf(one_of)) => one_of.default = None,
        _ => {}
    }
}

/// The name in generated clients, unique in the document: `post_topic_messages` for `POST /v1/topics/{topic}/messages`.
fn operation_id(method: &str, path: &str) -> String {
    let mut words = vec![method.to_owned()];
    let mut segments = path.split('/').peekable();
    while let Some(segment) = segments.next() {
        if segment.is_empty() || segment == "v1" || segment.starts_with('{') {
            continue;
        }
        let is_one = segments.peek().is_some_and(|next| next.starts_with('{'));
        let word = segment
            .split('.')
            .next()
            .unwrap_or_default()
            .replace('-', "_");
        words.push(match word.strip_suffix('s') {
            Some(singular) if is_one => singular.to_owned(),
            _ => word,
        });
    }
    words.join("_")
}

/// Adds patterns to parameters that are names, so that a client can refuse others.
fn give_patterns(path: &str, operation: &mut Operation) {
    for parameter in operation.parameters.iter_mut().flatten() {
        let RefOr::T(parameter) = parameter else {
            continue;
        };
        if parameter.parameter_in != ParameterIn::Path {
            continue;
        }
        let chars_max = match parameter.name.as_str() {
            "topic" => TOPIC_NAME_CHARS_MAX,
            "name" if path.starts_with("/v1/schedules/") => SCHEDULE_NAME_CHARS_MAX,
            "name" if path.contains("/consumers/") => CONSUMER_NAME_CHARS_MAX,
            "name" => PROCESSOR_NAME_CHARS_MAX,
            _ => continue,
        };
        let name = ObjectBuilder::new()
            .schema_type(SchemaType::Type(Type::String))
            .min_length(Some(1))
            .max_length(Some(chars_max))
            .pattern(Some(NAME_PATTERN));
        parameter.schema = Some(name.into());
    }
}

/// Every operation with input may find it malformed; all other errors have the same shape.
fn declare_errors(operation: &mut Operation) {
    let takes_something = operation
        .parameters
        .as_ref()
        .is_some_and(|parameters| !parameters.is_empty())
        || operation.request_body.is_some();
    let responses = &mut operation.responses.responses;
    if takes_something {
        responses
            .entry(BAD_REQUEST.to_owned())
            .or_insert_with(|| error("The request is malformed; the error says what to correct"));
    }
    responses
        .entry(OTHERWISE.to_owned())
        .or_insert_with(|| error("Any other error: a code, a message, and what to do"));
}

fn error(description: &str) -> RefOr<Response> {
    let shape = Ref::from_schema_name("ErrorBody");
    let response = ResponseBuilder::new()
        .description(description)
        .content("application/json", Content::new(Some(shape)));
    RefOr::T(response.build())
}

/// An answer without its own description gets the meaning of its status.
fn describe_answers(operation: &mut Operation) {
    for (status, response) in &mut operation.responses.responses {
        let RefOr::T(response) = response else {
            continue;
        };
        if response.description.is_empty() {
            response.description = meaning(status).to_owned();
        }
    }
}

fn meaning(status: &str) -> &'static str {
    match status {
        "200" => "The requested data",
        "201" => "Made",
        "202" => "Accepted",
        "204" => "Done, without an answer body",
        "400" => "The request is malformed; the error says what to correct",
        "404" => "It does not exist",
        "408" => "The body took too long to arrive; send it again",
        "409" => "Refused because of the present state; the error says why",
        "413" => "Larger than the host accepts",
        "415" => {
            "The host does not support this content type or encoding; the error lists the supported ones"
        }
        "422" => "Valid but not possible; the error says why",
        "429" => "A bound is reached; try again later",
        "500" => "An internal error; see the host's log",
        "503" => "Temporarily unavailable; try again",
        "507" => "The disk is full",
        _ => "See the error's code and hint",
    }
}

/// Bytes are a string of binary format, which generators know; in Rust they are a list of numbers.
fn say_bytes(operation: &mut Operation) {
    let answers = operation.responses.responses.values_mut();
    let answers = answers.filter_map(|response| match response {
        RefOr::T(response) => response.content.get_mut(BYTES),
        RefOr::Ref(_) => None,
    });
    let body = match operation.request_body.as_mut() {
        Some(RefOr::T(body)) => body.content.get_mut(BYTES),
        Some(RefOr::Ref(_)) | None => None,
    };
    for content in answers.chain(body) {
        if let RefOr::T(content) = content {
            let binary = ObjectBuilder::new()
                .schema_type(SchemaType::Type(Type::String))
                .format(Some(SchemaFormat::KnownFormat(KnownFormat::Binary)));
            content.schema = Some(RefOr::T(Schema::Object(binary.build())));
        }
    }
}
