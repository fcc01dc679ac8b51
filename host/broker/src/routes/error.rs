//! Why a route did not change.

use millrace_engine::{CommitError, ReadError};
use millrace_model::bounds::ROUTES_MAX;
use millrace_model::{Advice, Advised, Code, Digest, RoutePath};

use crate::catalogue::deciding::decision_errors;
use crate::catalogue::signatures::DistrustError;
use crate::ground::standing::Forbidden;
use crate::handler::AdmitError;

/// Why a route did not change. It is unchanged.
#[derive(Debug, thiserror::Error)]
pub enum RouteError {
    /// The caller may not do it.
    #[error(transparent)]
    Forbidden(#[from] Forbidden),
    /// No such route.
    #[error("route {0} does not exist")]
    Unknown(RoutePath),
    /// The maximum number of routes exists.
    #[error("there are already {ROUTES_MAX} routes, the maximum; delete one first")]
    TooMany,
    /// No such module.
    #[error("module {0} does not exist; `module list` shows the modules that do")]
    UnknownModule(Digest),
    /// The module does not answer HTTP requests.
    #[error(
        "module {} does not export wasi:http/incoming-handler, so it cannot answer requests", .0.short()
    )]
    WrongInterface(Digest),
    /// The definition is against a rule.
    #[error("the route cannot be set like this: {0}")]
    Invalid(String),
    /// Another revision would be taken back than the caller expected.
    #[error(
        "this would act on revision {current} of route {path}, not on {expected}: the route has changed meanwhile. Nothing was done"
    )]
    OtherRevision {
        /// The route.
        path: RoutePath,
        /// The expected revision.
        expected: u32,
        /// The actual one.
        current: u32,
    },
    /// There is no revision before the current one.
    #[error("route {0} has no revision before its current one")]
    NothingToRollBack(RoutePath),
    /// The host has just withdrawn a canary.
    #[error(
        "the host itself has already withdrawn revision {withdrawn} of route {path}, and revision {current} has stayed current: nothing was changed"
    )]
    RolledBackAlready {
        /// The route.
        path: RoutePath,
        /// The current revision.
        current: u32,
        /// The canary.
        withdrawn: u32,
        /// The target of a further rollback.
        further: u32,
    },
    /// The canary fails and is about to be withdrawn.
    #[error("revision {revision} of route {path} fails on trial: {why}")]
    TrialFails {
        /// The route.
        path: RoutePath,
        /// The revision.
        revision: u32,
        /// A description of its failures.
        why: String,
    },
    /// The route has no canary.
    #[error("route {0} has no revision on trial")]
    NoTrial(RoutePath),
    /// The revision never existed, or is no longer kept.
    #[error("route {path} has no revision {revision}; it keeps {kept:?}")]
    NoSuchRevision {
        /// The route.
        path: RoutePath,
        /// The requested revision.
        revision: u32,
        /// The kept revisions.
        kept: Vec<u32>,
    },
    /// Its entry in the catalogue cannot be read.
    #[error(
        "the entry of route {0} cannot be read; a newer version of this host may have written it"
    )]
    Unreadable(RoutePath),
    /// Its signature does not permit it.
    #[error(transparent)]
    Distrust(#[from] DistrustError),
    /// The component could not be loaded.
    #[error(transparent)]
    Admit(#[from] AdmitError),
    /// Its bytes could not be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// It could not be made durable.
    #[error(transparent)]
    Commit(#[from] CommitError),
}

decision_errors! {
    RouteError: RouteError::Commit;
}

impl Advised for RouteError {
    fn advice(&self) -> Advice {
        match self {
            Self::Forbidden(error) => error.advice(),
            Self::Unknown(_) => Code::NoSuchRoute.advice(),
            Self::TooMany => Code::TooManyRoutes.advice(),
            Self::UnknownModule(_) => Code::UnknownModule.advice(),
            Self::WrongInterface(_) => Code::WrongInterface.advice(),
            Self::Invalid(_) => {
                Code::InvalidSpec.hint("change the definition; the route is as it was")
            }
            Self::OtherRevision { .. } => Code::OtherRevision.hint(
                "see which revision is current (GET /v1/routes/{path}), and repeat the request with its number as expected_revision",
            ),
            Self::NothingToRollBack(_) => {
                Code::NothingToRollBack.hint("set another revision instead")
            }
            Self::RolledBackAlready { further, .. } => Code::RolledBackAlready.hint(format!(
                "to go further back, name the revision: `millrace route rollback PATH --to {further}`; over HTTP {{\"revision\": {further}}}"
            )),
            Self::TrialFails { .. } => Code::TrialFails.hint(
                "let it be withdrawn and set a better one, or promote it anyway: `millrace route promote PATH --force`; over HTTP {\"force\": true}",
            ),
            Self::NoTrial(_) => Code::NoTrial.hint(
                "set one first: `millrace route set PATH … --canary PERCENT`; over HTTP with ?canary=PERCENT",
            ),
            Self::NoSuchRevision { .. } => Code::UnknownRevision
                .hint("GET /v1/routes/{path} or `millrace route show` lists the revisions that are kept"),
            Self::Unreadable(_) => Code::Internal.advice(),
            Self::Distrust(error) => error.advice(),
            Self::Admit(error) => error.advice(),
            Self::Read(error) => error.advice(),
            Self::Commit(error) => error.advice(),
        }
    }
}
