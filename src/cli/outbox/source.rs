//! Where `hark outbox` gets its answers: the running agent, or the files.

use std::path::PathBuf;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::super::client::Agent;
use super::super::{Failure, exit};
use crate::clock::{Clock, Rng};
use crate::config::Config;
use crate::driver::host;
use crate::driver::outbox_admin::{Destroy, Page, Query, Requeue, Stats};
use crate::driver::outbox_offline::{Offline, OfflineError};
use crate::event::catalogue::Maker;

/// What the files are opened for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Aim {
    Look,
    Change,
}

/// Either way.
pub(super) enum Source {
    Live { agent: Agent, name: String },
    Files { offline: Box<Offline>, name: String },
}

impl Source {
    /// The agent where one listens, else the files.
    ///
    /// # Errors
    /// 69: the socket cannot be used. 74: there are no files, or they cannot be used.
    pub(super) async fn find(config: &Config, aim: Aim) -> Result<Self, Failure> {
        let socket = config.ingest.socket.as_deref();
        if let Some(socket) = socket {
            match Agent::connect(socket).await {
                Ok(agent) => {
                    let name = format!("the agent on {}", socket.display());
                    return Ok(Self::Live { agent, name });
                }
                Err(error) if error.is_absence() => {}
                Err(error) => return Err(error.failure(socket)),
            }
        }
        let path = &config.outbox.path;
        let clock = Clock::new(host::clock_state);
        let (mut rng, max_size) = (Rng::from_entropy(), config.outbox.max_size);
        let opened = match aim {
            Aim::Look => Offline::look(path, max_size, clock, &mut rng),
            Aim::Change => {
                let maker = Maker::new(&device(config)?, &config.device.type_prefix);
                Offline::change(path, max_size, clock, maker, rng)
            }
        };
        let offline = opened.map_err(|error| failure(&error, socket.map(PathBuf::from)))?;
        let name = format!("the files in {}", path.display());
        Ok(Self::Files { offline: Box::new(offline), name })
    }

    /// Who answers.
    pub(super) fn name(&self) -> &str {
        match self {
            Self::Live { name, .. } | Self::Files { name, .. } => name,
        }
    }

    pub(super) async fn stats(&mut self) -> Result<Stats, Failure> {
        match self {
            Self::Live { agent, .. } => {
                let body = agent.get("/outbox").await?;
                agent.understand(&body)
            }
            Self::Files { offline, .. } => offline.admin().stats().await.map_err(|e| unread(&e)),
        }
    }

    pub(super) async fn page(&mut self, query: &Query) -> Result<Page, Failure> {
        match self {
            Self::Live { agent, .. } => ask(agent, "/outbox/search", query).await,
            Self::Files { offline, .. } => {
                offline.admin().page(query).await.map_err(|e| unread(&e))
            }
        }
    }

    pub(super) async fn requeue(&mut self, what: &Requeue) -> Result<usize, Failure> {
        #[derive(serde::Deserialize)]
        struct Answer {
            requeued: usize,
        }
        match self {
            Self::Live { agent, .. } => {
                Ok(ask::<Answer>(agent, "/outbox/requeue", what).await?.requeued)
            }
            Self::Files { offline, .. } => {
                offline.admin().requeue(what).await.map_err(|e| unread(&e))
            }
        }
    }

    pub(super) async fn purge(&mut self, what: &Destroy) -> Result<[u64; 3], Failure> {
        #[derive(serde::Deserialize)]
        struct Answer {
            purged: [u64; 3],
        }
        match self {
            Self::Live { agent, .. } => {
                Ok(ask::<Answer>(agent, "/outbox/purge", what).await?.purged)
            }
            Self::Files { offline, .. } => {
                offline.admin().purge(what).await.map_err(|e| unread(&e))
            }
        }
    }
}

async fn ask<T: DeserializeOwned>(
    agent: &mut Agent,
    path: &str,
    what: &impl Serialize,
) -> Result<T, Failure> {
    let body = serde_json::to_vec(what);
    let body = body.map_err(|e| Failure::new(exit::IO, format!("write the question: {e}")))?;
    let answer = agent.post(path, "application/json", body).await?;
    agent.understand(&answer)
}

fn device(config: &Config) -> Result<String, Failure> {
    match &config.device.id {
        Some(id) => Ok(id.clone()),
        None => host::device_id().map_err(|e| Failure::new(exit::CONFIG, e)),
    }
}

fn unread(error: &dyn std::fmt::Display) -> Failure {
    Failure::new(exit::IO, error.to_string())
}

fn failure(error: &OfflineError, socket: Option<PathBuf>) -> Failure {
    let silent = socket.filter(|_| matches!(error, OfflineError::InUse(_)));
    let where_not = silent.map_or_else(String::new, |socket| {
        format!("; nobody answers on {}, the socket of this configuration", socket.display())
    });
    Failure::new(exit::IO, format!("{error}{where_not}"))
}
