//! The managed server: its settings, its end in every way, and who may share what with whom.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::time::Duration;

use nix::unistd::User;
use tokio::time::timeout;
use tokio_postgres::{Client, NoTls};
use trialhead::store::local_server::{
    LocalServer, LocalServerConfig, LocalServerError, ServerState,
};

use crate::postgres::{ServerDirectory, execute, throwaway};
use crate::processes::{
    Holder, PATIENCE, Said, directory_of, gone, is_root, kill_hard, pid_of, skip, until,
};

async fn connect(url: &str) -> Client {
    let (client, connection) = tokio_postgres::connect(url, NoTls)
        .await
        .expect("the server takes connections");
    tokio::spawn(connection);
    client
}

async fn value(client: &Client, query: &str) -> String {
    client
        .query_one(query, &[])
        .await
        .expect("an answer")
        .get(0)
}

#[tokio::test]
async fn a_server_is_durable_private_and_keeps_its_data() {
    let directory = ServerDirectory::create();
    let config = LocalServerConfig::new(directory.path.join("new/data"));
    let server = LocalServer::start(config.clone()).await.expect("it starts");
    let client = connect(&server.url()).await;
    for (setting, expected) in [
        ("listen_addresses", ""),
        ("fsync", "on"),
        ("synchronous_commit", "on"),
        ("full_page_writes", "on"),
        ("server_encoding", "UTF8"),
        ("data_checksums", "on"),
    ] {
        assert_eq!(
            value(&client, &format!("SHOW {setting}")).await,
            expected,
            "{setting}"
        );
    }
    let collation = "SELECT datcollate::text FROM pg_database WHERE datname = current_database()";
    assert_eq!(value(&client, collation).await, "C");
    assert_eq!(
        value(&client, "SELECT current_database()::text").await,
        "trialhead"
    );

    let socket = fs::metadata(server.socket_directory()).expect("the socket's directory");
    assert_eq!(socket.mode() & 0o777, 0o700);
    let pid = pid_of(&server);
    let process = fs::metadata(format!("/proc/{pid}")).expect("the server's process");
    assert_eq!(process.uid(), socket.uid());
    assert!(process.uid() != 0, "Postgres never runs as root");

    client
        .batch_execute("CREATE TABLE kept AS SELECT 7 AS n")
        .await
        .expect("a table");
    let mut state = server.state();
    server.stop().await;
    assert_eq!(*state.borrow_and_update(), ServerState::Stopped);
    gone(pid).await;

    let again = LocalServer::start(config).await.expect("it starts again");
    let client = connect(&again.url()).await;
    assert_eq!(value(&client, "SELECT n::text FROM kept").await, "7");
    again.stop().await;
}

#[tokio::test]
async fn two_services_cannot_share_a_directory() {
    let directory = ServerDirectory::create();
    let first = LocalServer::start(throwaway(&directory.path))
        .await
        .expect("the first starts");
    let error = LocalServer::start(throwaway(&directory.path))
        .await
        .expect_err("the second is refused");
    assert!(matches!(error, LocalServerError::InUse { .. }), "{error}");
    let text = error.to_string();
    assert!(text.contains(&std::process::id().to_string()), "{text}");
    assert!(text.contains("TRIALHEAD_DATA_DIR"), "{text}");
    // The refusal did the first one no harm.
    execute(&first.url(), "SELECT 1").await;
    first.stop().await;
}

#[tokio::test]
async fn a_killed_server_comes_back_with_what_was_committed() {
    let directory = ServerDirectory::create();
    let server = LocalServer::start(LocalServerConfig::new(&directory.path))
        .await
        .expect("it starts");
    execute(&server.url(), "CREATE TABLE kept AS SELECT 1 AS n").await;
    // A backend at work holds on to the cluster for a moment after the main process is gone.
    let busy = connect(&server.url()).await;
    let work = tokio::spawn(async move { busy.batch_execute("SELECT pg_sleep(600)").await });
    let killed = pid_of(&server);
    let mut state = server.state();
    kill_hard(killed);
    until(&mut state, |state| {
        matches!(state, ServerState::Restarting { .. })
    })
    .await;
    let back = until(&mut state, |state| {
        matches!(state, ServerState::Ready { .. })
    })
    .await;
    assert_ne!(back, ServerState::Ready { pid: killed });
    assert!(work.await.expect("the task ends").is_err());
    let client = connect(&server.url()).await;
    assert_eq!(value(&client, "SELECT n::text FROM kept").await, "1");
    server.stop().await;
}

