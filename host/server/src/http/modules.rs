//! Modules over HTTP: upload, list, show, tag, delete.

use std::net::IpAddr;
use std::time::Duration;

use axum::body::Body;
use axum::http::header::{LOCATION, RETRY_AFTER};
use axum::http::{HeaderMap, HeaderName, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use millrace_broker::{
    Admission, AdmitError, Compiling, Interface, Metadata, Module, ModuleError, SignatureError,
    Upload, Uploader,
};
use millrace_model::{Code, Digest, Timestamp};
use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};
use tokio::task::JoinHandle;
use utoipa::ToSchema;

use super::app::to_the_end;
use super::body::Taken;
use super::bounds::{UPLOAD_WAIT_MS, UPLOAD_WAIT_MS_MAX, UPLOADS_MAX};
use super::by::ByHeader;
use super::called::Called;
use super::error::{ApiError, ErrorBody};
use super::others::{Gathered, HostsParams, OfThis, Whose};
use super::query::{InPath, InQuery};
use super::record::Subject;

/// A module.
#[derive(Serialize, ToSchema)]
pub(super) struct ModuleBody {
    /// SHA-256 of its bytes.
    digest: Digest,
    /// The first `name@version` given to it.
    tag: Option<String>,
    /// Each `name@version` given to it: the same bytes may have several.
    tags: Vec<String>,
    byte_count: u64,
    /// Its exported interfaces.
    #[schema(value_type = Vec<String>)]
    exports: Vec<Interface>,
    /// What it imports.
    imports: Vec<String>,
    /// How long compiling took.
    compile_ms: u64,
    /// How long its upload waited for its turn to be compiled.
    waited_ms: u64,
    uploaded_at: Timestamp,
    /// Since when it is being compiled again, because its code is missing on this host.
    #[serde(skip_serializing_if = "Option::is_none")]
    compiling_since: Option<Timestamp>,
    /// Its signature, if it was uploaded with one.
    signature: Option<SignatureBody>,
    /// What it says about itself.
    metadata: Metadata,
}

/// A module's signature, which was found good when it was uploaded.
#[derive(Serialize, ToSchema)]
pub(super) struct SignatureBody {
    /// The number of the key.
    key: String,
    /// The comment that is signed with the module.
    comment: String,
    /// The signature in minisign's format.
    text: String,
    /// Whether the host trusts a key of this number now.
    trusted: bool,
}

/// When to ask again for a module that is being compiled, in seconds.
const COMPILING_RETRY_AFTER_S: u32 = 1;

/// The header with a signature.
const SIGNATURE: HeaderName = HeaderName::from_static("millrace-signature");

/// The header in the OpenAPI document.
#[derive(utoipa::IntoParams)]
#[into_params(parameter_in = Header)]
#[expect(dead_code, reason = "for the document only")]
pub(super) struct SignatureHeader {
    /// The component's signature: the text of a signature file in minisign's format, in base64.
    #[param(rename = "Millrace-Signature")]
    signature: Option<String>,
}

#[derive(Serialize, ToSchema)]
pub(super) struct ModulesBody {
    modules: Vec<ModuleBody>,
    /// Uploads that are being admitted, on any host.
    under_way: Vec<AdmissionBody>,
    #[serde(flatten)]
    gathered: Gathered,
}

/// What another host is admitting.
#[derive(Deserialize)]
struct UnderWayThere {
    under_way: Vec<AdmissionBody>,
}

/// What another host says of a module that this one does not know.
#[derive(Deserialize)]
#[serde(untagged)]
enum There {
    UnderWay(AdmissionBody),
    Refused(ErrorBody),
    Admitted(IgnoredAny),
}

/// An upload that is being admitted.
#[derive(Serialize, Deserialize, ToSchema)]
pub(super) struct AdmissionBody {
    /// SHA-256 of its bytes.
    digest: Digest,
    /// The tag that it will have.
    tag: Option<String>,
    byte_count: u64,
    /// `waiting` for its turn, `compiling`, or `trying` whether it starts.
    #[schema(example = "compiling")]
    state: String,
    /// When it was uploaded.
    since: Timestamp,
    /// How long ago that is.
    since_ms: u64,
    /// When the compiler began.
    compiling_since: Option<Timestamp>,
}

