//! The address of a database as libpq writes it. tokio-postgres reads it, except for what it does not know:
//! `sslmode=verify-ca|verify-full` and `sslrootcert` are taken out first, in both forms.

use std::path::PathBuf;

use tokio_postgres::Config;
use tokio_postgres::config::Host;

use super::tls::{RootCertificates, SslMode};

/// What tokio-postgres can be given; anything else has its own error, which names no part of the address
/// that could be a piece of a password.
const KNOWN: [&str; 20] = [
    "user",
    "password",
    "dbname",
    "options",
    "application_name",
    "sslnegotiation",
    "host",
    "hostaddr",
    "port",
    "connect_timeout",
    "tcp_user_timeout",
    "keepalives",
    "keepalives_idle",
    "keepalives_interval",
    "keepalives_retries",
    "target_session_attrs",
    "channel_binding",
    "load_balance_hosts",
    "sslmode",
    "sslrootcert",
];

/// Options of libpq that are not supported, and may be named since they are no secret.
const UNSUPPORTED: [&str; 16] = [
    "sslcert",
    "sslkey",
    "sslpassword",
    "sslcrl",
    "sslcrldir",
    "sslcompression",
    "sslsni",
    "ssl_min_protocol_version",
    "ssl_max_protocol_version",
    "gssencmode",
    "krbsrvname",
    "gsslib",
    "passfile",
    "service",
    "client_encoding",
    "require_auth",
];

/// What is wrong with an address; never a part of it.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    #[error(
        "the database address cannot be read: it should look like postgres://user:password@host:5432/database?sslmode=verify-full \
         or host=… user=… dbname=…, with special characters of a password percent-encoded in the first form"
    )]
    Malformed,
    #[error("the database address names no host")]
    NoHost,
    #[error("the database address has an option that is not known; known are {}", KNOWN.join(", "))]
    UnknownOption,
    #[error("the database address has the option `{0}`, which is not supported")]
    Unsupported(&'static str),
    #[error("the value of `{0}` in the database address cannot be read")]
    BadValue(&'static str),
    #[error("sslmode is one of disable, prefer, require, verify-ca and verify-full")]
    BadSslMode,
    #[error(
        "sslrootcert=system needs sslmode=verify-full: anybody can have a certificate from a public authority"
    )]
    WeakSystemRoots,
}

/// An address, taken apart.
#[derive(Debug)]
pub(super) struct Address {
    pub config: Config,
    pub ssl_mode: SslMode,
    pub roots: RootCertificates,
}

pub(super) fn parse(address: &str) -> Result<Address, AddressError> {
    let (rest, options) = if is_url(address) {
        split_url(address)?
    } else {
        split_keywords(address)?
    };
    let mut ssl_mode = None;
    let mut roots = RootCertificates::Default;
    for (name, value) in options {
        if name == "sslmode" {
            ssl_mode = Some(SslMode::parse(&value).ok_or(AddressError::BadSslMode)?);
        } else if value == "system" {
            roots = RootCertificates::System;
        } else {
            roots = RootCertificates::File(PathBuf::from(value));
        }
    }
    let config: Config = rest.parse().map_err(|_| AddressError::Malformed)?;
    let hosts = config.get_hosts();
    if hosts.is_empty() && config.get_hostaddrs().is_empty() {
        return Err(AddressError::NoHost);
    }
    let ssl_mode = match (ssl_mode, &roots) {
        (None, RootCertificates::System) => SslMode::VerifyFull,
        (Some(mode), RootCertificates::System) if mode != SslMode::VerifyFull => {
            return Err(AddressError::WeakSystemRoots);
        }
        (mode, _) => mode.unwrap_or(SslMode::Prefer),
    };
    // Postgres has no TLS over a Unix socket; like libpq, the mode is ignored there.
    let local = !hosts.is_empty() && hosts.iter().all(|host| matches!(host, Host::Unix(_)));
    Ok(Address {
        config,
        ssl_mode: if local { SslMode::Disable } else { ssl_mode },
        roots,
    })
}

fn is_url(address: &str) -> bool {
    address.starts_with("postgres://") || address.starts_with("postgresql://")
}

type Options = Vec<(String, String)>;

/// Takes our options out of a URL's query.
fn split_url(url: &str) -> Result<(String, Options), AddressError> {
    // A question mark before the @ belongs to the password.
    let start = url.find('@').unwrap_or(0);
    let Some(query) = url[start..].find('?').map(|at| start + at) else {
        return Ok((url.to_owned(), Vec::new()));
    };
    let mut rest = Vec::new();
    let mut ours = Vec::new();
    for part in url[query + 1..].split('&').filter(|part| !part.is_empty()) {
        let (name, value) = part.split_once('=').ok_or(AddressError::Malformed)?;
        let name = percent_decode(name).ok_or(AddressError::Malformed)?;
        match check(&name)? {
            ours_name @ ("sslmode" | "sslrootcert") => {
                let value = percent_decode(value).ok_or(AddressError::BadValue(ours_name))?;
                ours.push((name, value));
            }
            _ => rest.push(part),
        }
    }
    let mut url = url[..query].to_owned();
    if !rest.is_empty() {
        url.push('?');
        url.push_str(&rest.join("&"));
    }
    Ok((url, ours))
}

