//! Uploads: what becomes of them, what is refused, and that nothing half-stored stays behind.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use crate::service::{Answer, TestService};

const IMAGES: &[u8] = include_bytes!("../data/images.npz");
const TABLE: &[u8] = include_bytes!("../data/table.parquet");
const OTHER_TYPES: &[u8] = include_bytes!("../data/other_types.npz");
const PICKLED: &[u8] = include_bytes!("../data/pickled.npz");
const FORTRAN: &[u8] = include_bytes!("../data/fortran.npz");

async fn upload(service: &TestService, query: &str, file: impl Into<Vec<u8>>) -> Answer {
    let url = format!("{}/v1/datasets?{query}", service.base);
    Answer::of(service.http.post(url).body(file.into())).await
}

async fn uploaded(service: &TestService, query: &str, file: impl Into<Vec<u8>>) -> Value {
    let answer = upload(service, query, file).await;
    assert_eq!(answer.status, 201, "{}", answer.text);
    let dataset = answer.json();
    let path = answer.header("location").expect("a Location");
    assert_eq!(service.get(path).await.json(), dataset);
    dataset
}

/// A table of two clusters with a missing value, a label in words and a column of no use.
fn csv(rows: usize) -> String {
    let mut text = String::from("id,a,b,label\n");
    for row in 0..rows {
        let side = if row % 2 == 0 { 1.0 } else { -1.0 };
        let jitter = (row % 7) as f64 / 10.0;
        let b = if row == 5 {
            String::new()
        } else {
            (side * 2.0 - jitter).to_string()
        };
        let name = if row % 2 == 0 {
            "up"
        } else {
            "down, \"really\""
        };
        let name = name.replace('"', "\"\"");
        text.push_str(&format!("{row},{},{b},\"{name}\"\n", side + jitter));
    }
    text
}

/// Files that the service keeps for data sets: contents, and those being put together.
fn kept(service: &TestService) -> (usize, usize) {
    let count = |folder: &str| {
        let path = service.data_dir().join("datasets").join(folder);
        fs::read_dir(Path::new(&path)).expect("a folder").count()
    };
    (count("content"), count("incoming"))
}

#[tokio::test]
async fn a_table_is_described_with_its_classes_their_priors_and_what_is_missing() {
    let service = TestService::without_workers().await;
    let dataset = uploaded(&service, "format=csv&name=up%20or%20down&drop=id", csv(50)).await;
    assert_eq!(dataset["name"], "up or down");
    assert_eq!(dataset["task"], "classification");
    assert_eq!(
        dataset["contents"],
        json!({
            "kind": "examples",
            "input": {"kind": "features", "width": 2},
            "target": {"kind": "classes", "count": 2},
            "training_examples": 40, "validation_examples": 10
        })
    );
    let description = &dataset["description"];
    assert_eq!(description["missing_values"], 1);
    let roles: Vec<(&str, &str, &str)> = description["columns"]
        .as_array()
        .expect("columns")
        .iter()
        .map(|column| {
            let text = |name: &str| column[name].as_str().expect("text");
            (text("name"), text("role"), text("dtype"))
        })
        .collect();
    assert_eq!(
        roles,
        [
            ("id", "dropped", "integer"),
            ("a", "input", "real"),
            ("b", "input", "real"),
            ("label", "target", "text")
        ]
    );
    let classes = description["classes"].as_array().expect("classes");
    assert_eq!(classes[0]["name"], "down, \"really\"");
    let total: f64 = classes
        .iter()
        .map(|class| class["prior"].as_f64().expect("a prior"))
        .sum();
    assert!((total - 1.0).abs() < 1e-12);
    let count = |field: &str| -> u64 {
        classes
            .iter()
            .map(|class| class[field].as_u64().expect("a count"))
            .sum()
    };
    assert_eq!(
        (count("training_examples"), count("validation_examples")),
        (40, 10)
    );
    assert_eq!(kept(&service), (1, 0));
}

