//! Devices of hosts, kept fresh by whoever works on them.

use std::collections::HashMap;

use chrono::{DateTime, Utc};
use diesel::dsl::count_star;
use diesel::prelude::*;
use diesel_async::{AsyncPgConnection, RunQueryDsl};
use uuid::Uuid;

use super::error::StoreError;
use super::schema::probes;
use super::statement::statement;
use crate::study::{DeviceId, ProbeId};

/// What a worker says of a device.
#[derive(Debug, Clone)]
pub struct NewDevice<'a> {
    pub host: &'a str,
    pub hardware: &'a str,
    pub backend: &'a str,
    pub model: &'a str,
    pub driver: Option<&'a str>,
    pub threads: i32,
    pub memory_bytes: i64,
    pub available_bytes: i64,
    pub slots: i32,
    /// How many devices may train together on it.
    pub count: i32,
    /// The runners that the worker offers on it.
    pub runners: &'a [String],
}

/// Makes a device known, or says that it is still there, unless just that was said within the last `fresh_secs` seconds.
pub async fn register(
    conn: &mut AsyncPgConnection,
    new: &NewDevice<'_>,
    fresh_secs: f64,
) -> Result<DeviceId, StoreError> {
    #[derive(QueryableByName)]
    struct Id {
        #[diesel(sql_type = diesel::sql_types::Uuid)]
        id: Uuid,
    }
    // The runners in order, so that two workers of one host never wait for each other.
    let row: Id = statement(
        "WITH fresh AS (\
            SELECT id FROM devices d WHERE host = $2 AND hardware = $3 \
              AND (backend, model, threads, memory_bytes, available_bytes, slots, count) = ($4, $5, $6, $7, $8, $9, $11) \
              AND driver IS NOT DISTINCT FROM $10 AND last_seen > now() - make_interval(secs => $13) \
              AND NOT EXISTS (SELECT 1 FROM unnest($12::text[]) AS offered (runner) WHERE NOT EXISTS (\
                SELECT 1 FROM device_runners r WHERE r.device = d.id AND r.runner = offered.runner \
                  AND r.last_seen > now() - make_interval(secs => $13)))), \
         told AS (\
            INSERT INTO devices (id, host, hardware, backend, model, threads, memory_bytes, available_bytes, slots, driver, count) \
            SELECT $1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11 WHERE NOT EXISTS (SELECT 1 FROM fresh) \
            ON CONFLICT (host, hardware) DO UPDATE SET backend = excluded.backend, \
              model = excluded.model, threads = excluded.threads, \
              memory_bytes = excluded.memory_bytes, available_bytes = excluded.available_bytes, \
              slots = excluded.slots, driver = excluded.driver, count = excluded.count, last_seen = now() \
            RETURNING id), \
         offered AS (\
            INSERT INTO device_runners (device, runner) \
            SELECT told.id, r FROM told, (SELECT DISTINCT unnest($12::text[]) AS r) runners ORDER BY r \
            ON CONFLICT (device, runner) DO UPDATE SET last_seen = now()) \
         SELECT id FROM fresh UNION ALL SELECT id FROM told",
    )
    .bind::<diesel::sql_types::Uuid, _>(Uuid::now_v7())
    .bind::<diesel::sql_types::Text, _>(new.host)
    .bind::<diesel::sql_types::Text, _>(new.hardware)
    .bind::<diesel::sql_types::Text, _>(new.backend)
    .bind::<diesel::sql_types::Text, _>(new.model)
    .bind::<diesel::sql_types::Integer, _>(new.threads)
    .bind::<diesel::sql_types::BigInt, _>(new.memory_bytes)
    .bind::<diesel::sql_types::BigInt, _>(new.available_bytes)
    .bind::<diesel::sql_types::Integer, _>(new.slots)
    .bind::<diesel::sql_types::Nullable<diesel::sql_types::Text>, _>(new.driver)
    .bind::<diesel::sql_types::Integer, _>(new.count)
    .bind::<diesel::sql_types::Array<diesel::sql_types::Text>, _>(new.runners)
    .bind::<diesel::sql_types::Double, _>(fresh_secs)
    .get_result(conn)
    .await?;
    Ok(DeviceId(row.id))
}

/// Says that the device of a running probe, with what its worker offers there, is still there, unless that was said
/// within the last `fresh_secs` seconds.
pub async fn touch_of_probe(
    conn: &mut AsyncPgConnection,
    probe: ProbeId,
    fresh_secs: f64,
) -> Result<(), StoreError> {
    statement(
        "UPDATE devices SET last_seen = now() \
         WHERE id = (SELECT device FROM probes WHERE id = $1) \
           AND last_seen < now() - make_interval(secs => $2)",
    )
    .bind::<diesel::sql_types::Uuid, _>(probe.0)
    .bind::<diesel::sql_types::Double, _>(fresh_secs)
    .execute(conn)
    .await?;
    // What the worker offers was said within `fresh_secs` before it got the probe. What nobody had said then is somebody
    // else's, who may be gone.
    statement(
        "UPDATE device_runners r SET last_seen = now() FROM probes p \
         WHERE p.id = $1 AND r.device = p.device \
           AND (r.runner = p.runner OR r.last_seen >= p.started_at - make_interval(secs => 2 * $2)) \
           AND r.last_seen < now() - make_interval(secs => $2)",
    )
    .bind::<diesel::sql_types::Uuid, _>(probe.0)
    .bind::<diesel::sql_types::Double, _>(fresh_secs)
    .execute(conn)
    .await?;
    Ok(())
}

