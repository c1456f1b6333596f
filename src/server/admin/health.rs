//! `/healthz` and `/readyz`.
//!
//! Alive means that the process answers; ready means that the engine has recovered and clients are accepted.
//! Leaves out everything else. No state of its own.

use crate::server::admin::AdminState;
use axum::extract::State;
use axum::http::StatusCode;

/// Always 200: whoever asks is answered.
pub(super) async fn alive() -> &'static str {
    "ok\n"
}

/// 200 between the end of recovery and the beginning of the stop, else 503.
pub(super) async fn ready(State(state): State<AdminState>) -> (StatusCode, &'static str) {
    match state.engine() {
        Some(_) => (StatusCode::OK, "ready\n"),
        None => (StatusCode::SERVICE_UNAVAILABLE, "not ready\n"),
    }
}