#[tokio::test]
async fn archives_tables_and_texts_of_other_programs_are_read() {
    let service = TestService::without_workers().await;
    let images = uploaded(&service, "format=npz", IMAGES).await;
    assert_eq!(
        images["contents"],
        json!({
            "kind": "examples",
            "input": {"kind": "image", "channels": 3, "height": 6, "width": 6},
            "target": {"kind": "classes", "count": 2},
            "training_examples": 100, "validation_examples": 20
        })
    );
    assert_eq!(
        images["description"]["normalization"]
            .as_array()
            .map(Vec::len),
        Some(3)
    );
    let flat = uploaded(&service, "format=npz&layout=flat", IMAGES).await;
    assert_eq!(
        flat["contents"]["input"],
        json!({"kind": "features", "width": 108})
    );

    let table = uploaded(&service, "format=parquet&drop=note", TABLE).await;
    assert_eq!(table["task"], "regression");
    assert_eq!(table["contents"]["input"]["width"], 3);
    assert_eq!(table["description"]["missing_values"], 2);
    let height = &table["description"]["normalization"][0];
    let near = |value: &Value, expected: f64, within: f64| {
        let value = value.as_f64().expect("a number");
        assert!(
            (value - expected).abs() < within,
            "{value} is not near {expected}"
        );
    };
    near(&height["mean"], 170.0, 3.0);
    near(&height["deviation"], 10.0, 2.0);

    let other = uploaded(&service, "format=npz", OTHER_TYPES).await;
    let names: Vec<&Value> = other["description"]["classes"]
        .as_array()
        .expect("classes")
        .iter()
        .map(|class| &class["name"])
        .collect();
    assert_eq!(names, ["-1", "3"]);

    let text = uploaded(
        &service,
        "format=text&validation_fraction=0.25",
        "grüße ".repeat(100),
    )
    .await;
    assert_eq!(
        text["contents"],
        json!({"kind": "text", "vocabulary": 256, "training_tokens": 600, "validation_tokens": 200})
    );
    let characters = uploaded(
        &service,
        "format=text&vocabulary=%20egr%C3%BC%C3%9F",
        "grüße ".repeat(100),
    )
    .await;
    assert_eq!(characters["contents"]["vocabulary"], 6);
    assert_eq!(characters["contents"]["training_tokens"], 480);

    let list = service.get("/v1/datasets?page_size=4").await.json();
    assert_eq!(list["items"][0]["id"], characters["id"]);
    let token = list["next_page_token"].as_str().expect("more");
    let next = service
        .get(&format!("/v1/datasets?page_token={token}"))
        .await
        .json();
    assert_eq!(next["items"].as_array().map(Vec::len), Some(2));
}

