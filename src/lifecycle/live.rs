//! The devices that are there, without asking for them each time.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use crate::store::StoreError;
use crate::store::connection::Database;
use crate::store::devices::{self, DeviceRow};

/// What was read is believed for so long: another instance may have heard of a device meanwhile. A study that was told
/// that none is there hears of it a moment later.
const BELIEVED: Duration = Duration::from_millis(250);

/// Devices that were seen lately, by model and host.
pub type Devices = Arc<[DeviceRow]>;

/// What was read of them last, and whether one has come.
#[derive(Debug, Clone, Default)]
pub struct Live {
    known: Arc<Mutex<Known>>,
    came: Arc<Notify>,
}

#[derive(Debug, Default)]
struct Known {
    read: Option<(Instant, Devices)>,
    /// Counts what this instance has said of devices.
    said: u64,
}

impl Live {
    /// The devices seen within the last `alive_secs` seconds.
    pub(super) async fn devices(
        &self,
        database: &Database,
        alive_secs: f64,
    ) -> Result<Devices, StoreError> {
        let said = {
            let known = self.known();
            if let Some((read, devices)) = &known.read
                && read.elapsed() < BELIEVED
            {
                return Ok(Arc::clone(devices));
            }
            known.said
        };
        let mut conn = database.connection().await?;
        let at = Instant::now();
        let devices: Devices = devices::live(&mut conn, alive_secs).await?.into();
        let mut known = self.known();
        // One that this instance has heard of since may be missing.
        if known.said == said {
            known.read = Some((at, Arc::clone(&devices)));
        }
        Ok(devices)
    }

    /// This instance has said something of a device: what was read before is not believed any more.
    pub fn changed(&self) {
        let mut known = self.known();
        known.said += 1;
        known.read = None;
    }

    /// One has come that offers what no other did: for [`came`](Self::came).
    pub fn tell(&self) {
        self.came.notify_one();
    }

    /// Resolves when a device has come that may be waited for.
    pub async fn came(&self) {
        self.came.notified().await;
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
