//! What somebody must do now and then, whoever it is: say that the device is still there, return
//! probes whose lease ran out, say what studies wait for, pass wake-ups on, forget old things.
//! Every step is idempotent, so any number of services may do it at once.

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use super::inventory::DeviceFacts;
use super::leases::retry_policy;
use crate::lifecycle::{Context, PAUSE_FOR_A_LOOK};
use crate::settings::{PoolSettings, RetentionSettings};
use crate::store::connection::ListenEvent;
use crate::store::devices::{self, NewDevice};
use crate::store::{StoreError, kept_answers, leases, probes, studies, wake};
use crate::study::DeviceId;

/// Time between looks for things that have been kept long enough.
const RETENTION_PERIOD: Duration = Duration::from_secs(3600);

/// Makes the host's device known with the runners that are offered on it, or says that it is still there.
///
/// # Errors
/// Those of the database.
pub async fn register(
    context: &Context,
    facts: &DeviceFacts,
    runners: &[String],
) -> Result<DeviceId, StoreError> {
    let live = context.live_devices().await?;
    let mut conn = context.database.connection().await?;
    let new = NewDevice {
        host: &facts.host,
        hardware: &facts.hardware,
        backend: facts.backend.as_str(),
        model: &facts.model,
        driver: facts.driver.as_deref(),
        threads: i32::try_from(facts.threads).unwrap_or(i32::MAX),
        memory_bytes: i64::try_from(facts.memory_bytes.0).unwrap_or(i64::MAX),
        available_bytes: i64::try_from(facts.available_bytes.0).unwrap_or(i64::MAX),
        slots: i32::try_from(facts.slots).unwrap_or(i32::MAX),
        count: i32::try_from(facts.count).unwrap_or(i32::MAX),
        runners,
    };
    let registered = devices::register(&mut conn, &new, context.alive_secs / 6.0).await;
    if !live.iter().any(|device| device.is_as_said(&new)) {
        context.live.changed();
    }
    if devices::is_awaited(&new, &live) {
        context.live.tell();
    }
    registered
}

/// Runs every step on a tick until told to stop. `facts` are the devices of this service's workers.
pub async fn run(
    context: Context,
    settings: PoolSettings,
    retention: RetentionSettings,
    facts: Vec<DeviceFacts>,
    mut stop: watch::Receiver<bool>,
) {
    let tick = Duration::from_secs_f64(settings.tick_secs.min(context.alive_secs / 3.0));
    let mut next_retention = Instant::now();
    loop {
        if let Err(error) = tidy(&context, &settings, &facts).await {
            tracing::warn!(%error, "housekeeping could not reach the database; trying again");
        }
        if Instant::now() >= next_retention {
            match forget(&context, &retention).await {
                Ok(true) => next_retention = Instant::now() + RETENTION_PERIOD,
                // The rest with the next tick.
                Ok(false) => {}
                Err(error) => tracing::warn!(%error, "old rows could not be removed; trying again"),
            }
        }
        let next_tick = Instant::now() + tick;
        loop {
            tokio::select! {
                biased;
                _ = stop.wait_for(|stop| *stop) => return,
                () = tokio::time::sleep_until(next_tick) => break,
                () = context.live.came() => {}
            }
            let began = Instant::now();
            if let Err(error) = refresh_waiting(&context).await {
                tracing::debug!(%error, "what studies wait for is looked up with the next tick");
            }
            // Many that come one after the other are a few looks, not many.
            let pause = PAUSE_FOR_A_LOOK * began.elapsed();
            tokio::select! {
                () = tokio::time::sleep_until(next_tick.min(Instant::now() + pause)) => {}
                _ = stop.wait_for(|stop| *stop) => return,
            }
        }
    }
}

/// Says anew what studies wait for.
async fn refresh_waiting(context: &Context) -> Result<(), StoreError> {
    let mut conn = context.database.connection().await?;
    if studies::refresh_waiting(&mut conn, context.alive_secs).await? > 0 {
        context.waker.tell();
    }
    Ok(())
}

