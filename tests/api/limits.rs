//! Limits on what one caller may ask of the service, and what it is told then.

use std::time::Duration;

use futures::StreamExt;
use serde_json::json;
use trialhead::access::Scope;

use crate::service::{Answer, TestService, digits};

fn wait_of(answer: &Answer) -> u64 {
    answer
        .header("retry-after")
        .and_then(|secs| secs.parse().ok())
        .unwrap_or_else(|| panic!("no Retry-After: {answer:?}"))
}

#[tokio::test]
async fn who_sends_too_fast_is_told_when_to_go_on_and_nobody_else_is() {
    let (service, _) = TestService::guarded(|settings| {
        settings.api.requests_per_sec = 1.0;
        settings.api.request_burst = 5;
    })
    .await;
    let eager = service
        .token("eager", &[Scope::Write, Scope::Read], None)
        .await;
    let calm = service
        .token("calm", &[Scope::Read, Scope::Work], None)
        .await;
    let get = async |path: &str, token: &str| {
        Answer::of(
            service
                .http
                .get(format!("{}{path}", service.base))
                .bearer_auth(token),
        )
        .await
    };
    let mut answers = Vec::new();
    for _ in 0..10 {
        answers.push(get("/v1/studies", &eager).await);
    }
    let refused: Vec<&Answer> = answers.iter().filter(|it| it.status != 200).collect();
    assert!((3..=5).contains(&refused.len()), "{answers:?}");
    for answer in &refused {
        let problem = answer.problem(429, "too_many_requests");
        assert!(problem["detail"].to_string().contains("Retry-After"));
    }
    // A write that was refused so has changed nothing, and goes through after what it was told to wait.
    let post = async || {
        let body = service.http.post(format!("{}/v1/studies", service.base));
        Answer::of(body.bearer_auth(&eager).json(&digits())).await
    };
    let first = post().await;
    first.problem(429, "too_many_requests");
    tokio::time::sleep(Duration::from_secs(wait_of(&first))).await;
    assert_eq!(post().await.status, 202);

    let metrics = get("/metrics", &calm).await.text;
    let counted = metrics
        .lines()
        .find(|line| {
            line.starts_with("trialhead_refused_requests_total{code=\"too_many_requests\"}")
        })
        .and_then(|line| line.rsplit_once(' ')?.1.parse::<usize>().ok());
    assert_eq!(counted, Some(refused.len() + 1), "{metrics}");
    let of_another = get("/v1/studies", &calm).await;
    assert_eq!(of_another.status, 200);
    assert_eq!(of_another.json()["items"].as_array().map(Vec::len), Some(1));
    // Health is asked by machines, and leases are not to be lost.
    for _ in 0..10 {
        assert_eq!(service.get("/healthz").await.status, 200);
        let heartbeat = service
            .http
            .post(format!(
                "{}/v1/leases/{}/heartbeat",
                service.base,
                uuid::Uuid::now_v7()
            ))
            .bearer_auth(&calm)
            .json(&json!({"probe_id": uuid::Uuid::now_v7(), "attempt": 1, "measurements": []}));
        assert_ne!(Answer::of(heartbeat).await.status, 429);
    }
}

#[tokio::test]
async fn who_has_too_much_under_way_waits_for_it_to_end() {
    let service = TestService::start(|settings| {
        settings.workers = 0;
        settings.api.max_requests_at_once = 2;
    })
    .await;
    // Uploads whose bodies do not come.
    let upload = || {
        let (sender, body) = futures::channel::mpsc::unbounded::<Result<Vec<u8>, std::io::Error>>();
        let upload = service
            .http
            .post(format!("{}/v1/datasets?name=slow&format=csv", service.base))
            .header("content-type", "text/csv")
            .body(reqwest::Body::wrap_stream(body.map(|part| part)));
        sender.unbounded_send(Ok(b"a,b\n".to_vec())).expect("sent");
        (sender, tokio::spawn(Answer::of(upload)))
    };
    let mut uploads = [upload(), upload()];
    let refused = loop {
        tokio::time::sleep(Duration::from_millis(20)).await;
        let answer = service.get("/v1/studies").await;
        if answer.status != 200 {
            break answer;
        }
        // One that came while this was being answered was one too many itself.
        for asked in &mut uploads {
            if asked.1.is_finished() {
                *asked = upload();
            }
        }
    };
    refused.problem(429, "too_many_at_once");
    assert_eq!(wait_of(&refused), 1);
    // Requests that wait on purpose have a limit of their own.
    let none = format!("/v1/studies/{}?wait_secs=0.1", uuid::Uuid::now_v7());
    assert_eq!(service.get(&none).await.status, 404);
    for (sender, upload) in uploads {
        drop(sender);
        let _ended = upload.await.expect("an answer");
    }
    assert_eq!(service.get("/v1/studies").await.status, 200);
}

