//! Devices of the live workers.

use actix_web::get;
use actix_web::web::{Data, Json};
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::problem::Problem;
use super::responses::Always;
use super::state::Api;
use crate::store::devices::{self, DeviceRow};
use crate::study::{Bytes, DeviceId};

/// A device that a live worker can run probes on.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Device {
    /// Names the device.
    pub id: DeviceId,
    /// The host it belongs to.
    pub host: String,
    /// Which of the host's devices it is.
    pub hardware: String,
    /// What runs the arithmetic.
    pub backend: String,
    /// The model; studies name it as `device.model`.
    pub model: String,
    /// Name and version of a GPU's driver.
    pub driver: Option<String>,
    /// Threads of its host.
    pub threads: i32,
    /// Its memory.
    pub memory_bytes: Bytes,
    /// Memory that was free when its worker last looked; the default budget is 0.8 of it.
    pub available_bytes: Bytes,
    /// The runners that live workers offer on it; studies name one as `runner.name`.
    pub runners: Vec<String>,
    /// How many devices may train together on it; studies name so many, or fewer, as `device.count`. Memory is that of
    /// each card, or of the whole processor.
    pub count: i32,
    /// Probes that may share it.
    pub slots: i32,
    /// Probes running on it now.
    pub running_probes: i64,
    /// Whether it runs any.
    pub busy: bool,
    /// When its worker last said that it is there.
    pub last_seen: DateTime<Utc>,
}

impl Device {
    fn new(row: DeviceRow, running_probes: i64) -> Self {
        Self {
            id: DeviceId(row.id),
            host: row.host,
            hardware: row.hardware,
            backend: row.backend,
            model: row.model,
            driver: row.driver,
            threads: row.threads,
            memory_bytes: Bytes(u64::try_from(row.memory_bytes).unwrap_or(0)),
            available_bytes: Bytes(u64::try_from(row.available_bytes).unwrap_or(0)),
            runners: row.runners,
            slots: row.slots,
            count: row.count,
            running_probes,
            busy: running_probes > 0,
            last_seen: row.last_seen,
        }
    }
}

/// The devices of the live workers.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Devices {
    /// By model, host and hardware.
    pub items: Vec<Device>,
}

/// List devices
///
/// Those that a live worker can run probes on.
#[utoipa::path(
    operation_id = "list_devices",
    tag = "devices",
    security(("token" = ["read"])),
    responses(
        (status = 200, description = "The devices", body = Devices),
        Always,
    )
)]
#[get("/v1/devices")]
pub async fn list_devices(api: Data<Api>) -> Result<Json<Devices>, Problem> {
    let mut conn = api.context.database.connection().await?;
    let rows = devices::live(&mut conn, api.context.alive_secs).await?;
    let ids: Vec<_> = rows.iter().map(|row| row.id).collect();
    let running = devices::running_probes(&mut conn, &ids).await?;
    let device = |row: DeviceRow| {
        let running_probes = running.get(&row.id).copied().unwrap_or(0);
        Device::new(row, running_probes)
    };
    Ok(Json(Devices {
        items: rows.into_iter().map(device).collect(),
    }))
}