#[derive(Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct UploadQuery {
    /// `name@version`, by which it can be referred to.
    tag: Option<String>,
    /// The SHA-256 that the bytes must have: an upload that was changed on its way is refused.
    #[param(value_type = Option<String>)]
    digest: Option<Digest>,
    /// How long to wait until it is compiled, at most 60,000; then the answer is 202, and the compile continues.
    #[serde(default = "usual_wait_ms")]
    #[param(default = 30_000)]
    wait_ms: u64,
}

fn usual_wait_ms() -> u64 {
    UPLOAD_WAIT_MS
}

impl Called {
    /// A module as it is shown.
    fn shown(&self, module: Module) -> ModuleBody {
        let trusted = self.session.catalogue().is_trusted(&module);
        let signature = module.signature.as_ref().map(|signature| SignatureBody {
            key: signature.key.clone(),
            comment: signature.comment.clone(),
            text: signature.text.clone(),
            trusted: trusted == Some(true),
        });
        let compiling = self.session.catalogue().compiling(module.facts.digest);
        ModuleBody {
            compiling_since: compiling.map(|compiling| compiling.since),
            signature,
            digest: module.facts.digest,
            tags: module.tags().map(str::to_owned).collect(),
            tag: module.tag,
            byte_count: module.facts.byte_count,
            exports: module.facts.exports,
            imports: module.facts.imports,
            compile_ms: module.facts.compile_ms,
            waited_ms: module.facts.waited_ms,
            uploaded_at: module.uploaded_at,
            metadata: module.facts.metadata,
        }
    }
}

/// The client's address.
#[derive(Clone, Copy)]
pub(super) struct Peer(pub(super) Option<IpAddr>);

impl Called {
    /// Reads a module; refusing one that is too large names the setting.
    async fn take_module(&self, headers: &HeaderMap, body: Body) -> Result<Taken, ApiError> {
        let max = self.session.catalogue().guest_limits().module_bytes_max;
        let taken = self
            .take_body(headers, body, usize::try_from(max).unwrap_or(usize::MAX))
            .await;
        taken.map_err(|error| match error.is_too_large() {
            true => AdmitError::TooLarge { bytes: None, max }.into(),
            false => error,
        })
    }

    /// The module with this digest, unique prefix of a digest, or tag.
    pub(super) fn module(&self, reference: &str) -> Result<Module, ApiError> {
        let catalogue = self.session.catalogue();
        let missing = || match (catalogue.admission(reference), catalogue.refusal(reference)) {
            (Some(admission), _) => {
                let seconds = self.under_way(&admission).since_ms / 1_000;
                let message = format!(
                    "module {reference} is being compiled, for {seconds} s so far; it can be used as soon as it is compiled"
                );
                let hint =
                    format!("try again when `millrace module show {reference}` shows the module");
                ApiError::new(Code::Occupied, message, hint).after_s(COMPILING_RETRY_AFTER_S)
            }
            (None, Some(refusal)) => refusal.into(),
            (None, None) => ModuleError::Unknown(reference.to_owned()).into(),
        };
        catalogue.find_module(reference).ok_or_else(missing)
    }

    /// Waits until uploads of the modules that a request names are compiled, but not for ever.
    pub(super) async fn admitted(&self, references: Vec<String>) {
        let catalogue = self.session.catalogue();
        let all = async {
            for reference in references {
                if catalogue.find_module(&reference).is_none() {
                    catalogue.admission_ends(&reference).await;
                }
            }
        };
        // If it takes longer, looking the module up says so.
        let _ = tokio::time::timeout(Duration::from_millis(UPLOAD_WAIT_MS), all).await;
    }

    /// An upload that is being admitted, as it is shown.
    fn under_way(&self, admission: &Admission) -> AdmissionBody {
        let compiling = self.session.catalogue().compiling(admission.digest);
        AdmissionBody {
            digest: admission.digest,
            tag: admission.tag.clone(),
            byte_count: admission.byte_count,
            state: match compiling {
                Some(Compiling { begun_at: None, .. }) => "waiting",
                Some(_) => "compiling",
                None => "trying",
            }
            .to_owned(),
            since: admission.since,
            since_ms: self.clock.wall().0.saturating_sub(admission.since.0),
            compiling_since: compiling.and_then(|compiling| compiling.begun_at),
        }
    }