/// A device as stored, with what runs on it.
#[derive(Debug, Clone, PartialEq, QueryableByName)]
pub struct DeviceRow {
    #[diesel(sql_type = diesel::sql_types::Uuid)]
    pub id: Uuid,
    #[diesel(sql_type = diesel::sql_types::Text)]
    pub host: String,
    #[diesel(sql_type = diesel::sql_types::Text)]
    pub hardware: String,
    #[diesel(sql_type = diesel::sql_types::Text)]
    pub backend: String,
    #[diesel(sql_type = diesel::sql_types::Text)]
    pub model: String,
    #[diesel(sql_type = diesel::sql_types::Nullable<diesel::sql_types::Text>)]
    pub driver: Option<String>,
    #[diesel(sql_type = diesel::sql_types::Integer)]
    pub threads: i32,
    #[diesel(sql_type = diesel::sql_types::BigInt)]
    pub memory_bytes: i64,
    #[diesel(sql_type = diesel::sql_types::BigInt)]
    pub available_bytes: i64,
    #[diesel(sql_type = diesel::sql_types::Integer)]
    pub slots: i32,
    #[diesel(sql_type = diesel::sql_types::Integer)]
    pub count: i32,
    /// The runners that live workers offer on it.
    #[diesel(sql_type = diesel::sql_types::Array<diesel::sql_types::Text>)]
    pub runners: Vec<String>,
    #[diesel(sql_type = diesel::sql_types::Timestamptz)]
    pub last_seen: DateTime<Utc>,
}

impl DeviceRow {
    /// Whether just this was said of it.
    pub fn is_as_said(&self, new: &NewDevice<'_>) -> bool {
        let here = (
            (self.host.as_str(), self.hardware.as_str()),
            (self.backend.as_str(), self.model.as_str()),
            self.driver.as_deref(),
            (self.threads, self.slots, self.count),
            (self.memory_bytes, self.available_bytes),
        );
        let said = (
            (new.host, new.hardware),
            (new.backend, new.model),
            new.driver,
            (new.threads, new.slots, new.count),
            (new.memory_bytes, new.available_bytes),
        );
        here == said && new.runners.iter().all(|it| self.runners.contains(it))
    }

    /// Whether it can do what is asked of this backend, model and runner.
    fn offers(&self, backend: &str, model: &str, runner: &String) -> bool {
        self.backend == backend && self.model == model && self.runners.contains(runner)
    }
}

/// Whether a device offers something that none of the live ones does.
pub fn is_awaited(new: &NewDevice<'_>, live: &[DeviceRow]) -> bool {
    let offered = |runner| {
        live.iter()
            .any(|it| it.offers(new.backend, new.model, runner))
    };
    !new.runners.iter().all(offered)
}

/// Devices seen within the last `alive_secs` seconds, by model and host.
pub async fn live(
    conn: &mut AsyncPgConnection,
    alive_secs: f64,
) -> Result<Vec<DeviceRow>, StoreError> {
    // Nothing is bound, so that the plan is kept: the time is always the same, and the tables are small.
    Ok(statement(format!(
        "SELECT d.id, d.host, d.hardware, d.backend, d.model, d.driver, d.threads, d.memory_bytes, \
            d.available_bytes, d.slots, d.count, d.last_seen, \
            ARRAY(SELECT r.runner FROM device_runners r WHERE r.device = d.id \
                AND r.last_seen > now() - make_interval(secs => {alive_secs}) ORDER BY r.runner) AS runners \
         FROM devices d WHERE d.last_seen > now() - make_interval(secs => {alive_secs}) \
         ORDER BY d.model, d.host, d.hardware",
    ))
    .load(conn)
    .await?)
}

/// How many probes run on devices; those on which none runs are left out.
pub async fn running_probes(
    conn: &mut AsyncPgConnection,
    devices: &[Uuid],
) -> Result<HashMap<Uuid, i64>, StoreError> {
    Ok(probes::table
        .filter(probes::state.eq("running"))
        .filter(probes::device.eq_any(devices.iter().copied().map(Some)))
        .group_by(probes::device)
        .select((probes::device.assume_not_null(), count_star()))
        .load::<(Uuid, i64)>(conn)
        .await?
        .into_iter()
        .collect())
}