/// Ended studies whose probes one tick counts.
const COUNTED_AT_ONCE: i64 = 100;

/// One round of everything that is done on each tick.
///
/// # Errors
/// Those of the database.
pub async fn tidy(
    context: &Context,
    settings: &PoolSettings,
    facts: &[DeviceFacts],
) -> Result<(), StoreError> {
    for facts in facts {
        register(context, facts, &settings.offered_runners()).await?;
    }
    let mut conn = context.database.connection().await?;
    let reaped = leases::reap(&mut conn, retry_policy(settings)).await?;
    if reaped > 0 {
        tracing::warn!(
            probes = reaped,
            "leases ran out; their probes will be run again"
        );
    }
    let requeued = probes::requeue_wanted(&mut conn).await?;
    let nudged = studies::nudge_stuck(&mut conn).await?;
    if reaped + requeued + nudged > 0 {
        context.waker.wake();
    }
    studies::keep_counts(&mut conn, COUNTED_AT_ONCE).await?;
    drop(conn);
    refresh_waiting(context).await
}

/// Studies, probes that one statement removes, with all that hangs on them: so it holds few locks, and not for long.
const AT_ONCE: i64 = 100;

/// Rows with nothing hanging on them that one statement removes.
const ROWS_AT_ONCE: i64 = 10_000;

/// Removes what was kept long enough, of each kind so much at once that other housekeeping does not wait for it. Says
/// whether that was all.
///
/// # Errors
/// Those of the database.
pub async fn forget(context: &Context, retention: &RetentionSettings) -> Result<bool, StoreError> {
    let mut conn = context.database.connection().await?;
    let days = retention.event_days;
    let events = probes::remove_old_events(&mut conn, days, ROWS_AT_ONCE).await?;
    let leases = leases::remove_old(&mut conn, days, ROWS_AT_ONCE).await?;
    let hours = context.idempotency_hours;
    let answers = kept_answers::remove_old(&mut conn, hours, ROWS_AT_ONCE).await?;
    let ended = match retention.study_days {
        Some(days) => studies::remove_ended(&mut conn, days, AT_ONCE).await?,
        None => 0,
    };
    let days = retention.unlinked_probe_days;
    let unlinked = probes::remove_unlinked(&mut conn, days, AT_ONCE).await?;
    if events + ended + unlinked > 0 {
        tracing::info!(
            events,
            studies = ended,
            probes = unlinked,
            "removed what was kept long enough"
        );
    }
    let is_less = |removed: usize, most: i64| i64::try_from(removed).is_ok_and(|it| it < most);
    Ok([events, leases, answers]
        .iter()
        .all(|it| is_less(*it, ROWS_AT_ONCE))
        && [ended, unlinked].iter().all(|it| is_less(*it, AT_ONCE)))
}

/// Passes this instance's wake-ups to the others, many within 20 ms as one.
pub async fn send_wake_ups(context: Context, mut stop: watch::Receiver<bool>) {
    loop {
        tokio::select! {
            () = context.waker.due_elsewhere() => {}
            _ = stop.wait_for(|stop| *stop) => return,
        }
        tokio::time::sleep(wake::COALESCE).await;
        let sent = match context.database.connection().await {
            Ok(mut conn) => context.waker.send(&mut conn).await,
            Err(error) => Err(error),
        };
        if let Err(error) = sent {
            // Nothing is lost: everybody also looks on a tick.
            tracing::debug!(%error, "a wake-up could not be sent");
        }
    }
}

/// Wakes this instance when another one says so, over one dedicated connection.
pub async fn hear_wake_ups(context: Context, mut stop: watch::Receiver<bool>) {
    let mut notifications = context.database.listen(&[wake::CHANNEL]);
    loop {
        tokio::select! {
            event = notifications.next() => match event {
                // Something may have been missed.
                ListenEvent::Rescan => context.waker.hear(""),
                ListenEvent::Notification { payload, .. } => context.waker.hear(&payload),
            },
            _ = stop.wait_for(|stop| *stop) => return,
        }
    }
}
