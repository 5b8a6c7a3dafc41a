//! The task that lets go of what nobody needs: old answers, and manifests that no file names.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use super::manifests::Manifests;
use super::requests::Answers;
use super::state::State;
use super::{CatalogConfig, now_ns};

pub(super) async fn run(
    manifests: Arc<Manifests>,
    state: Arc<State>,
    answers: Arc<Answers>,
    config: CatalogConfig,
    importing: Arc<tokio::sync::Mutex<()>>,
    stop: CancellationToken,
) {
    if let Err(error) = manifests.find_dead(&state).await {
        tracing::error!(%error, "look for manifests that no file names");
    }
    loop {
        match manifests.sweep(&state, config.manifest_grace).await {
            Ok(0) => {}
            Ok(dropped) => tracing::info!(dropped, "dropped manifests that no file names"),
            Err(error) => tracing::error!(%error, "drop manifests that no file names"),
        }
        if let Ok(_alone) = importing.try_lock()
            && let Err(error) = manifests.drop_leftovers(&state).await
        {
            tracing::error!(%error, "drop what was left unfinished");
        }
        if let Err(error) = answers.expire(now_ns()).await {
            tracing::error!(%error, "let go of old answers");
        }
        if tokio::time::timeout(config.sweep_every, stop.cancelled()).await.is_ok() {
            return;
        }
    }
}
