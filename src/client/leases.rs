//! The lease protocol over REST.

use std::fs::File;
use std::sync::Arc;
use std::time::Duration;

use reqwest::{Method, StatusCode};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::watch;
use tokio::time::Instant;

use super::{Contents, Server};
use crate::pool::leases::{
    ClaimRequest, CompletionAnswer, CompletionRequest, HeartbeatAnswer, HeartbeatRequest, Lease,
    LeaseError, Leases,
};
use crate::study::{LeaseId, UploadedDataset};

/// Leases on the probes of a service elsewhere.
#[derive(Debug, Clone)]
pub struct RestLeases {
    server: Server,
    contents: Arc<Contents>,
    /// How long an answer may take.
    patience: Duration,
    /// The same for a heartbeat: one that hangs must leave time for another.
    beat_patience: Duration,
    /// When the service last answered.
    answered: Arc<watch::Sender<Option<Instant>>>,
}

impl RestLeases {
    /// Leases of `server`; `contents` keeps the data sets.
    pub fn new(
        server: Server,
        contents: Arc<Contents>,
        patience: Duration,
        beat_patience: Duration,
    ) -> Self {
        Self {
            server,
            contents,
            patience,
            beat_patience,
            answered: Arc::new(watch::Sender::new(None)),
        }
    }

    /// When the service last let this worker claim, beat or complete; none before the first time.
    pub fn answered(&self) -> watch::Receiver<Option<Instant>> {
        self.answered.subscribe()
    }

    async fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &(impl Serialize + Sync),
        patience: Duration,
    ) -> Result<Option<T>, LeaseError> {
        let request = self
            .server
            .request(Method::POST, path, patience)?
            .json(body);
        let response = self.server.send(request).await?;
        self.answered.send_replace(Some(Instant::now()));
        if response.status() == StatusCode::NO_CONTENT {
            return Ok(None);
        }
        let bytes = response
            .bytes()
            .await
            .map_err(|error| self.server.unreachable(&error))?;
        serde_json::from_slice(&bytes).map(Some).map_err(|error| {
            LeaseError::Failed(format!(
                "what answers at {} is not understood ({error}): it may be of another version, or no Trialhead service",
                self.server.address()
            ))
        })
    }
}

/// An answer that must have a body.
fn told<T>(answer: Option<T>) -> Result<T, LeaseError> {
    answer.ok_or_else(|| LeaseError::Failed("the service's answer is empty".into()))
}

impl Leases for RestLeases {
    async fn claim(
        &self,
        request: &ClaimRequest,
        stop: &mut watch::Receiver<bool>,
    ) -> Result<Option<Lease>, LeaseError> {
        let patience =
            self.patience + Duration::from_secs_f64(request.wait_secs.clamp(0.0, 86_400.0));
        tokio::select! {
            lease = self.post("v1/leases", request, patience) => lease,
            // Whoever was told to stop gives the lease back, whether or not this claim took something.
            _ = stop.wait_for(|stop| *stop) => Ok(None),
        }
    }

    async fn heartbeat(
        &self,
        lease: LeaseId,
        request: &HeartbeatRequest,
    ) -> Result<HeartbeatAnswer, LeaseError> {
        let path = format!("v1/leases/{lease}/heartbeat");
        told(self.post(&path, request, self.beat_patience).await?)
    }

    async fn complete(
        &self,
        lease: LeaseId,
        request: &CompletionRequest,
    ) -> Result<CompletionAnswer, LeaseError> {
        let path = format!("v1/leases/{lease}/complete");
        told(self.post(&path, request, self.patience).await?)
    }

    async fn release(&self, lease: LeaseId) -> Result<(), LeaseError> {
        let path = format!("v1/leases/{lease}");
        let request = self.server.request(Method::DELETE, &path, self.patience)?;
        self.server.send(request).await?;
        Ok(())
    }

    async fn content(&self, lease: &Lease, dataset: &UploadedDataset) -> Result<File, LeaseError> {
        self.contents
            .open(&self.server, &lease.project, dataset)
            .await
    }
}