    pub(super) fn digest_of(&self, reference: &str) -> Result<Digest, ApiError> {
        self.module(reference).map(|module| module.facts.digest)
    }
}

/// Uploads a component. It is checked, compiled in a child process and tried before it is stored. Uploaders, distinguished by address
/// and the header Millrace-By, take turns to compile; long compiles make way for others. If compiling takes longer than `wait_ms`, the
/// answer is 202 and the compile continues: `GET /v1/modules/{digest}`, which Location names, tells how it ends.
#[utoipa::path(post, path = "/v1/modules", tag = "modules", params(UploadQuery, ByHeader, SignatureHeader),
    request_body(content = Vec<u8>, content_type = "application/wasm", description = "The component's bytes"),
    responses(
        (status = 201, body = ModuleBody, description = "Admitted"),
        (status = 200, body = ModuleBody, description = "It already exists"),
        (status = 202, body = AdmissionBody, description = "It is being compiled; ask at Location"),
        (status = 400, body = ErrorBody),
        (status = 403, body = ErrorBody, description = "Its signature is missing, or not accepted"),
        (status = 409, body = ErrorBody, description = "The tag belongs to another module, or its version is not newer than earlier ones"),
        (status = 413, body = ErrorBody),
        (status = 422, body = ErrorBody, description = "Refused; the error says why"),
        (status = 503, body = ErrorBody, description = "Other modules are compiled first; send it again after the delay in Retry-After"),
    )
)]
pub(super) async fn upload(
    app: Called,
    InQuery(query): InQuery<UploadQuery>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    let taken = app.take_module(&headers, body).await?;
    let caller = app.session.caller();
    let uploader = Uploader {
        address: caller.address(),
        name: caller.signature().to_owned(),
    };
    let signature = signature_of(&headers)?;
    let turn = app.uploads.clone().try_acquire_owned();
    let turn = turn.map_err(|_| too_many_uploads())?;
    let known: Vec<Digest> = digests(&app.session.catalogue().modules());
    let uploading = app.session.catalogue().begin_upload(Upload {
        bytes: taken.bytes.clone(),
        tag: query.tag,
        digest: query.digest,
        signature,
        uploader,
    });
    let uploading = uploading.await?;
    let digest = uploading.digest();
    let mut admitting = tokio::spawn(async move {
        let _held = (taken, turn);
        uploading.finish().await
    });
    let wait = Duration::from_millis(query.wait_ms.min(UPLOAD_WAIT_MS_MAX));
    let Ok(admitted) = tokio::time::timeout(wait, &mut admitting).await else {
        tokio::spawn(log_the_end(digest, admitting));
        return Ok(app.still_compiling(digest));
    };
    let module = admitted.map_err(|_| ApiError::internal("the upload panicked"))??;
    let status = match known.contains(&digest) {
        true => StatusCode::OK,
        false => StatusCode::CREATED,
    };
    let digest = digest.to_string();
    let subject = Subject(
        module
            .tag
            .clone()
            .map_or_else(|| digest.clone(), |tag| format!("{tag} {digest}")),
    );
    Ok((status, Extension(subject), Json(app.shown(module))).into_response())
}

impl Called {
    /// The answer to an upload that takes longer than its client waits.
    fn still_compiling(&self, digest: Digest) -> Response {
        let reference = digest.to_string();
        let location = format!("/v1/modules/{reference}");
        let headers = [
            (LOCATION, location),
            (RETRY_AFTER, COMPILING_RETRY_AFTER_S.to_string()),
        ];
        let Some(admission) = self.session.catalogue().admission(&reference) else {
            // It ended just now.
            return (StatusCode::ACCEPTED, headers).into_response();
        };
        let subject = Extension(Subject(reference));
        let body = Json(self.under_way(&admission));
        (StatusCode::ACCEPTED, headers, subject, body).into_response()
    }
}

/// Logs how an upload ended whose client did not wait for it.
async fn log_the_end(digest: Digest, admitting: JoinHandle<Result<Module, ModuleError>>) {
    match admitting.await {
        Ok(Ok(module)) => {
            let compile_ms = module.facts.compile_ms;
            tracing::info!(%digest, tag = module.tag, compile_ms, "a module is admitted");
        }
        Ok(Err(error)) => tracing::warn!(%digest, %error, "a module is refused"),
        Err(error) => tracing::error!(%digest, %error, "an upload panicked"),
    }
}

