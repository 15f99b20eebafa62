//! Pools, listening and migrations.

use std::collections::HashSet;
use std::time::Duration;

use diesel::sql_types::Text;
use diesel_async::{RunQueryDsl, SimpleAsyncConnection};
use tokio::time::timeout;
use trialhead::store::StoreError;
use trialhead::store::connection::{
    Database, DatabaseConfig, ListenEvent, Listener, MigrateError, MigrateMode, migrate,
    migrations_ready,
};
use trialhead::store::local_server::{LocalServer, ServerState};

use crate::postgres::{ServerDirectory, TestDatabase, execute, throwaway};
use crate::processes::{PATIENCE, kill_hard, pid_of, until};

#[derive(diesel::QueryableByName)]
struct Row {
    #[diesel(sql_type = Text)]
    text: String,
}

async fn texts(database: &Database, query: &str) -> Result<Vec<String>, StoreError> {
    let mut connection = database.connection().await?;
    let rows: Vec<Row> = diesel::sql_query(query)
        .get_results(&mut connection)
        .await?;
    Ok(rows.into_iter().map(|row| row.text).collect())
}

#[tokio::test]
async fn ten_servers_migrate_at_once_and_each_migration_runs_once() {
    let test = TestDatabase::create_empty().await;
    let before = migrations_ready(test.database()).await.expect("an answer");
    assert!(
        !before.is_ready(),
        "an empty database lacks every migration"
    );
    let servers = (0..10).map(|_| {
        let database = Database::open(&DatabaseConfig::new(test.url())).expect("a good address");
        tokio::spawn(async move { migrate(&database, MigrateMode::Auto).await })
    });
    for server in futures::future::join_all(servers).await {
        let status = server.expect("no panic").expect("every one succeeds");
        assert!(status.is_ready());
    }
    let query = "SELECT version::text AS text FROM __diesel_schema_migrations";
    let applied = texts(test.database(), query).await.expect("rows");
    let distinct: HashSet<_> = applied.iter().cloned().collect();
    assert_eq!(applied.len(), distinct.len());
    assert_eq!(distinct, before.missing.into_iter().collect());
}

#[tokio::test]
async fn check_lists_what_is_missing_and_changes_nothing() {
    let test = TestDatabase::create_empty().await;
    let expected = migrations_ready(test.database())
        .await
        .expect("an answer")
        .missing;
    let error = migrate(test.database(), MigrateMode::Check)
        .await
        .expect_err("it is behind");
    let MigrateError::Missing(missing) = &error else {
        panic!("{error}");
    };
    assert_eq!(missing, &expected);
    assert!(error.to_string().contains(&expected[0]), "{error}");
    let tables = "SELECT tablename::text AS text FROM pg_tables WHERE schemaname = 'public'";
    assert!(
        texts(test.database(), tables)
            .await
            .expect("rows")
            .is_empty()
    );
}

#[tokio::test]
async fn a_database_that_a_newer_server_migrated_is_ready() {
    let test = TestDatabase::create().await;
    execute(
        test.url(),
        "INSERT INTO __diesel_schema_migrations (version) VALUES ('99991231000000')",
    )
    .await;
    for mode in [MigrateMode::Check, MigrateMode::Auto] {
        let status = migrate(test.database(), mode).await.expect("it is ready");
        assert_eq!(status.newer, ["99991231000000"]);
    }
}

#[tokio::test]
async fn no_server_is_unavailable_and_shows_no_password() {
    let free = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = free.local_addr().expect("its number").port();
    drop(free);
    let url = format!("postgres://user:hunter2@127.0.0.1:{port}/db");
    let database = Database::open(&DatabaseConfig::new(url)).expect("a good address");
    let error = database.connection().await.err().expect("nobody listens");
    assert!(matches!(error, StoreError::Unavailable(_)), "{error}");
    let text = format!("{error} {error:?}");
    assert!(
        text.contains("refused") && !text.contains("hunter2"),
        "{text}"
    );
}

#[tokio::test]
async fn a_server_that_never_answers_is_unavailable_in_time() {
    let silent = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = silent.local_addr().expect("its number").port();
    let database = Database::open(&DatabaseConfig {
        connect_timeout: Duration::from_millis(100),
        ..DatabaseConfig::new(format!("host=127.0.0.1 port={port} user=u"))
    })
    .expect("a good address");
    let error = timeout(PATIENCE, database.connection())
        .await
        .expect("in time")
        .err()
        .expect("no connection");
    assert!(matches!(error, StoreError::Unavailable(_)), "{error}");
}

#[tokio::test]
async fn a_slow_statement_is_counted_and_others_are_timed() {
    let test = TestDatabase::create().await;
    let database = Database::open(&DatabaseConfig {
        slow_statement: Duration::from_millis(200),
        ..DatabaseConfig::new(test.url())
    })
    .expect("a good address");
    let mut conn = database.connection().await.expect("a connection");
    let timings = database.timings();
    for (statement, slow) in [
        ("SELECT 1", 0),
        ("SELECT pg_sleep(0.3)", 1),
        ("SELECT 2", 1),
    ] {
        let before = timings.statements.get_sample_count();
        diesel::sql_query(statement)
            .execute(&mut conn)
            .await
            .expect("runs");
        assert_eq!(timings.statements.get_sample_count(), before + 1);
        assert_eq!(timings.slow.get(), slow, "{statement}");
    }
    assert!(timings.statements.get_sample_sum() >= 0.3);
    assert_eq!(timings.waits.get_sample_count(), 1);
}