#[tokio::test]
async fn every_bad_file_is_refused_with_what_is_wrong_and_where_and_nothing_stays() {
    let service = TestService::without_workers().await;
    let cut = |file: &[u8]| file[..file.len() / 2].to_vec();
    let with = |change: &dyn Fn(String) -> String| change(csv(20)).into_bytes();
    let table: Vec<(&str, Vec<u8>, &str)> = vec![
        ("format=csv", vec![], "the file is empty"),
        ("format=csv", b"a,b,y\n".to_vec(), "no row"),
        (
            "format=csv",
            b"a,b,c\n4,5,6\n".to_vec(),
            "no column is called target",
        ),
        (
            "format=csv&target=3",
            b"1,2,3\n4,5,6\n".to_vec(),
            "put a header line before it",
        ),
        ("format=csv", b"a,a,y\n1,2,3\n".to_vec(), "twice"),
        (
            "format=csv",
            b"a,y\n1,2\n1\n".to_vec(),
            "line 3: 1 values instead of 2",
        ),
        (
            "format=csv",
            b"a,y\n1,2\n\xff,3\n".to_vec(),
            "line 3: not UTF-8",
        ),
        ("format=csv", b"a,y\n1,x\n2,x\n".to_vec(), "only one value"),
        (
            "format=csv",
            b"a,y\n1,x\n2,\n".to_vec(),
            "line 3: the target \"y\" is missing",
        ),
        (
            "format=csv",
            b"a,y\n1,x\nred,z\n".to_vec(),
            "line 3: column \"a\" has \"red\"",
        ),
        (
            "format=csv&target=z",
            csv(9).into_bytes(),
            "there is no column \"z\"; there are id, a, b, label",
        ),
        (
            "format=csv&drop=z",
            csv(9).into_bytes(),
            "drop: there is no column \"z\"",
        ),
        (
            "format=csv&task=regression",
            csv(9).into_bytes(),
            "line 2: the target \"label\" is \"up\"",
        ),
        (
            "format=csv",
            with(&|text| text.replace("id,a", "id,")),
            "column 2 has no name",
        ),
        ("format=npz", PICKLED.to_vec(), "pickled"),
        ("format=npz", FORTRAN.to_vec(), "Fortran order"),
        ("format=npz", cut(IMAGES), "is the file complete?"),
        (
            "format=npz",
            b"PK\x03\x04 nothing".to_vec(),
            "the archive cannot be read",
        ),
        ("format=npz", csv(9).into_bytes(), "not an NPZ archive"),
        (
            "format=npz&target=labels",
            IMAGES.to_vec(),
            "target: there is no array \"labels\"; there are X",
        ),
        (
            "format=npz&layout=sequence",
            IMAGES.to_vec(),
            "layout: sequence needs the axes",
        ),
        (
            "format=npz&task=classification&target=X",
            IMAGES.to_vec(),
            "targets are one class or a list",
        ),
        (
            "format=parquet",
            TABLE.to_vec(),
            "column \"note\" has \"text\"",
        ),
        ("format=parquet", cut(TABLE), "not a readable Parquet file"),
        (
            "format=parquet",
            csv(9).into_bytes(),
            "not a readable Parquet file",
        ),
        ("format=text", IMAGES.to_vec(), "not UTF-8"),
        ("format=text", b"abc".to_vec(), "at least 4 tokens, has 3"),
        (
            "format=text&vocabulary=ab",
            b"abba cab".to_vec(),
            "byte 4: ' ' is not in the vocabulary",
        ),
        (
            "format=text&vocabulary=aa",
            b"aaaa".to_vec(),
            "'a' is given twice",
        ),
    ];
    for (query, file, expected) in table {
        let problem = upload(&service, query, file)
            .await
            .problem(422, "invalid_dataset");
        let detail = problem["detail"].as_str().expect("a detail");
        assert!(
            detail.contains(expected),
            "{query}: {detail} lacks {expected}"
        );
    }
    for (query, parameter) in [
        ("", "?format"),
        ("format=csv&validation_fraction=1", "?validation_fraction"),
        ("format=csv&name=", "?name"),
    ] {
        let problem = upload(&service, query, csv(9))
            .await
            .problem(422, "invalid_parameter");
        assert_eq!(problem["errors"][0]["pointer"], parameter);
    }
    upload(&service, "format=xls", csv(9))
        .await
        .problem(400, "malformed_request");
    assert_eq!(kept(&service), (0, 0));
    assert_eq!(service.get("/v1/datasets").await.json()["items"], json!([]));
}

