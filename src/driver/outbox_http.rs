//! The outbox on the agent's socket: what `hark outbox` asks of a running agent.
//!
//! | request | answer |
//! |---|---|
//! | `GET /outbox` | counts ([`Stats`](super::outbox_admin::Stats)) |
//! | `POST /outbox/search`, a [`Query`] | a [`Page`](super::outbox_admin::Page) |
//! | `POST /outbox/requeue`, a [`Requeue`] | `{"requeued": 1}` |
//! | `POST /outbox/purge`, a [`Destroy`] | `{"purged": [0, 0, 1]}`, by lane |
//!
//! All bodies are JSON. Refusals are `application/problem+json`, as at `/events`. Who may write to the
//! socket may do all of it: who can hand in an alert can be trusted with the queue.

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::json;

use super::ingest::{Problem, read};
use super::outbox_admin::{Admin, Destroy, Query, Requeue};
use crate::outbox::OutboxError;

pub(super) fn router(admin: Admin) -> Router {
    Router::new()
        .route("/outbox", get(stats))
        .route("/outbox/search", post(search))
        .route("/outbox/requeue", post(requeue))
        .route("/outbox/purge", post(purge))
        .with_state(admin)
}

async fn stats(State(admin): State<Admin>) -> Response {
    answer(admin.stats().await)
}

async fn search(State(admin): State<Admin>, body: Body) -> Response {
    match parse::<Query>(body).await {
        Ok(query) => answer(admin.page(&query).await),
        Err(problem) => problem.into_response(),
    }
}

async fn requeue(State(admin): State<Admin>, body: Body) -> Response {
    match parse::<Requeue>(body).await {
        Ok(what) => answer(admin.requeue(&what).await.map(|done| json!({ "requeued": done }))),
        Err(problem) => problem.into_response(),
    }
}

async fn purge(State(admin): State<Admin>, body: Body) -> Response {
    match parse::<Destroy>(body).await {
        Ok(what) => answer(admin.purge(&what).await.map(|gone| json!({ "purged": gone }))),
        Err(problem) => problem.into_response(),
    }
}

async fn parse<T: DeserializeOwned>(body: Body) -> Result<T, Problem> {
    let body = read(body).await?;
    serde_json::from_slice(&body)
        .map_err(|e| Problem::new(StatusCode::BAD_REQUEST, format!("the body: {e}")))
}

fn answer<T: Serialize>(result: Result<T, OutboxError>) -> Response {
    match result.map(|value| serde_json::to_vec(&value)) {
        Ok(Ok(body)) => ([(header::CONTENT_TYPE, "application/json")], body).into_response(),
        Ok(Err(error)) => {
            Problem::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response()
        }
        Err(error) => {
            Problem::new(StatusCode::SERVICE_UNAVAILABLE, error.to_string()).into_response()
        }
    }
}