/// The signature that comes with an upload.
fn signature_of(headers: &HeaderMap) -> Result<Option<String>, ApiError> {
    let Some(header) = headers.get(SIGNATURE) else {
        return Ok(None);
    };
    let text = STANDARD.decode(header.as_bytes()).ok();
    let text = text.and_then(|bytes| String::from_utf8(bytes).ok());
    let malformed = || SignatureError::Malformed("the module".to_owned());
    Ok(Some(text.ok_or_else(malformed)?))
}

fn too_many_uploads() -> ApiError {
    let message = format!("{UPLOADS_MAX} uploads, the maximum, are being checked and compiled");
    ApiError::new(Code::Occupied, message, "send it again; nothing was stored")
}

fn digests(modules: &[Module]) -> Vec<Digest> {
    modules.iter().map(|module| module.facts.digest).collect()
}

/// All modules, and what any host is admitting.
#[utoipa::path(get, path = "/v1/modules", tag = "modules", params(HostsParams), responses((status = 200, body = ModulesBody)))]
pub(super) async fn list(
    app: Called,
    InQuery(HostsParams { hosts }): InQuery<HostsParams>,
) -> OfThis<ModulesBody> {
    let mut others = app.of_others::<UnderWayThere>(hosts, "/v1/modules").await;
    let given = std::mem::take(&mut others.given);
    let modules = app.session.catalogue().modules();
    let modules: Vec<ModuleBody> = modules
        .into_iter()
        .map(|module| app.shown(module))
        .collect();
    let under_way = app.session.catalogue().admissions();
    let under_way = under_way.iter().map(|one| app.under_way(one));
    let here: Vec<AdmissionBody> = under_way.collect();
    // What was admitted since, or is admitted here as well, stands here already.
    let is_here = |digest: Digest| {
        let mut modules = modules.iter();
        modules.any(|module| module.digest == digest)
            || here.iter().any(|here| here.digest == digest)
    };
    let there = given.into_iter().flat_map(|(_, there)| there.under_way);
    let there: Vec<AdmissionBody> = there.filter(|there| !is_here(there.digest)).collect();
    let body = ModulesBody {
        modules,
        under_way: here.into_iter().chain(there).collect(),
        gathered: others.gathered(),
    };
    app.answer_of_this(hosts, body)
}

/// A module, by digest, by a unique prefix of it (6 digits or more), or by tag. While its upload is being compiled, on whichever host, the
/// answer is 202; if the upload was refused, it is the error of the refusal.
#[utoipa::path(get, path = "/v1/modules/{reference}", tag = "modules", params(("reference" = String, Path,), HostsParams), responses(
    (status = 200, body = ModuleBody),
    (status = 202, body = AdmissionBody, description = "It is being compiled"),
    (status = 404, body = ErrorBody),
    (status = 422, body = ErrorBody, description = "Its upload was refused; the error says why"),
))]
pub(super) async fn show(
    app: Called,
    InPath(reference): InPath<String>,
    InQuery(HostsParams { hosts }): InQuery<HostsParams>,
) -> Result<Response, ApiError> {
    let catalogue = app.session.catalogue();
    // Asked first: what ends in between is a module or a refusal then.
    let admission = catalogue.admission(&reference);
    let is_known = || catalogue.find_module(&reference).is_some();
    let is_refused = || catalogue.refusal(&reference).is_some();
    let under_way = match admission {
        _ if is_known() => None,
        Some(admission) => Some(app.under_way(&admission)),
        None if hosts == Whose::All && !is_refused() => app.under_way_there(&reference).await?,
        None => None,
    };
    let answer = match under_way {
        // It may have been admitted since.
        Some(under_way) if !is_known() => {
            let retry_after = [(RETRY_AFTER, COMPILING_RETRY_AFTER_S.to_string())];
            Ok((StatusCode::ACCEPTED, retry_after, Json(under_way)).into_response())
        }
        _ => app
            .module(&reference)
            .map(|module| Json(app.shown(module)).into_response()),
    };
    let answer = answer.unwrap_or_else(IntoResponse::into_response);
    Ok(app.answer_of_this(hosts, answer).signed())
}