#[tokio::test]
async fn limits_on_size_memory_and_expansion_hold() {
    let service = TestService::start(|settings| {
        settings.workers = 0;
        settings.datasets.max_upload_bytes = 200_000;
        settings.datasets.max_content_bytes = 100_000;
        settings.datasets.max_columns = 3;
    })
    .await;
    upload(&service, "format=text", vec![b'a'; 200_001])
        .await
        .problem(413, "body_too_large");
    // Without a length nothing is known before it has come.
    let endless =
        futures::stream::iter((0..30).map(|_| Ok::<_, std::io::Error>(vec![b'a'; 10_000])));
    let url = format!("{}/v1/datasets?format=text", service.base);
    let body = reqwest::Body::wrap_stream(endless);
    Answer::of(service.http.post(url).body(body))
        .await
        .problem(413, "body_too_large");
    let problem = upload(&service, "format=text", vec![b'a'; 150_000])
        .await
        .problem(422, "invalid_dataset");
    assert!(
        problem["detail"]
            .as_str()
            .is_some_and(|detail| detail.contains("max_content_bytes"))
    );
    let problem = upload(&service, "format=csv", csv(9))
        .await
        .problem(422, "invalid_dataset");
    assert!(
        problem["detail"]
            .as_str()
            .is_some_and(|detail| detail.contains("max_columns"))
    );
    assert_eq!(kept(&service), (0, 0));
}

#[tokio::test]
async fn the_same_file_is_stored_once_and_a_known_one_is_answered_without_its_body() {
    use base64::Engine as _;
    use sha2::Digest as _;
    let service = TestService::without_workers().await;
    let first = uploaded(&service, "format=csv&name=one&drop=id", csv(30)).await;
    let again = upload(&service, "format=csv&name=two&drop=id", csv(30)).await;
    assert_eq!(again.status, 200);
    assert_eq!(again.json(), first);
    // Read another way it is another data set.
    let other = uploaded(&service, "format=csv&name=three", csv(30)).await;
    assert_ne!(other["content_sha256"], first["content_sha256"]);

    let digest = |file: &str| {
        let hash = sha2::Sha256::digest(file.as_bytes());
        let encoded = base64::prelude::BASE64_STANDARD.encode(hash);
        format!("sha-256=:{encoded}:")
    };
    let announce = |digest: String, body: String| {
        let url = format!("{}/v1/datasets?format=csv&drop=id", service.base);
        service
            .http
            .post(url)
            .header("repr-digest", digest)
            .body(body)
    };
    let known = Answer::of(announce(digest(&csv(30)), String::new())).await;
    assert_eq!((known.status, known.json()), (200, first));
    let changed = Answer::of(announce(digest(&csv(31)), csv(32))).await;
    let problem = changed.problem(422, "invalid_dataset");
    assert!(
        problem["detail"]
            .as_str()
            .is_some_and(|detail| detail.contains("changed on the way"))
    );
    let nonsense = Answer::of(announce("sha-256=abc".into(), csv(32))).await;
    nonsense.problem(422, "invalid_parameter");
    assert_eq!(kept(&service), (2, 0));

    // Twins at the same moment become one.
    let (one, two) = tokio::join!(
        upload(&service, "format=csv&drop=id", csv(60)),
        upload(&service, "format=csv&drop=id", csv(60)),
    );
    assert_eq!(one.json()["id"], two.json()["id"]);
}

