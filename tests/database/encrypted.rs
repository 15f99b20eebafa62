//! TLS against a real Postgres with certificates made for the test.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::{MetadataExt, PermissionsExt, lchown};
use std::path::{Path, PathBuf};

use diesel::sql_types::Bool;
use diesel_async::RunQueryDsl;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use trialhead::store::connection::{Database, DatabaseConfig, ListenEvent};
use trialhead::store::local_server::{LocalServer, LocalServerConfig};

use crate::postgres::{ServerDirectory, execute, throwaway};

struct Authority {
    params: CertificateParams,
    key: KeyPair,
    pem: String,
}

impl Authority {
    fn create(name: &str) -> Self {
        let mut params = CertificateParams::new(Vec::new()).expect("parameters");
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("a key");
        let pem = params.self_signed(&key).expect("a certificate").pem();
        Self { params, key, pem }
    }

    /// A certificate for `localhost`, and its key.
    fn issue(&self) -> (String, String) {
        let key = KeyPair::generate().expect("a key");
        let issuer = Issuer::from_params(&self.params, &self.key);
        let certificate = CertificateParams::new(vec!["localhost".to_owned()])
            .expect("parameters")
            .signed_by(&key, &issuer)
            .expect("a certificate");
        (certificate.pem(), key.serialize_pem())
    }
}

struct Encrypted {
    server: LocalServer,
    port: u16,
    directory: ServerDirectory,
}

impl Encrypted {
    async fn start(certificate: &str, key: &str) -> Self {
        let directory = ServerDirectory::create();
        // The first start makes the cluster, and shows whose it is.
        let plain = LocalServer::start(throwaway(&directory.path))
            .await
            .expect("it starts");
        plain.stop().await;
        let owner = fs::metadata(directory.path.join("postgres")).expect("its directory");
        let put = |name: &str, text: &str| {
            let path = directory.path.join(name);
            fs::write(&path, text).expect("a file");
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("its mode");
            lchown(&path, Some(owner.uid()), Some(owner.gid())).expect("its owner");
            path.display().to_string()
        };
        let rules = "local all all trust\n\
                     hostnossl postgres all 127.0.0.1/32 scram-sha-256\n\
                     hostssl all all 127.0.0.1/32 scram-sha-256\n";
        let free = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = free.local_addr().expect("its number").port();
        let parameters = [
            ("listen_addresses", "127.0.0.1".to_owned()),
            ("ssl", "on".to_owned()),
            ("ssl_cert_file", put("server.crt", certificate)),
            ("ssl_key_file", put("server.key", key)),
            ("hba_file", put("hba.conf", rules)),
        ];
        drop(free);
        let server = LocalServer::start(LocalServerConfig {
            port,
            parameters: parameters
                .map(|(name, value)| (name.to_owned(), value))
                .to_vec(),
            ..throwaway(&directory.path)
        })
        .await
        .expect("it starts with TLS");
        execute(&server.url(), "ALTER ROLE trialhead PASSWORD 'hunter2'").await;
        Self {
            server,
            port,
            directory,
        }
    }

    fn put(&self, name: &str, text: &str) -> PathBuf {
        let path = self.directory.path.join(name);
        fs::write(&path, text).expect("a file");
        path
    }

    fn url(&self, host: &str, database: &str, options: &str) -> String {
        format!(
            "postgres://trialhead:hunter2@{host}:{}/{database}?{options}",
            self.port
        )
    }

    /// Whether a connection is encrypted, or why there is none.
    async fn encrypted(&self, host: &str, options: &str) -> Result<bool, String> {
        encrypted(&self.url(host, "trialhead", options)).await
    }
}

#[derive(diesel::QueryableByName)]
struct Ssl {
    #[diesel(sql_type = Bool)]
    ssl: bool,
}

async fn encrypted(url: &str) -> Result<bool, String> {
    let database = Database::open(&DatabaseConfig::new(url)).map_err(|error| error.to_string())?;
    let mut connection = database.connection().await.map_err(|error| {
        let shown = format!("{error:?}");
        assert!(!shown.contains("hunter2"), "{shown}");
        error.to_string()
    })?;
    let row: Ssl = diesel::sql_query("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()")
        .get_result(&mut connection)
        .await
        .map_err(|error| error.to_string())?;
    Ok(row.ssl)
}

fn root(path: &Path) -> String {
    format!("sslrootcert={}", path.display())
}

