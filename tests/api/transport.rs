//! What stands between callers and the service: TLS, and browsers with pages of other sites.

use reqwest::Method;
use serde_json::Value;

use crate::service::{Answer, TestService, digits, http_client};

const ELSEWHERE: &str = "https://dashboard.example";

async fn preflight(service: &TestService, origin: &str) -> Answer {
    Answer::of(
        service
            .http
            .request(Method::OPTIONS, format!("{}/v1/studies", service.base))
            .header("origin", origin)
            .header("access-control-request-method", "POST")
            .header(
                "access-control-request-headers",
                "authorization,content-type,idempotency-key",
            ),
    )
    .await
}

async fn post_from(service: &TestService, origin: &str) -> Answer {
    Answer::of(
        service
            .http
            .post(format!("{}/v1/studies", service.base))
            .header("origin", origin)
            .header("sec-fetch-site", "cross-site")
            .json(&digits()),
    )
    .await
}

fn says_anything_of_origins(answer: &Answer) -> bool {
    answer
        .headers
        .keys()
        .any(|name| name.as_str().starts_with("access-control-"))
}

#[tokio::test]
async fn pages_of_other_sites_get_nothing_unless_a_setting_names_them() {
    let service = TestService::without_workers().await;
    let asked = preflight(&service, ELSEWHERE).await;
    assert_eq!(asked.status, 405);
    assert!(!says_anything_of_origins(&asked), "{asked:?}");
    post_from(&service, ELSEWHERE)
        .await
        .problem(403, "cross_site");
    let read = service.http.get(format!("{}/v1/studies", service.base));
    let read = Answer::of(read.header("origin", ELSEWHERE)).await;
    assert!(!says_anything_of_origins(&read), "{read:?}");
    service.stop().await;

    let service = TestService::start(|settings| {
        settings.workers = 0;
        settings.api.cors_origins = vec![ELSEWHERE.to_owned()];
    })
    .await;
    let asked = preflight(&service, ELSEWHERE).await;
    assert_eq!(asked.status, 200, "{asked:?}");
    assert_eq!(asked.header("access-control-allow-origin"), Some(ELSEWHERE));
    assert_eq!(asked.header("access-control-allow-credentials"), None);
    let made = post_from(&service, ELSEWHERE).await;
    assert_eq!(made.status, 202, "{made:?}");
    assert_eq!(made.header("access-control-allow-origin"), Some(ELSEWHERE));
    let shown = made.header("access-control-expose-headers").expect("some");
    for header in ["etag", "location", "retry-after", "x-request-id"] {
        assert!(shown.contains(header), "{shown}");
    }
    for other in [
        "https://dashboard.example.attacker.example",
        "http://dashboard.example",
        "null",
    ] {
        let asked = preflight(&service, other).await;
        assert_eq!(
            asked.header("access-control-allow-origin"),
            None,
            "{asked:?}"
        );
        let refused = post_from(&service, other).await;
        assert!(refused.status >= 400, "{refused:?}");
    }
    let list = service.get("/v1/studies").await.json();
    assert_eq!(list["items"].as_array().map(Vec::len), Some(1));
}

#[tokio::test]
async fn with_a_certificate_the_service_speaks_tls_and_nothing_else() {
    let folder = tempfile::tempdir().expect("a folder");
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate");
    let (certificate, key) = (folder.path().join("tls.crt"), folder.path().join("tls.key"));
    std::fs::write(&certificate, made.cert.pem()).expect("written");
    std::fs::write(&key, made.signing_key.serialize_pem()).expect("written");
    let service = TestService::start(|settings| {
        settings.workers = 0;
        settings.api.tls_certificate_file = Some(certificate.clone());
        settings.api.tls_key_file = Some(key.clone());
    })
    .await;
    let port = service.base.rsplit_once(':').expect("a port").1;
    let url = format!("https://localhost:{port}/v1/studies");
    // The client's own set of TLS is made ready by the first.
    let stranger = http_client().get(&url).send().await;
    assert!(stranger.is_err(), "nobody vouches for it: {stranger:?}");
    let root = reqwest::Certificate::from_pem(made.cert.pem().as_bytes()).expect("PEM");
    let friend = reqwest::Client::builder().add_root_certificate(root);
    let friend = friend.build().expect("a client");
    let answer = Answer::of(friend.post(&url).json(&digits())).await;
    assert_eq!(answer.status, 202, "{answer:?}");
    let age = answer.header("strict-transport-security").expect("HSTS");
    assert!(age.starts_with("max-age="), "{age}");
    let list: Value = Answer::of(friend.get(&url)).await.json();
    assert_eq!(list["items"].as_array().map(Vec::len), Some(1));
    let plain = service
        .http
        .get(format!("{}/v1/studies", service.base))
        .send()
        .await;
    assert!(plain.is_err(), "{plain:?}");

    // The command line, with the file that it is to trust.
    let output = tokio::process::Command::new(env!("CARGO_BIN_EXE_trialhead"))
        .args(["study", "list", "--output", "json", "--server"])
        .arg(format!("https://localhost:{port}"))
        .arg("--ca-file")
        .arg(&certificate)
        .output()
        .await
        .expect("runs");
    assert!(output.status.success(), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stdout).contains("digits"));
}

#[tokio::test]
async fn every_answer_tells_browsers_to_take_it_for_what_it_is() {
    let service = TestService::without_workers().await;
    let unknown = format!("/v1/studies/{}", uuid::Uuid::now_v7());
    for path in [
        "/healthz",
        "/v1/studies",
        &unknown,
        "/nowhere",
        "/docs/",
        "/openapi.json",
        "/metrics",
    ] {
        let answer = service.get(path).await;
        for (name, value) in [
            ("x-content-type-options", "nosniff"),
            ("x-frame-options", "DENY"),
            ("referrer-policy", "no-referrer"),
        ] {
            assert_eq!(answer.header(name), Some(value), "{path}");
        }
        assert!(answer.header("content-security-policy").is_some(), "{path}");
        assert!(answer.header("x-request-id").is_some(), "{path}");
        assert_eq!(answer.header("server"), None, "{path}");
        // Not over plain HTTP, where it means nothing.
        assert_eq!(answer.header("strict-transport-security"), None, "{path}");
    }
}
