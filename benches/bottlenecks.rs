//! Injected bottlenecks: does the analysis name the right one every time, and none where there is none? Real
//! children, slow on purpose.
//!
//! `cargo bench --profile release --bench bottlenecks [-- TIMES [NAME]]`

#![expect(
    clippy::print_stdout,
    clippy::expect_used,
    reason = "a benchmark reports on stdout and ends when something is wrong"
)]

#[path = "../tests/support/bottlenecks.rs"]
mod bottlenecks;
#[path = "../tests/support/children.rs"]
#[allow(dead_code, reason = "shared with the tests")]
mod children;
#[path = "../tests/support/fake.rs"]
#[allow(dead_code, reason = "shared with the tests")]
mod fake;

#[tokio::main]
async fn main() {
    let times = std::env::args()
        .skip(1)
        .find_map(|argument| argument.parse().ok())
        .unwrap_or(20);
    let runner = fake::example("faulty_runner");
    println!("{times} times each; the goal is the right label every time, at both batch sizes");
    let only = std::env::args().skip(1).find(|it| {
        let mut all = bottlenecks::ALL.iter();
        all.any(|injected| format!("{injected:?}").eq_ignore_ascii_case(it))
    });
    let chosen = |injected: &bottlenecks::Injected| {
        let name = format!("{injected:?}");
        only.as_ref()
            .is_none_or(|only| only.eq_ignore_ascii_case(&name))
    };
    for injected in bottlenecks::ALL.into_iter().filter(chosen) {
        let expected: Vec<_> = injected.label().into_iter().collect();
        let mut right = 0;
        for _ in 0..times {
            let found = bottlenecks::found(&runner, injected).await;
            if found.iter().all(|(labels, _)| *labels == expected) {
                right += 1;
            } else {
                println!("  {injected:?}: {found:?}");
            }
        }
        println!(
            "{:<10} {right} of {times}  {}",
            format!("{injected:?}"),
            if right == times { "met" } else { "MISSED" }
        );
    }
}