#[tokio::test]
async fn every_mode_proves_what_it_promises() {
    let authority = Authority::create("Authority of the test");
    let (certificate, key) = authority.issue();
    let server = Encrypted::start(&certificate, &key).await;
    let known = root(&server.put("root.crt", &authority.pem));
    // Of the same name, so that only the signature tells them apart.
    let stranger = Authority::create("Authority of the test");
    let unknown = root(&server.put("other.crt", &stranger.pem));

    // The certificate is for `localhost`, and says nothing about 127.0.0.1.
    for (host, mode, roots) in [
        ("localhost", "sslmode=verify-full", &known),
        ("localhost", "sslmode=verify-ca", &known),
        ("127.0.0.1", "sslmode=verify-ca", &known),
        ("127.0.0.1", "sslmode=require", &known),
        ("127.0.0.1", "sslmode=require", &String::new()),
        ("127.0.0.1", "sslmode=prefer", &String::new()),
        ("127.0.0.1", "", &String::new()),
    ] {
        let result = server.encrypted(host, &format!("{mode}&{roots}")).await;
        assert_eq!(result, Ok(true), "{host} {mode} {roots}");
    }
    for (host, mode, roots, why) in [
        (
            "127.0.0.1",
            "sslmode=verify-full",
            &known,
            "not valid for name",
        ),
        ("localhost", "sslmode=verify-full", &unknown, "certificate"),
        ("localhost", "sslmode=verify-ca", &unknown, "certificate"),
        ("localhost", "sslmode=require", &unknown, "certificate"),
        ("localhost", "sslmode=disable", &known, "no encryption"),
    ] {
        let error = server
            .encrypted(host, &format!("{mode}&{roots}"))
            .await
            .expect_err(mode);
        assert!(error.contains(why), "{mode} {roots}: {error}");
    }

    let plain = encrypted(&server.url("127.0.0.1", "postgres", "sslmode=disable")).await;
    assert_eq!(plain, Ok(false));
    let keywords = format!(
        "host=localhost port={} user=trialhead password=hunter2 dbname=trialhead sslmode=verify-full {known}",
        server.port
    );
    assert_eq!(encrypted(&keywords).await, Ok(true));

    let wrong = server
        .url("localhost", "trialhead", "sslmode=require")
        .replace("hunter2", "hunter3");
    let error = encrypted(&wrong).await.expect_err("the password is wrong");
    assert!(error.contains("password authentication failed"), "{error}");

    let full = server.url(
        "localhost",
        "trialhead",
        &format!("sslmode=verify-full&{known}"),
    );
    let database = Database::open(&DatabaseConfig::new(full)).expect("a good address");
    let mut listener = database.listen(&["over_tls"]);
    assert_eq!(listener.next().await, ListenEvent::Rescan);
    execute(&server.server.url(), "NOTIFY over_tls, 'heard'").await;
    assert_eq!(
        listener.next().await,
        ListenEvent::Notification {
            channel: "over_tls".to_owned(),
            payload: "heard".to_owned()
        }
    );
    server.server.stop().await;
}

#[tokio::test]
async fn a_self_signed_certificate_is_its_own_root() {
    let mut params = CertificateParams::new(vec!["localhost".to_owned()]).expect("parameters");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().expect("a key");
    let certificate = params.self_signed(&key).expect("a certificate").pem();
    let server = Encrypted::start(&certificate, &key.serialize_pem()).await;
    let own = root(&server.put("root.crt", &certificate));
    let other = root(&server.put("other.crt", &Authority::create("Other").pem));
    let full = |roots: &str| format!("sslmode=verify-full&{roots}");
    assert_eq!(server.encrypted("localhost", &full(&own)).await, Ok(true));
    assert!(server.encrypted("127.0.0.1", &full(&own)).await.is_err());
    assert!(server.encrypted("localhost", &full(&other)).await.is_err());
    server.server.stop().await;
}

#[test]
fn roots_that_are_missing_or_unreadable_are_named() {
    let open = |options: &str| {
        Database::open(&DatabaseConfig::new(format!("postgres://h/db?{options}")))
            .expect_err("it cannot work")
            .to_string()
    };
    let error = open("sslmode=verify-full&sslrootcert=/no/such/file");
    assert!(error.contains("/no/such/file"), "{error}");
    let directory = ServerDirectory::create();
    let empty = directory.path.join("empty.crt");
    fs::write(&empty, "nothing").expect("a file");
    let error = open(&format!("sslmode=verify-ca&{}", root(&empty)));
    assert!(error.contains("no certificate"), "{error}");
}
