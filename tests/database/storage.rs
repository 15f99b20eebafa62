//! Where the managed server's files are: long paths, closed doors, full and read-only disks, other versions.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use trialhead::store::local_server::{LocalServer, LocalServerError, SOCKET_PATH_BYTES};

use crate::postgres::{ServerDirectory, execute, throwaway};
use crate::processes::{is_root, skip};

#[tokio::test]
async fn a_long_data_directory_gets_a_short_private_socket() {
    let directory = ServerDirectory::create();
    let long = directory
        .path
        .join("d".repeat(60))
        .join("e, \"f".repeat(12));
    assert!(long.as_os_str().len() > SOCKET_PATH_BYTES);
    let server = LocalServer::start(throwaway(&long))
        .await
        .expect("it starts");
    let socket = server.socket_directory().to_owned();
    assert!(socket.as_os_str().len() < SOCKET_PATH_BYTES);
    assert!(!socket.starts_with(&directory.path), "{}", socket.display());
    let mode = fs::metadata(&socket)
        .expect("its directory")
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o700);
    execute(&server.url(), "SELECT 1").await;
    server.stop().await;
    assert!(!socket.exists(), "nothing of it is left behind");
}

#[tokio::test]
async fn a_path_with_spaces_quotes_and_commas_works() {
    let directory = ServerDirectory::create();
    let odd = directory.path.join("a b,c'd@e%f");
    let server = LocalServer::start(throwaway(&odd))
        .await
        .expect("it starts");
    assert!(server.socket_directory().starts_with(&odd));
    execute(&server.url(), "SELECT 1").await;
    server.stop().await;
}

#[tokio::test]
async fn a_closed_home_is_named_with_the_mend() {
    if !is_root() {
        skip(
            "a_closed_home_is_named_with_the_mend",
            "only root gives its server to another account",
        );
        return;
    }
    let directory = ServerDirectory::create();
    let home = directory.path.join("home");
    fs::create_dir(&home).expect("a home");
    fs::set_permissions(&home, fs::Permissions::from_mode(0o700)).expect("its mode");
    let error = LocalServer::start(throwaway(&home.join("data")))
        .await
        .expect_err("it cannot be reached");
    let LocalServerError::Unreachable { directory, .. } = &error else {
        panic!("{error}");
    };
    assert_eq!(directory, &home);
    let text = error.to_string();
    for part in ["chmod o+x", "TRIALHEAD_DATA_DIR", "/var/lib/trialhead"] {
        assert!(text.contains(part), "{text}");
    }
}

#[tokio::test]
async fn somebody_elses_files_are_not_touched() {
    let directory = ServerDirectory::create();
    let precious = directory.path.join("postgres/cluster/precious");
    fs::create_dir_all(precious.parent().expect("it has one")).expect("a directory");
    fs::write(&precious, "mine").expect("a file");
    let error = LocalServer::start(throwaway(&directory.path))
        .await
        .expect_err("it is refused");
    assert!(matches!(error, LocalServerError::NotACluster(_)), "{error}");
    assert_eq!(fs::read_to_string(&precious).expect("it is there"), "mine");
}

#[tokio::test]
async fn a_cluster_of_a_major_that_is_not_installed_names_the_package() {
    let directory = ServerDirectory::create();
    let cluster = directory.path.join("postgres/cluster");
    fs::create_dir_all(&cluster).expect("a directory");
    fs::write(cluster.join("PG_VERSION"), "12\n").expect("a file");
    let error = LocalServer::start(throwaway(&directory.path))
        .await
        .expect_err("no Postgres 12 is here")
        .to_string();
    assert!(error.contains("apt-get install postgresql-12"), "{error}");
}

/// A small file system of its own, unmounted at the end.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mount(directory: &Path, size: &str) -> Option<Self> {
        let path = directory.join("disk");
        fs::create_dir(&path).expect("a mount point");
        let options = format!("size={size},mode=755");
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &options, "tmpfs"])
            .arg(&path)
            .status()
            .is_ok_and(|status| status.success());
        mounted.then(|| Self(path))
    }

    fn remount(&self, options: &str) {
        let status = Command::new("mount")
            .args(["-o", &format!("remount,{options}")])
            .arg(&self.0)
            .status()
            .expect("mount runs");
        assert!(status.success());
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount")
            .args(["--lazy"])
            .arg(&self.0)
            .status();
    }
}

#[tokio::test]
async fn a_full_disk_is_said_and_leaves_nothing_half_made() {
    let directory = ServerDirectory::create();
    let Some(disk) = SmallDisk::mount(&directory.path, "20m") else {
        skip(
            "a_full_disk_is_said_and_leaves_nothing_half_made",
            "mounting is not allowed here",
        );
        return;
    };
    let error = LocalServer::start(throwaway(&disk.0))
        .await
        .expect_err("a cluster takes 39 MB");
    assert!(
        matches!(error, LocalServerError::Initialise { .. }),
        "{error}"
    );
    let text = error.to_string();
    assert!(text.contains("the disk is full"), "{text}");
    assert!(text.contains("initdb: "), "what initdb said: {text}");
    let left: Vec<_> = fs::read_dir(disk.0.join("postgres"))
        .expect("its directory")
        .flatten()
        .map(|entry| entry.file_name())
        .collect();
    assert!(left.is_empty(), "{left:?}");
    // With room it starts, on the same directory.
    disk.remount("size=300m");
    let server = LocalServer::start(throwaway(&disk.0))
        .await
        .expect("it starts");
    execute(&server.url(), "CREATE TABLE kept AS SELECT 1 AS n").await;
    server.stop().await;
    // Full once more, now with a cluster: an error, and everything is there when room is made.
    let filler = disk.0.join("filler");
    let filled = fs::write(&filler, vec![0_u8; 400 << 20]);
    assert!(filled.is_err(), "the disk holds less");
    let error = LocalServer::start(throwaway(&disk.0))
        .await
        .expect_err("there is no room for a start")
        .to_string();
    assert!(
        error.contains("disk is full") || error.contains("No space left"),
        "{error}"
    );
    fs::remove_file(&filler).expect("the filler goes");
    let server = LocalServer::start(throwaway(&disk.0))
        .await
        .expect("it starts again");
    execute(&server.url(), "SELECT n FROM kept").await;
    server.stop().await;
}

#[tokio::test]
async fn a_read_only_disk_is_said() {
    let directory = ServerDirectory::create();
    let Some(disk) = SmallDisk::mount(&directory.path, "1m") else {
        skip("a_read_only_disk_is_said", "mounting is not allowed here");
        return;
    };
    disk.remount("ro");
    let error = LocalServer::start(throwaway(&disk.0.join("data")))
        .await
        .expect_err("nothing can be written")
        .to_string();
    assert!(error.contains("Read-only file system"), "{error}");
    assert!(error.contains(&disk.0.display().to_string()), "{error}");
}
