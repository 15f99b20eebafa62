//! A study's life: create, revise, cancel, delete, advance. The one caller of plan and recommendation,
//! and the one place that composes the store with the pure modules.

pub mod advance;
pub mod create;
pub mod device;
pub mod end;
pub mod follow;
mod live;
mod replay;
pub mod revise;
mod room;
mod together;

pub use advance::{Advance, PAUSE_FOR_A_LOOK, advance, run_advancer};
pub use create::{CreateError, create, dry_run};
pub use end::{EndError, cancel, delete};
pub use follow::{FollowError, Followers, Following, Heard};
pub use live::{Devices, Live};
pub use revise::{Expected, Forecast, ReviseError, Revised, forecast_revision, revise};
pub use room::Room;
pub use together::Together;

use std::sync::Arc;

use uuid::Uuid;

use crate::store::StoreError;
use crate::store::connection::Database;
use crate::store::wake::Waker;
use crate::study::validation::DefinitionRules;

/// What every step of a study's life needs.
#[derive(Debug, Clone)]
pub struct Context {
    /// The database.
    pub database: Database,
    /// Tells whoever waits that something was committed.
    pub waker: Waker,
    /// Tells whoever follows a study what is new of it.
    pub followers: Followers,
    /// What a study may ask for.
    pub rules: Arc<DefinitionRules>,
    /// Queued or running studies of a project at most.
    pub max_active_studies: u64,
    /// What was counted of them lately.
    pub room: Room,
    /// Where those that are created at the same time gather.
    pub together: Together,
    /// How long an `Idempotency-Key` is remembered.
    pub idempotency_hours: u32,
    /// A device not seen for this long is gone.
    pub alive_secs: f64,
    /// Those that are there.
    pub live: Live,
}

impl Context {
    /// The devices that are there, by model and host.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn live_devices(&self) -> Result<Devices, StoreError> {
        self.live.devices(&self.database, self.alive_secs).await
    }
}

/// The name of who asks without an access token.
pub const ANONYMOUS: &str = "anonymous";

/// Who asks, and for which project.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    /// Everything a caller sees and reuses stays inside it.
    pub project: String,
    /// Kept with what the caller makes: the name of its access token.
    pub name: String,
    /// Its access token; none without one.
    pub token: Option<Uuid>,
    /// Whether the caller is bound to no project and has named none.
    pub anywhere: bool,
}

impl Caller {
    /// The project to which work that is handed out, and what it needs, is narrowed; none for a caller that may work for
    /// all.
    pub fn project_filter(&self) -> Option<&str> {
        (!self.anywhere).then_some(self.project.as_str())
    }
}

impl Default for Caller {
    fn default() -> Self {
        Self {
            project: "default".into(),
            name: ANONYMOUS.into(),
            token: None,
            anywhere: true,
        }
    }
}