#[tokio::test]
async fn a_pool_in_full_use_is_unavailable_until_one_comes_back() {
    let test = TestDatabase::create().await;
    let database = Database::open(&DatabaseConfig {
        pool_size: 1,
        acquire_timeout: Duration::from_millis(200),
        ..DatabaseConfig::new(test.url())
    })
    .expect("a good address");
    let held = database.connection().await.expect("the first");
    let error = database
        .connection()
        .await
        .err()
        .expect("there is only one");
    assert!(matches!(error, StoreError::Unavailable(_)), "{error}");
    let in_use = database.pool_use();
    assert_eq!((in_use.max_size, in_use.size, in_use.available), (1, 1, 0));
    drop(held);
    database.ping().await.expect("it came back");
}

#[tokio::test]
async fn a_transaction_left_open_does_not_come_back_to_the_pool() {
    let test = TestDatabase::create().await;
    let database = Database::open(&DatabaseConfig {
        pool_size: 1,
        ..DatabaseConfig::new(test.url())
    })
    .expect("a good address");
    let mut connection = database.connection().await.expect("a connection");
    let cancelled = async {
        use diesel_async::AsyncConnection;
        connection
            .transaction::<(), diesel::result::Error, _>(async |connection| {
                connection
                    .batch_execute("CREATE TABLE half (n int)")
                    .await?;
                futures::future::pending().await
            })
            .await
    };
    // As when a client hangs up in the middle of a request.
    assert!(
        timeout(Duration::from_millis(300), cancelled)
            .await
            .is_err()
    );
    drop(connection);
    let query = "SELECT coalesce(to_regclass('half')::text, 'none') AS text";
    assert_eq!(texts(&database, query).await.expect("rows"), ["none"]);
}

#[tokio::test]
async fn the_session_is_set_up_as_configured() {
    let test = TestDatabase::create().await;
    let database = Database::open(&DatabaseConfig {
        statement_timeout: Duration::from_millis(50),
        application_name: "somebody".to_owned(),
        ..DatabaseConfig::new(test.url())
    })
    .expect("a good address");
    let name = "SELECT current_setting('application_name') AS text";
    assert_eq!(texts(&database, name).await.expect("rows"), ["somebody"]);
    let error = texts(&database, "SELECT pg_sleep(60)::text AS text")
        .await
        .expect_err("it takes too long");
    assert!(error.to_string().contains("statement timeout"), "{error}");
}

async fn heard(listener: &mut Listener) -> ListenEvent {
    timeout(PATIENCE, listener.next())
        .await
        .expect("something is heard")
}

#[tokio::test]
async fn a_listener_hears_reconnects_and_says_so() {
    let test = TestDatabase::create().await;
    let mut listener = test.database().listen(&["one", "Two \"quoted\""]);
    assert_eq!(heard(&mut listener).await, ListenEvent::Rescan);
    let notify =
        r#"SELECT pg_notify('one', 'a'), pg_notify('Two "quoted"', 'b'), pg_notify('three', 'c')"#;
    let said = |channel: &str, payload: &str| ListenEvent::Notification {
        channel: channel.to_owned(),
        payload: payload.to_owned(),
    };
    execute(test.url(), notify).await;
    assert_eq!(heard(&mut listener).await, said("one", "a"));
    assert_eq!(heard(&mut listener).await, said("Two \"quoted\"", "b"));
    execute(
        test.url(),
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE 'LISTEN%'",
    )
    .await;
    assert_eq!(heard(&mut listener).await, ListenEvent::Rescan);
    execute(test.url(), notify).await;
    assert_eq!(heard(&mut listener).await, said("one", "a"));
}

#[tokio::test]
async fn a_pool_and_a_listener_survive_the_servers_restart() {
    let directory = ServerDirectory::create();
    let server = LocalServer::start(throwaway(&directory.path))
        .await
        .expect("it starts");
    let database = Database::open(&DatabaseConfig::new(server.url())).expect("a good address");
    let mut listener = database.listen(&["any"]);
    assert_eq!(heard(&mut listener).await, ListenEvent::Rescan);
    let held: Vec<_> = futures::future::join_all((0..4).map(|_| database.connection())).await;
    assert!(held.iter().all(Result::is_ok));
    drop(held);
    let mut state = server.state();
    kill_hard(pid_of(&server));
    until(&mut state, |state| {
        matches!(state, ServerState::Restarting { .. })
    })
    .await;
    until(&mut state, |state| {
        matches!(state, ServerState::Ready { .. })
    })
    .await;
    // Also shows that every connection of before has been noticed as closed.
    assert_eq!(heard(&mut listener).await, ListenEvent::Rescan);
    for _ in 0..5 {
        database.ping().await.expect("the pool recovers");
    }
    server.stop().await;
}

#[tokio::test]
async fn tests_get_databases_of_their_own() {
    let (one, other) = tokio::join!(TestDatabase::create(), TestDatabase::create());
    one.database()
        .connection()
        .await
        .expect("a connection")
        .batch_execute("CREATE TABLE only_here (n int)")
        .await
        .expect("a table");
    let query = "SELECT coalesce(to_regclass('only_here')::text, 'none') AS text";
    assert_eq!(
        texts(other.database(), query).await.expect("rows"),
        ["none"]
    );
}