#[tokio::test]
async fn a_study_trains_on_what_was_uploaded_and_keeps_it_from_being_deleted() {
    let service = TestService::training().await;
    let images = uploaded(&service, "format=npz&name=halves", IMAGES).await;
    let id = images["id"].as_str().expect("an id");
    let study = json!({
        "workload": {"dataset": {"id": id}, "model": {"family": "cnn", "channels": [4]}},
        "batch_sizes": {"min": 8, "max": 16},
        "device": {"memory_budget_bytes": 1_073_741_824_u64, "threads": 1},
        "questions": ["feasible_batch_sizes"]
    });
    let path = service.create(&study).await;
    let deletion = service.delete(&format!("/v1/datasets/{id}")).await;
    deletion.problem(409, "dataset_in_use");
    let ended = service.ended(&path).await;
    assert_eq!(ended["ended_because"], "answered", "{ended}");
    assert_eq!(ended["name"], "halves · cnn 4");
    let definition = service.get(&format!("{path}/definition")).await.json();
    assert_eq!(
        definition["workload"]["dataset"]["content"],
        images["content_sha256"]
    );

    let content = service
        .get_bytes(&format!("/v1/datasets/{id}/content"), None)
        .await;
    assert_eq!(
        content.len() as u64,
        images["content_bytes"].as_u64().expect("a size")
    );
    let part = service
        .get_bytes(&format!("/v1/datasets/{id}/content"), Some("bytes=0-15"))
        .await;
    assert_eq!(part, b"TRIALHEAD DATA 1");
    let sha256 = images["content_sha256"].as_str().expect("a hash");
    let ask = async |range: &str, tag: &str| {
        let url = format!("{}/v1/datasets/{id}/content", service.base);
        let request = service.http.get(url).header("range", range);
        let request = request.header("if-range", format!("\"{tag}\""));
        let answer = request.send().await.expect("an answer");
        let header = |name: &str| {
            let value = answer.headers().get(name)?;
            Some(value.to_str().expect("text").to_owned())
        };
        let told = (header("etag"), header("content-range"));
        (answer.status().as_u16(), told, answer.bytes().await)
    };
    let length = content.len();
    let (status, (etag, range), rest) = ask(&format!("bytes={}-", length - 5), sha256).await;
    assert_eq!((status, etag), (206, Some(format!("\"{sha256}\""))));
    let expected = format!("bytes {}-{}/{length}", length - 5, length - 1);
    assert_eq!(range, Some(expected));
    assert_eq!(rest.expect("a body"), content[length - 5..]);
    // A range of what it no longer is.
    let (status, (etag, range), whole) = ask("bytes=5-", &"0".repeat(64)).await;
    assert_eq!((status, etag), (200, Some(format!("\"{sha256}\""))));
    assert_eq!(range, None);
    assert_eq!(whole.expect("a body"), content);
    let (status, (_, range), problem) = ask(&format!("bytes={length}-"), sha256).await;
    assert_eq!((status, range), (416, Some(format!("bytes */{length}"))));
    let problem: Value = serde_json::from_slice(&problem.expect("a body")).expect("JSON");
    assert_eq!(problem["code"], "range_not_satisfiable");

    assert_eq!(
        service.delete(&format!("/v1/datasets/{id}")).await.status,
        204
    );
    service
        .get(&format!("/v1/datasets/{id}"))
        .await
        .problem(404, "not_found");
    assert_eq!(kept(&service), (0, 0));
    let refused = service
        .post("/v1/studies", &study)
        .await
        .problem(422, "invalid_study");
    assert_eq!(refused["errors"][0]["pointer"], "/workload/dataset/id");
}

#[tokio::test]
async fn a_study_names_an_uploaded_data_set_well_or_is_told_what_is_wrong() {
    let service = TestService::without_workers().await;
    let text = uploaded(
        &service,
        "format=text&name=words",
        "to be or not to be ".repeat(50),
    )
    .await;
    let study = |dataset: Value| json!({"workload": {"dataset": dataset}});
    let refused = async |dataset: Value, pointer: &str| {
        let problem = service
            .post("/v1/studies", &study(dataset))
            .await
            .problem(422, "invalid_study");
        assert_eq!(problem["errors"][0]["pointer"], pointer, "{problem}");
    };
    refused(
        json!({"id": text["id"], "sequence_length": 200}),
        "/workload/dataset/sequence_length",
    )
    .await;
    refused(
        json!({"id": "01981f6e-6f2a-7c3e-9a51-0d6e4b1f2a33"}),
        "/workload/dataset/id",
    )
    .await;
    refused(
        json!({"id": text["id"], "length": 3}),
        "/workload/dataset/length",
    )
    .await;
    refused(json!({}), "/workload/dataset/builtin").await;
    let path = service.create(&study(json!({"id": text["id"]}))).await;
    let definition = service.get(&format!("{path}/definition")).await.json();
    assert_eq!(definition["workload"]["model"]["family"], "transformer_lm");
    assert_eq!(definition["workload"]["dataset"]["sequence_length"], 64);
    assert_eq!(definition["optimizer"]["family"], "adamw");
    assert_eq!(definition["name"], "words · transformer_lm 64×2");
}
