//! From what the machine says to HTTP: every answer that is not a success is a [`Problem`].

use axum::Json;
use axum::extract::rejection::BytesRejection;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use migrate::client::types::{OptionsError, Problem};
use migrate::protection::ProtectionError;
use serde::de::DeserializeOwned;

use super::Refusal;

/// An answer that is not a success.
#[derive(Debug)]
pub(super) struct Failure {
    status: StatusCode,
    problem: Problem,
}

pub(super) type Answer<T> = Result<T, Failure>;

impl Failure {
    pub(super) fn new(status: StatusCode, error: impl Into<String>) -> Self {
        Self { status, problem: Problem { error: error.into(), taken: None } }
    }

    /// Not all of what was typed was taken.
    pub(super) fn not_all_taken(taken: usize, of: usize) -> Self {
        let error = format!(
            "{taken} of {of} bytes were taken: the guest has not read what was typed before, or is leaving; \
             send the other {} again later",
            of - taken
        );
        Self { status: StatusCode::CONFLICT, problem: Problem { error, taken: Some(taken) } }
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        (self.status, Json(self.problem)).into_response()
    }
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Self {
        let status = match refusal {
            Refusal::Conflict(_) => StatusCode::CONFLICT,
            Refusal::Failed(_) => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Self::new(status, refusal.to_string())
    }
}

impl From<OptionsError> for Failure {
    fn from(error: OptionsError) -> Self {
        Self::new(StatusCode::BAD_REQUEST, error.to_string())
    }
}

impl From<ProtectionError> for Failure {
    fn from(error: ProtectionError) -> Self {
        Self::new(StatusCode::BAD_REQUEST, error.to_string())
    }
}

/// A request's body, wholly: too large a one never is in memory.
pub(super) type Body = Result<Bytes, BytesRejection>;

pub(super) fn whole(body: Body, limit: usize) -> Answer<Bytes> {
    body.map_err(|rejection| match rejection.status() {
        StatusCode::PAYLOAD_TOO_LARGE => Failure::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            format!("the body has more than {limit} bytes: send less"),
        ),
        status => Failure::new(status, rejection.body_text()),
    })
}

pub(super) fn parse<T: DeserializeOwned>(body: Body, limit: usize) -> Answer<T> {
    let bytes = whole(body, limit)?;
    serde_json::from_slice(&bytes).map_err(|error| {
        Failure::new(
            StatusCode::BAD_REQUEST,
            format!("the body is not what /openapi.json describes: {error}"),
        )
    })
}
