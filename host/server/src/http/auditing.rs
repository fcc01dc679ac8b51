//! What the audit log has of a request: what became of it, also if its caller leaves before the answer.

use axum::http::StatusCode;
use axum::response::Response;
use millrace_broker::{AuditLog, AuditResult, Caller};

use super::app::App;

/// The code of an answer that refuses something.
#[derive(Clone, Copy)]
pub(super) struct RefusedWith(pub(super) &'static str);

/// A request that is not answered yet. Dropped without an answer, it is recorded as one without.
pub(super) struct Unanswered(Option<AuditLog>);

impl App {
    /// The audit log's view of a caller's request.
    pub(super) fn audited(&self, caller: &Caller) -> Unanswered {
        let log = self.audit.is_kept().then(|| self.audit.called_by(caller));
        Unanswered(log)
    }

    /// The caller, whose request is noted if the host keeps an audit log.
    pub(super) fn noting(&self, caller: Caller) -> Caller {
        match self.audit.is_kept() {
            true => caller.noting(),
            false => caller,
        }
    }
}

impl Unanswered {
    /// Records the answer, before it is sent.
    pub(super) fn answered(mut self, response: &Response) -> impl Future<Output = ()> + use<> {
        let status = response.status();
        let result = match status {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => AuditResult::Refused,
            status if status.is_client_error() || status.is_server_error() => AuditResult::Failed,
            _ => AuditResult::Done,
        };
        let code: Option<&RefusedWith> = response.extensions().get();
        let code = code.map(|RefusedWith(code)| *code);
        let log = self.0.take();
        async move {
            if let Some(log) = log {
                log.answered(result, code).await;
            }
        }
    }
}

impl Drop for Unanswered {
    fn drop(&mut self) {
        if let Some(log) = self.0.take() {
            log.unanswered();
        }
    }
}