#[tokio::test]
async fn a_server_that_cannot_come_back_is_given_up_with_the_reason() {
    let directory = ServerDirectory::create();
    let config = LocalServerConfig {
        max_restarts: 2,
        ..throwaway(&directory.path)
    };
    let server = LocalServer::start(config).await.expect("it starts");
    let mut state = server.state();
    fs::remove_file(directory.path.join("postgres/cluster/global/pg_control"))
        .expect("a vital file");
    kill_hard(pid_of(&server));
    let ServerState::GaveUp { reason } = until(&mut state, |state| {
        matches!(state, ServerState::GaveUp { .. })
    })
    .await
    else {
        unreachable!("that state was waited for");
    };
    assert!(reason.contains("pg_control"), "{reason}");
    server.stop().await;
}

#[tokio::test]
async fn a_dropped_server_stops() {
    let directory = ServerDirectory::create();
    let server = LocalServer::start(throwaway(&directory.path))
        .await
        .expect("it starts");
    let pid = pid_of(&server);
    drop(server);
    gone(pid).await;
}

#[tokio::test]
async fn a_server_stops_with_the_runtime_that_ran_it() {
    let directory = ServerDirectory::create();
    let config = throwaway(&directory.path);
    let pid = std::thread::spawn(move || {
        let runtime = tokio::runtime::Runtime::new().expect("a runtime");
        let server = runtime
            .block_on(LocalServer::start(config))
            .expect("it starts");
        let pid = pid_of(&server);
        // As in a process that panics: nobody has called stop().
        std::mem::forget(server);
        runtime.shutdown_background();
        pid
    })
    .join()
    .expect("the thread ends");
    gone(pid).await;
}

#[tokio::test]
async fn a_server_does_not_outlive_a_killed_parent_and_the_next_one_takes_over() {
    let directory = ServerDirectory::create();
    let data_dir = directory.path.join("data");
    let mut holder = Holder::start(&data_dir, &directory, None);
    let Said::Ready { pid, url } = holder.said().await else {
        panic!("the holder's server starts");
    };
    execute(&url, "CREATE TABLE kept AS SELECT 3 AS n; CHECKPOINT").await;
    kill_hard(holder.child.id().expect("it runs"));
    holder.child.wait().await.expect("it ends");
    // At once, while the orphan may still be on its way out.
    let next = LocalServer::start(throwaway(&data_dir))
        .await
        .expect("it takes over");
    gone(pid).await;
    let client = connect(&next.url()).await;
    assert_eq!(value(&client, "SELECT n::text FROM kept").await, "3");
    next.stop().await;
}

#[tokio::test]
async fn a_kill_while_the_cluster_is_made_leaves_nothing_half_made() {
    let directory = ServerDirectory::create();
    let data_dir = directory.path.join("data");
    let mut holder = Holder::start(&data_dir, &directory, None);
    let in_the_making = || {
        fs::read_dir(data_dir.join("postgres")).is_ok_and(|entries| {
            entries.flatten().any(|entry| {
                entry
                    .file_name()
                    .to_string_lossy()
                    .starts_with("initialising.")
                    && entry.path().join("base").exists()
            })
        })
    };
    timeout(PATIENCE, async {
        while !in_the_making() {
            tokio::task::yield_now().await;
        }
    })
    .await
    .expect("a cluster is being made");
    kill_hard(holder.child.id().expect("it runs"));
    holder.child.wait().await.expect("it ends");
    let server = LocalServer::start(throwaway(&data_dir))
        .await
        .expect("the next start begins afresh");
    execute(&server.url(), "SELECT 1").await;
    assert!(!in_the_making());
    server.stop().await;
}

#[tokio::test]
async fn a_stale_pid_file_that_says_ready_names_another_live_process() {
    let directory = ServerDirectory::create();
    let config = throwaway(&directory.path);
    let server = LocalServer::start(config.clone()).await.expect("it starts");
    let cluster = directory.path.join("postgres/cluster");
    let file = fs::read_to_string(cluster.join("postmaster.pid")).expect("its file");
    let owner = fs::metadata(&cluster).expect("the cluster").uid();
    let own_pid = pid_of(&server);
    server.stop().await;
    // Of the database's own account: Postgres takes any such process for a server.
    let mut other = tokio::process::Command::new("sleep");
    other.arg("600").kill_on_drop(true);
    if is_root() {
        other.uid(owner);
    }
    let mut other = other.spawn().expect("a process");
    let other_pid = other.id().expect("it runs");
    let stale = file.replacen(&own_pid.to_string(), &other_pid.to_string(), 1);
    assert!(stale.contains("ready"));
    fs::write(cluster.join("postmaster.pid"), &stale).expect("the stale file");
    let started = LocalServer::start(config)
        .await
        .expect("it starts all the same");
    assert_ne!(pid_of(&started), other_pid);
    execute(&started.url(), "SELECT 1").await;
    started.stop().await;
    assert!(
        other.try_wait().expect("a status").is_none(),
        "the other process was left alone"
    );
    other.kill().await.expect("it ends");
}