impl Called {
    /// The upload that another host is admitting; the error if another host has refused it.
    async fn under_way_there(&self, reference: &str) -> Result<Option<AdmissionBody>, ApiError> {
        // A digest or a tag; it becomes part of a path.
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"@._+-".contains(&byte);
        if !reference.bytes().all(is_plain) {
            return Ok(None);
        }
        let path = format!("/v1/modules/{reference}");
        let others = self.of_others::<There>(Whose::All, &path).await;
        let mut refused = None;
        for (_, there) in others.given {
            match there {
                There::UnderWay(under_way) => return Ok(Some(under_way)),
                There::Refused(error) => refused = Some(error),
                // This host hears of it now at the latest.
                There::Admitted(_) => {
                    self.broker.hear().await;
                    return Ok(None);
                }
            }
        }
        refused.map_or(Ok(None), |refused| Err(refused.into()))
    }
}

/// A module's bytes, as they were uploaded.
#[utoipa::path(get, path = "/v1/modules/{reference}/bytes", tag = "modules", params(("reference" = String, Path,)), responses(
    (status = 200, body = Vec<u8>, content_type = "application/wasm"),
    (status = 404, body = ErrorBody),
    (status = 503, body = ErrorBody),
))]
pub(super) async fn bytes(
    app: Called,
    InPath(reference): InPath<String>,
) -> Result<Response, ApiError> {
    let module = app.module(&reference)?;
    let count = usize::try_from(module.facts.byte_count).unwrap_or(usize::MAX);
    let room = app.answer_room(count).await?;
    let read = app.session.catalogue().module_bytes(module.facts.digest);
    Ok(room.answer("application/wasm", read.await?.into()))
}

/// Deletes a module that is not in use.
#[utoipa::path(delete, path = "/v1/modules/{reference}", tag = "modules", params(("reference" = String, Path,)), responses(
    (status = 204),
    (status = 404, body = ErrorBody),
    (status = 409, body = ErrorBody, description = "It is in use"),
))]
pub(super) async fn remove(
    app: Called,
    InPath(reference): InPath<String>,
) -> Result<StatusCode, ApiError> {
    let digest = app.digest_of(&reference)?;
    to_the_end(async move { Ok(app.session.catalogue().delete_module(digest).await?) }).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Gives a module a further tag, `name@version`. A tag of another module does not move; take it back there first.
#[utoipa::path(put, path = "/v1/modules/{reference}/tags/{tag}", tag = "modules", params(("reference" = String, Path,), ("tag" = String, Path,)), responses(
    (status = 200, body = ModuleBody),
    (status = 400, body = ErrorBody),
    (status = 403, body = ErrorBody, description = "The module is signed for other tags"),
    (status = 404, body = ErrorBody),
    (status = 409, body = ErrorBody, description = "The tag belongs to another module, or its version is not newer than earlier ones"),
))]
pub(super) async fn tag(
    app: Called,
    InPath((reference, tag)): InPath<(String, String)>,
) -> Result<Json<ModuleBody>, ApiError> {
    let digest = app.digest_of(&reference)?;
    to_the_end(async move {
        let tagged = app.session.catalogue().tag_module(digest, &tag).await?;
        Ok(Json(app.shown(tagged)))
    })
    .await
}

/// Takes a tag back. The module stays, and so does everything that is deployed.
#[utoipa::path(delete, path = "/v1/modules/{reference}/tags/{tag}", tag = "modules", params(("reference" = String, Path,), ("tag" = String, Path,)), responses(
    (status = 200, body = ModuleBody),
    (status = 404, body = ErrorBody),
))]
pub(super) async fn untag(
    app: Called,
    InPath((reference, tag)): InPath<(String, String)>,
) -> Result<Json<ModuleBody>, ApiError> {
    let module = app.module(&reference)?;
    if module.tags().all(|known| known != tag) {
        return Err(ModuleError::UnknownTag(tag).into());
    }
    to_the_end(async move {
        let untagged = app.session.catalogue().untag_module(&tag).await?;
        Ok(Json(app.shown(untagged)))
    })
    .await
}