/// Takes our options out of the keyword form, and quotes the others again.
fn split_keywords(text: &str) -> Result<(String, Options), AddressError> {
    let mut rest = String::new();
    let mut ours = Vec::new();
    let mut left = text.trim_start();
    while !left.is_empty() {
        let (name, after) = left.split_once('=').ok_or(AddressError::Malformed)?;
        let name = name.trim_end();
        if name.is_empty() || name.contains(char::is_whitespace) {
            return Err(AddressError::Malformed);
        }
        let name = check(name)?;
        let (value, after) = keyword_value(after.trim_start())?;
        left = after.trim_start();
        if name == "sslmode" || name == "sslrootcert" {
            ours.push((name.to_owned(), value));
        } else {
            let quoted = value.replace('\\', "\\\\").replace('\'', "\\'");
            rest.push_str(&format!("{name}='{quoted}' "));
        }
    }
    Ok((rest, ours))
}

/// A value, quoted or not, and what follows it.
fn keyword_value(text: &str) -> Result<(String, &str), AddressError> {
    let quoted = text.starts_with('\'');
    let mut value = String::new();
    let mut characters = text.char_indices().skip(usize::from(quoted));
    while let Some((at, character)) = characters.next() {
        match character {
            '\\' => value.extend(characters.next().map(|(_, escaped)| escaped)),
            '\'' if quoted => return Ok((value, &text[at + 1..])),
            space if !quoted && space.is_whitespace() => return Ok((value, &text[at..])),
            other => value.push(other),
        }
    }
    if quoted {
        Err(AddressError::Malformed)
    } else {
        Ok((value, ""))
    }
}

/// The option by that name, if it can be used.
fn check(name: &str) -> Result<&'static str, AddressError> {
    if let Some(known) = KNOWN.iter().find(|known| **known == name) {
        return Ok(known);
    }
    Err(UNSUPPORTED
        .iter()
        .find(|unsupported| **unsupported == name)
        .map_or(AddressError::UnknownOption, |name| {
            AddressError::Unsupported(name)
        }))
}

fn percent_decode(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut left = text.as_bytes();
    while let Some((&byte, after)) = left.split_first() {
        left = after;
        if byte == b'%' {
            let digits = after.get(..2)?;
            bytes.extend(hex::decode(digits).ok()?);
            left = &after[2..];
        } else {
            bytes.push(byte);
        }
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    #[test]
    fn both_forms_give_the_same() {
        let url = parse(
            "postgresql://us%65r:p%40ss%3F@db.example:6432/some?sslmode=verify-ca&connect_timeout=3&sslrootcert=%2Fetc%2Fa%20b.pem",
        )
        .unwrap();
        let keywords = parse(
            r"host = db.example port=6432 user=user password='p@ss?' dbname=some connect_timeout=3 sslrootcert='/etc/a b.pem' sslmode=verify-ca",
        )
        .unwrap();
        for address in [url, keywords] {
            assert_eq!(address.ssl_mode, SslMode::VerifyCa);
            assert_eq!(address.roots, RootCertificates::File("/etc/a b.pem".into()));
            assert_eq!(address.config.get_user(), Some("user"));
            assert_eq!(address.config.get_password(), Some(&b"p@ss?"[..]));
            assert_eq!(address.config.get_dbname(), Some("some"));
            assert_eq!(address.config.get_ports(), [6432]);
            assert_eq!(
                address.config.get_hosts(),
                [Host::Tcp("db.example".to_owned())]
            );
        }
    }

    #[test]
    fn quotes_and_backslashes_of_a_keyword_value_survive() {
        let address = parse(r"host=h password='a\'b\\c d' user=u\ v").unwrap();
        assert_eq!(address.config.get_password(), Some(&br"a'b\c d"[..]));
        assert_eq!(address.config.get_user(), Some("u v"));
    }

    #[test]
    fn prefer_is_the_default_and_a_socket_has_no_tls() {
        let mode = |address: &str| parse(address).unwrap().ssl_mode;
        assert_eq!(mode("postgres://h/db"), SslMode::Prefer);
        assert_eq!(mode("postgres://h/db?sslmode=disable"), SslMode::Disable);
        assert_eq!(
            mode("postgres://h/db?sslrootcert=system"),
            SslMode::VerifyFull
        );
        assert_eq!(
            mode("postgres://%2Frun%2Fpg/db?sslmode=verify-full"),
            SslMode::Disable
        );
    }

    #[test]
    fn what_cannot_be_used_is_named() {
        let error = |address: &str| parse(address).unwrap_err();
        assert_eq!(
            error("postgres://h/?sslmode=allow"),
            AddressError::BadSslMode
        );
        assert_eq!(
            error("postgres://h/?sslcert=x"),
            AddressError::Unsupported("sslcert")
        );
        assert_eq!(
            error("postgres://h/?sslmode=require&sslrootcert=system"),
            AddressError::WeakSystemRoots
        );
        assert_eq!(error("dbname=x"), AddressError::NoHost);
        assert_eq!(error("mysql://h/x"), AddressError::Malformed);
        assert_eq!(error("host='h"), AddressError::Malformed);
    }

    #[test]
    fn no_error_shows_a_piece_of_a_password() {
        for address in [
            "postgres://user:s?cret=x@h:notaport/db",
            "postgres://user:hunter2@[h/db",
            "postgres://h/db?hunter2=x",
            "postgres://user:hunter2",
            "user=x password=a hunter2=y",
            "hunter2",
            "host=h port=hunter2",
        ] {
            if let Err(error) = parse(address) {
                let shown = format!("{error} {error:?}");
                assert!(
                    !shown.contains("hunter2") && !shown.contains("cret"),
                    "{shown}"
                );
            }
        }
    }
}
