//! Locks between services of one host, real processes and real users.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::time::Duration;

use trialhead::pool::host_lock::{HostLockError, HostLocks, LockMode};

use crate::roles;
use crate::runner::PATIENCE;

const NOT_LONG: Duration = Duration::from_millis(50);

#[tokio::test]
async fn one_alone_or_several_together() {
    let place = tempfile::tempdir().expect("creates");
    let path = place.path().join("locks");
    let one = HostLocks::open(Some(&path)).expect("opens");
    let other = HostLocks::open(Some(&path)).expect("opens");
    let mode = fs::metadata(&path).expect("exists").mode();
    assert_eq!(mode & 0o7777, 0o1777);

    let alone = one.try_acquire("cpu", LockMode::Exclusive).expect("tries");
    assert!(alone.is_some());
    for mode in [LockMode::Exclusive, LockMode::Shared] {
        assert!(other.try_acquire("cpu", mode).expect("tries").is_none());
    }
    // Another device is another lock.
    let gpu = other
        .try_acquire("GPU-0", LockMode::Exclusive)
        .expect("tries");
    assert!(gpu.is_some());
    drop(alone);

    let shared = one.try_acquire("cpu", LockMode::Shared).expect("tries");
    let second = other.try_acquire("cpu", LockMode::Shared).expect("tries");
    assert!(shared.is_some() && second.is_some());
    let late = one.acquire("cpu", LockMode::Exclusive, NOT_LONG).await;
    assert!(late.expect("waits").is_none());
}

#[tokio::test]
async fn who_waits_gets_it_when_it_is_free_and_others_wait_behind() {
    let place = tempfile::tempdir().expect("creates");
    let locks = HostLocks::open(Some(&place.path().join("locks"))).expect("opens");
    let shared = locks.try_acquire("cpu", LockMode::Shared).expect("tries");
    assert!(shared.is_some());
    let exclusive = locks.acquire("cpu", LockMode::Exclusive, PATIENCE);
    tokio::pin!(exclusive);
    // It looks once and then waits.
    assert!(futures::poll!(&mut exclusive).is_pending());
    let newcomer = locks.try_acquire("cpu", LockMode::Shared).expect("tries");
    assert!(newcomer.is_none(), "a newcomer overtook the one who waits");
    drop(shared);
    assert!(exclusive.await.expect("waits").is_some());
    // Waiting in vain leaves nothing behind.
    let newcomer = locks.acquire("cpu", LockMode::Shared, PATIENCE).await;
    assert!(newcomer.expect("waits").is_some());
}

#[tokio::test]
async fn a_holder_that_is_killed_holds_nothing() {
    let place = tempfile::tempdir().expect("creates");
    let path = place.path().join("locks");
    let mut holder = roles::start("lock_holder", &path.to_string_lossy());
    let output = holder.stdout.take().expect("is a pipe");
    assert!(
        BufReader::new(output)
            .lines()
            .any(|line| line.expect("reads") == "held")
    );
    let locks = HostLocks::open(Some(&path)).expect("opens");
    let late = locks.acquire("cpu", LockMode::Exclusive, NOT_LONG).await;
    assert!(late.expect("waits").is_none());
    holder.kill().expect("SIGKILL");
    holder.wait().expect("reaps");
    let free = locks
        .try_acquire("cpu", LockMode::Exclusive)
        .expect("tries");
    assert!(free.is_some());
}

#[tokio::test]
async fn a_lock_whose_file_was_removed_keeps_out_the_next_one_all_the_same() {
    let place = tempfile::tempdir().expect("creates");
    let path = place.path().join("locks");
    let locks = HostLocks::open(Some(&path)).expect("opens");
    drop(
        locks
            .try_acquire("cpu", LockMode::Exclusive)
            .expect("tries"),
    );
    fs::remove_file(path.join("cpu.lock")).expect("removes");
    let one = locks
        .try_acquire("cpu", LockMode::Exclusive)
        .expect("tries");
    let other = locks
        .try_acquire("cpu", LockMode::Exclusive)
        .expect("tries");
    assert!(one.is_some() && other.is_none());
}

#[test]
fn traps_in_a_shared_directory_are_refused() {
    let place = tempfile::tempdir().expect("creates");
    let path = place.path().join("locks");
    let victim = place.path().join("victim");
    fs::write(&victim, "precious").expect("writes");
    let locks = HostLocks::open(Some(&path)).expect("opens");
    symlink(&victim, path.join("cpu.lock")).expect("links");
    let error = locks
        .try_acquire("cpu", LockMode::Exclusive)
        .expect_err("refuses");
    assert!(error.to_string().contains("symbolic link"), "{error}");
    assert_eq!(fs::read_to_string(&victim).expect("reads"), "precious");

    nix::unistd::mkfifo(&path.join("gpu.lock"), nix::sys::stat::Mode::S_IRWXU).expect("creates");
    let error = locks
        .try_acquire("gpu", LockMode::Exclusive)
        .expect_err("refuses");
    assert!(error.to_string().contains("regular file"), "{error}");

    let link = place.path().join("link");
    symlink(&path, &link).expect("links");
    for bad in [link, victim] {
        let error = HostLocks::open(Some(&bad)).expect_err("refuses");
        assert!(matches!(error, HostLockError::Unsafe { .. }), "{error}");
    }
    fs::set_permissions(&path, fs::Permissions::from_mode(0o777)).expect("sets");
    let error = HostLocks::open(Some(&path)).expect_err("refuses");
    assert!(error.to_string().contains("sticky"), "{error}");
}

/// `flock` belongs to the open file, so one process can stand for two users if it opens as each.
#[test]
fn services_of_different_users_share_the_locks() {
    use nix::unistd::{Uid, geteuid};
    if !geteuid().is_root() {
        return;
    }
    let place = tempfile::tempdir().expect("creates");
    fs::set_permissions(place.path(), fs::Permissions::from_mode(0o711)).expect("sets");
    let path = place.path().join("locks");
    let root = HostLocks::open(Some(&path)).expect("opens");
    let held = root.try_acquire("cpu", LockMode::Exclusive).expect("tries");
    assert!(held.is_some());
    std::thread::scope(|scope| {
        scope.spawn(|| {
            // SAFETY: the bare system call changes this thread only; the library's would change all.
            let changed = unsafe {
                nix::libc::syscall(
                    nix::libc::SYS_setresuid,
                    -1,
                    Uid::from_raw(65534).as_raw(),
                    -1,
                )
            };
            assert_eq!(changed, 0);
            let other = HostLocks::open(Some(&path)).expect("opens");
            assert!(
                other
                    .try_acquire("cpu", LockMode::Shared)
                    .expect("tries")
                    .is_none()
            );
            // And the other way round: what this user creates, root can lock.
            let gpu = other
                .try_acquire("gpu", LockMode::Exclusive)
                .expect("tries");
            assert!(gpu.is_some());
            assert!(
                root.try_acquire("gpu", LockMode::Exclusive)
                    .expect("tries")
                    .is_none()
            );
        });
    });
    assert!(
        root.try_acquire("gpu", LockMode::Exclusive)
            .expect("tries")
            .is_some()
    );
}
