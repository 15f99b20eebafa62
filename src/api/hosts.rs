//! Whose pages may talk to the service. A browser must not be tricked into using it for another site: the
//! `Host` header is checked (DNS rebinding), and so is where a write comes from.

use std::net::SocketAddr;

use actix_web::http::Method;
use actix_web::http::header::{HeaderMap, ORIGIN};

use super::problem::{Problem, ProblemCode};

/// The hosts that are answered.
#[derive(Debug, Clone)]
pub struct Hosts {
    loopback_only: bool,
    allowed_hosts: Vec<String>,
    /// Other sites whose pages may write.
    origins: Vec<String>,
}

impl Hosts {
    /// By where the service listens and what the settings allow.
    pub fn new(listen: SocketAddr, allowed_hosts: &[String]) -> Self {
        Self {
            loopback_only: listen.ip().is_loopback(),
            allowed_hosts: allowed_hosts
                .iter()
                .map(|host| host.to_ascii_lowercase())
                .collect(),
            origins: Vec::new(),
        }
    }

    /// The same, and pages of these origins may write.
    pub fn with_origins(self, origins: &[String]) -> Self {
        Self {
            origins: origins.to_vec(),
            ..self
        }
    }

    /// Refuses what must not be answered, by the host that was asked and what a browser says of the page.
    ///
    /// # Errors
    /// 403 with the reason.
    pub fn check(&self, method: &Method, host: &str, headers: &HeaderMap) -> Result<(), Problem> {
        if !self.is_host_allowed(host) {
            return Err(Problem::new(
                ProblemCode::HostNotAllowed,
                "the Host header is not one that this service answers to; use localhost, or name the host in api.allowed_hosts",
            ));
        }
        let is_write = !matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS);
        if is_write && self.is_foreign(headers) {
            return Err(Problem::new(
                ProblemCode::CrossSite,
                "a page of another site may not write here",
            ));
        }
        Ok(())
    }

    /// Whether a browser says that a page of another site sent the request. Browsers that do not say so plainly name the
    /// page's origin; a program says neither.
    fn is_foreign(&self, headers: &HeaderMap) -> bool {
        let is_named = |origin: &[u8]| self.origins.iter().any(|it| it.as_bytes() == origin);
        if headers
            .get(ORIGIN)
            .is_some_and(|it| is_named(it.as_bytes()))
        {
            return false;
        }
        if let Some(site) = headers.get("sec-fetch-site") {
            return !matches!(site.as_bytes(), b"same-origin" | b"none");
        }
        headers.get(ORIGIN).is_some_and(|origin| {
            let host = origin.to_str().ok().and_then(|it| it.split_once("://"));
            !host.is_some_and(|(_, host)| self.is_host_allowed(host))
        })
    }

    fn is_host_allowed(&self, host: &str) -> bool {
        let host = without_port(host).to_ascii_lowercase();
        let is_loopback = host == "localhost"
            || host
                .trim_matches(['[', ']'])
                .parse::<std::net::IpAddr>()
                .is_ok_and(|address| address.is_loopback());
        if self.allowed_hosts.contains(&host) {
            return true;
        }
        if self.loopback_only {
            is_loopback
        } else {
            // Beyond loopback somebody else guards the port; names are checked when some are given.
            self.allowed_hosts.is_empty() || is_loopback
        }
    }
}

fn without_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port))
            if !port.is_empty()
                && port.bytes().all(|byte| byte.is_ascii_digit())
                && (!name.contains(':') || name.ends_with(']')) =>
        {
            name
        }
        _ => host,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allowed(listen: &str, hosts: &[&str], host: &str) -> bool {
        let hosts: Vec<String> = hosts.iter().map(|&host| host.to_owned()).collect();
        Hosts::new(listen.parse().expect("an address"), &hosts).is_host_allowed(host)
    }

    #[test]
    fn on_loopback_only_loopback_names_are_answered() {
        for host in [
            "localhost",
            "LOCALHOST:8080",
            "127.0.0.1:1",
            "127.9.9.9",
            "[::1]:80",
        ] {
            assert!(allowed("127.0.0.1:8080", &[], host), "{host}");
        }
        for host in [
            "attacker.example",
            "attacker.example:8080",
            "",
            "10.0.0.1",
            "localhost.attacker.example",
        ] {
            assert!(!allowed("127.0.0.1:8080", &[], host), "{host}");
        }
        assert!(allowed(
            "127.0.0.1:8080",
            &["Proxy.internal"],
            "proxy.internal:443"
        ));
    }

    #[test]
    fn a_page_of_another_site_may_not_write_and_may_be_recognised_by_its_origin() {
        let hosts = Hosts::new("127.0.0.1:8080".parse().expect("an address"), &[]);
        let write = |headers: &[(&'static str, &'static str)]| {
            let mut map = HeaderMap::new();
            for (name, value) in headers {
                map.insert(
                    actix_web::http::header::HeaderName::from_static(name),
                    actix_web::http::header::HeaderValue::from_static(value),
                );
            }
            hosts.check(&Method::POST, "localhost:8080", &map).is_ok()
        };
        assert!(write(&[]), "a program");
        assert!(write(&[("sec-fetch-site", "same-origin")]));
        assert!(write(&[("sec-fetch-site", "none")]));
        assert!(!write(&[("sec-fetch-site", "cross-site")]));
        assert!(!write(&[("sec-fetch-site", "same-site")]));
        assert!(write(&[("origin", "http://localhost:8080")]));
        assert!(write(&[("origin", "http://127.0.0.1:8080")]));
        for foreign in ["https://attacker.example", "null", "", "http://"] {
            assert!(!write(&[("origin", foreign)]), "{foreign}");
        }
        let mut map = HeaderMap::new();
        map.insert(
            ORIGIN,
            actix_web::http::header::HeaderValue::from_static("https://attacker.example"),
        );
        assert!(
            hosts.check(&Method::GET, "localhost", &map).is_ok(),
            "a read"
        );
    }

    #[test]
    fn beyond_loopback_names_count_when_some_are_given() {
        assert!(allowed("0.0.0.0:8080", &[], "anything"));
        assert!(!allowed("0.0.0.0:8080", &["trialhead"], "anything"));
        assert!(allowed("0.0.0.0:8080", &["trialhead"], "trialhead:8080"));
    }
}