/// Everything that a connection says until it is closed.
async fn said(service: &TestService, request: &str) -> String {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let address = service.base.trim_start_matches("http://");
    let mut stream = tokio::net::TcpStream::connect(address)
        .await
        .expect("connected");
    stream.write_all(request.as_bytes()).await.expect("sent");
    let mut answer = String::new();
    let all = stream.read_to_string(&mut answer);
    tokio::time::timeout(Duration::from_secs(20), all)
        .await
        .expect("closed by the service")
        .expect("text");
    answer
}

#[tokio::test]
async fn a_body_that_does_not_come_is_given_up_and_its_place_is_free_again() {
    let service = TestService::start(|settings| {
        settings.workers = 0;
        settings.api.request_timeout_secs = 2;
        settings.datasets.max_uploads = 1;
    })
    .await;
    let begun = |path: &str, kind: &str, body: &str| {
        format!(
            "POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {kind}\r\nContent-Length: 100\r\n\r\n{body}"
        )
    };
    let upload = "/v1/datasets?name=half&format=csv";
    let chunked = "POST /v1/studies HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{\"nam\r\n";
    let requests = [
        chunked.to_owned(),
        begun("/v1/studies", "application/json", "{\"name\": \"ha"),
        begun("/v1/studies", "application/json", ""),
        begun(upload, "text/csv", "a,label\n1,x\n"),
    ];
    for request in &requests {
        let answer = said(&service, request).await;
        assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
        assert!(
            answer.to_lowercase().contains("connection: close"),
            "{answer}"
        );
        let (_, body) = answer.split_once("\r\n\r\n").expect("a body");
        let problem: serde_json::Value = serde_json::from_str(body).expect("JSON");
        assert_eq!(problem["code"], "request_timeout", "{answer}");
    }
    // While one upload stands still another is one too many; then its place is free, and nothing of it was kept.
    let (held, refused) = tokio::join!(said(&service, &requests[3]), async {
        // No data set either, for as long as the first is not seen.
        loop {
            let url = format!("{}{upload}", service.base);
            let answer = Answer::of(service.http.post(url).body("a,label\n")).await;
            if answer.status != 422 {
                break answer;
            }
        }
    });
    refused.problem(429, "too_many_uploads");
    assert!(wait_of(&refused) >= 1);
    assert!(held.starts_with("HTTP/1.1 408 "), "{held}");
    assert_eq!(
        service.get("/v1/datasets").await.json()["items"],
        json!([]),
        "half a file is none"
    );
    let rows: String = (0..40)
        .map(|row| format!("{row},{}\n", ["x", "y"][row % 2]))
        .collect();
    let url = format!("{}{upload}&target=label", service.base);
    let whole = Answer::of(service.http.post(url).body(format!("a,label\n{rows}"))).await;
    assert_eq!(whole.status, 201, "{}", whole.text);
    // A slow body is no silent one: it takes longer than the limit and comes whole.
    let parts = serde_json::to_string(&digits()).expect("JSON");
    let parts: Vec<Result<String, std::io::Error>> = parts
        .as_bytes()
        .chunks(parts.len().div_ceil(6))
        .map(|part| Ok(String::from_utf8_lossy(part).into_owned()))
        .collect();
    let slowly = futures::stream::iter(parts).then(async |part| {
        tokio::time::sleep(Duration::from_millis(400)).await;
        part
    });
    let post = service
        .http
        .post(format!("{}/v1/studies", service.base))
        .header("content-type", "application/json")
        .body(reqwest::Body::wrap_stream(Box::pin(slowly)));
    assert_eq!(Answer::of(post).await.status, 202);
}