#[tokio::test]
async fn a_server_somebody_else_runs_on_the_cluster_is_left_alone() {
    let directory = ServerDirectory::create();
    let first = LocalServer::start(throwaway(&directory.path))
        .await
        .expect("it starts");
    // As if it had been started by hand: nothing but Postgres' own lock is left.
    fs::remove_file(directory.path.join("postgres.lock")).expect("our lock");
    let config = LocalServerConfig {
        takeover_timeout: Duration::from_millis(300),
        ..throwaway(&directory.path)
    };
    let error = LocalServer::start(config).await.expect_err("it is refused");
    let LocalServerError::HeldByServer { pid, .. } = error else {
        panic!("{error}");
    };
    assert_eq!(pid, pid_of(&first));
    execute(&first.url(), "SELECT 1").await;
    first.stop().await;
}

#[tokio::test]
async fn an_ordinary_user_runs_a_server_as_themselves() {
    let Some(nobody) = User::from_name("nobody")
        .ok()
        .flatten()
        .filter(|_| is_root())
    else {
        skip(
            "an_ordinary_user_runs_a_server_as_themselves",
            "not root: every other test does it",
        );
        return;
    };
    let scratch = ServerDirectory::create();
    let uid = nobody.uid.as_raw();
    let data_dir = directory_of(&scratch, uid);
    let mut holder = Holder::start(&data_dir, &scratch, Some(uid));
    let Said::Ready { pid, url } = holder.said().await else {
        panic!("its server starts");
    };
    execute(&url, "CREATE TABLE t (n int)").await;
    let owner = fs::metadata(format!("/proc/{pid}"))
        .expect("its process")
        .uid();
    assert_eq!(owner, uid);
    holder.end().await;
    gone(pid).await;
    // Root takes the same cluster over, and leaves it with its owner.
    let server = LocalServer::start(throwaway(&data_dir))
        .await
        .expect("root may use it");
    execute(&server.url(), "SELECT FROM t").await;
    let process = fs::metadata(format!("/proc/{}", pid_of(&server))).expect("its process");
    assert_eq!(process.uid(), uid);
    server.stop().await;
}

#[tokio::test]
async fn a_user_without_a_name_is_told_what_to_do() {
    if !is_root() {
        skip(
            "a_user_without_a_name_is_told_what_to_do",
            "only root can become one",
        );
        return;
    }
    let scratch = ServerDirectory::create();
    let data_dir = directory_of(&scratch, 54_321);
    let mut holder = Holder::start(&data_dir, &scratch, Some(54_321));
    let Said::Refused(error) = holder.said().await else {
        panic!("initdb would have refused");
    };
    assert!(
        error.contains("54321") && error.contains("DATABASE_URL"),
        "{error}"
    );
    holder.end().await;
}

#[tokio::test]
async fn another_users_cluster_is_refused_to_an_ordinary_user() {
    let Some(nobody) = User::from_name("nobody")
        .ok()
        .flatten()
        .filter(|_| is_root())
    else {
        skip(
            "another_users_cluster_is_refused_to_an_ordinary_user",
            "it needs two users",
        );
        return;
    };
    let scratch = ServerDirectory::create();
    let uid = nobody.uid.as_raw();
    let data_dir = directory_of(&scratch, uid);
    fs::create_dir(data_dir.join("postgres")).expect("root's directory");
    let mut holder = Holder::start(&data_dir, &scratch, Some(uid));
    let Said::Refused(error) = holder.said().await else {
        panic!("it is root's");
    };
    assert!(error.contains("belongs to uid 0"), "{error}");
    holder.end().await;
}

#[tokio::test]
async fn root_is_not_taken_as_the_databases_account() {
    let directory = ServerDirectory::create();
    let with = |user: &str| LocalServerConfig {
        user: Some(user.to_owned()),
        ..throwaway(&directory.path)
    };
    let root = LocalServer::start(with("root")).await.expect_err("refused");
    let none = LocalServer::start(with("no-such-account"))
        .await
        .expect_err("refused");
    if is_root() {
        assert!(matches!(root, LocalServerError::RootAccount), "{root}");
        assert!(none.to_string().contains("useradd"), "{none}");
    } else {
        assert!(
            matches!(root, LocalServerError::CannotSwitch { .. }),
            "{root}"
        );
        assert!(
            matches!(none, LocalServerError::CannotSwitch { .. }),
            "{none}"
        );
    }
}
