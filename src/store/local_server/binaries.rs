//! Where Postgres' programs are: a setting, `PATH`, then the places that packages install them to.

use std::collections::HashSet;
use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::LocalServerError;

/// The oldest major that the queries are written for.
pub const OLDEST_MAJOR: u32 = 14;

/// One installation of Postgres' server programs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Installation {
    pub directory: PathBuf,
    pub major: u32,
}

impl Installation {
    pub fn initdb(&self) -> PathBuf {
        self.directory.join("initdb")
    }

    pub fn postgres(&self) -> PathBuf {
        self.directory.join("postgres")
    }

    /// What is in `directory`, if both programs are there and one says its version.
    fn inspect(directory: &Path) -> Option<Self> {
        if !directory.join("initdb").is_file() {
            return None;
        }
        let output = Command::new(directory.join("postgres"))
            .arg("--version")
            .env("LC_ALL", "C")
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .output()
            .ok()?;
        let version = String::from_utf8_lossy(&output.stdout);
        Some(Self {
            directory: directory.to_owned(),
            major: major_of(&version)?,
        })
    }
}

/// The major in `postgres (PostgreSQL) 15.13 (Debian 15.13-0+deb12u1)`, also in `17devel` or `18beta1`.
fn major_of(version: &str) -> Option<u32> {
    let number = version.split("(PostgreSQL)").nth(1)?.trim_start();
    let digits: String = number.chars().take_while(char::is_ascii_digit).collect();
    digits.parse().ok()
}

/// The major that a cluster was made by.
pub(super) fn cluster_major(cluster: &Path) -> Option<u32> {
    fs::read_to_string(cluster.join("PG_VERSION"))
        .ok()?
        .trim()
        .split('.')
        .next()?
        .parse()
        .ok()
}

/// Finds the programs to use: those of `cluster`'s major if it exists, else the first that is new enough.
pub(super) fn find(
    setting: Option<&Path>,
    cluster: &Path,
) -> Result<Installation, LocalServerError> {
    let directories = match setting {
        Some(directory) => vec![directory.to_owned()],
        None => candidates(env::var_os("PATH"), Path::new("/")),
    };
    let found: Vec<Installation> = directories
        .iter()
        .filter_map(|directory| Installation::inspect(directory))
        .collect();
    choose(found, setting, cluster)
}

fn choose(
    found: Vec<Installation>,
    setting: Option<&Path>,
    cluster: &Path,
) -> Result<Installation, LocalServerError> {
    let mut majors: Vec<u32> = found.iter().map(|one| one.major).collect();
    majors.sort_unstable();
    majors.dedup();
    if let Some(needed) = cluster_major(cluster) {
        return found
            .into_iter()
            .find(|one| one.major == needed)
            .ok_or_else(|| LocalServerError::OtherMajor {
                needed,
                found: majors,
                cluster: cluster.to_owned(),
            });
    }
    match found.into_iter().find(|one| one.major >= OLDEST_MAJOR) {
        Some(one) => Ok(one),
        None if !majors.is_empty() => Err(LocalServerError::TooOld { found: majors }),
        None => Err(match setting {
            Some(directory) => LocalServerError::NotInSetting(directory.to_owned()),
            None => LocalServerError::NotInstalled,
        }),
    }
}

/// Every directory worth a look, the preferred first, each installation once (symbolic links resolved).
fn candidates(path: Option<std::ffi::OsString>, root: &Path) -> Vec<PathBuf> {
    let on_path = path
        .iter()
        .flat_map(|path| env::split_paths(path).collect::<Vec<_>>())
        .filter(|directory| directory.is_absolute());
    let installed = [
        ("usr/lib/postgresql", "", "bin"),
        ("usr", "pgsql-", "bin"),
        ("opt/homebrew/opt", "postgresql@", "bin"),
        ("usr/local/opt", "postgresql@", "bin"),
        ("home/linuxbrew/.linuxbrew/opt", "postgresql@", "bin"),
        ("Applications/Postgres.app/Contents/Versions", "", "bin"),
    ]
    .into_iter()
    .flat_map(|(parent, prefix, bin)| versions_in(&root.join(parent), prefix, bin));
    let mut seen = HashSet::new();
    on_path
        .chain(installed)
        .filter(|directory| directory.join("postgres").is_file())
        .filter(|directory| {
            let program = directory.join("postgres");
            seen.insert(fs::canonicalize(&program).unwrap_or(program))
        })
        .collect()
}

/// `parent/<prefix><number>/bin` for every number, the highest first.
fn versions_in(parent: &Path, prefix: &str, bin: &str) -> Vec<PathBuf> {
    let mut versions: Vec<(u32, PathBuf)> = fs::read_dir(parent)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| {
            let name = entry.file_name();
            let number = name.to_str()?.strip_prefix(prefix)?.parse().ok()?;
            Some((number, entry.path().join(bin)))
        })
        .collect();
    versions.sort_unstable_by_key(|(number, _)| std::cmp::Reverse(*number));
    versions
        .into_iter()
        .map(|(_, directory)| directory)
        .collect()
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn install(directory: &Path, version: &str) {
        fs::create_dir_all(directory).unwrap();
        for name in ["postgres", "initdb"] {
            let program = directory.join(name);
            fs::write(
                &program,
                format!("#!/bin/sh\necho '{name} (PostgreSQL) {version}'\n"),
            )
            .unwrap();
            fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        }
    }

    fn cluster_of(root: &Path, major: u32) -> PathBuf {
        let cluster = root.join("cluster");
        fs::create_dir_all(&cluster).unwrap();
        fs::write(cluster.join("PG_VERSION"), format!("{major}\n")).unwrap();
        cluster
    }

    fn inspect_all(directories: Vec<PathBuf>) -> Vec<Installation> {
        directories
            .iter()
            .filter_map(|directory| Installation::inspect(directory))
            .collect()
    }

    #[test]
    fn majors_are_read_from_what_postgres_says() {
        for (text, major) in [
            (
                "postgres (PostgreSQL) 15.13 (Debian 15.13-0+deb12u1)",
                Some(15),
            ),
            ("postgres (PostgreSQL) 18beta1", Some(18)),
            ("postgres (PostgreSQL) 9.6.24", Some(9)),
            ("something else 15", None),
        ] {
            assert_eq!(major_of(text), major, "{text}");
        }
    }

    #[test]
    fn the_highest_installed_major_is_taken_for_a_new_cluster() {
        let root = tempfile::tempdir().unwrap();
        for major in ["9", "14", "16", "15"] {
            let bin = root
                .path()
                .join("usr/lib/postgresql")
                .join(major)
                .join("bin");
            install(&bin, &format!("{major}.1"));
        }
        let found = inspect_all(candidates(None, root.path()));
        let majors: Vec<u32> = found.iter().map(|one| one.major).collect();
        assert_eq!(majors, [16, 15, 14, 9]);
        let chosen = choose(found, None, &root.path().join("none")).unwrap();
        assert_eq!(chosen.major, 16);
    }

    #[test]
    fn path_comes_first_and_a_link_to_an_installation_counts_once() {
        let root = tempfile::tempdir().unwrap();
        let installed = root.path().join("usr/lib/postgresql/15/bin");
        install(&installed, "15.2");
        let linked = root.path().join("links");
        fs::create_dir(&linked).unwrap();
        for name in ["postgres", "initdb"] {
            std::os::unix::fs::symlink(installed.join(name), linked.join(name)).unwrap();
        }
        let found = candidates(Some(linked.clone().into_os_string()), root.path());
        assert_eq!(found, [linked]);
    }

    #[test]
    fn homebrew_and_fedora_are_looked_at() {
        let root = tempfile::tempdir().unwrap();
        install(
            &root.path().join("opt/homebrew/opt/postgresql@17/bin"),
            "17.0",
        );
        install(&root.path().join("usr/pgsql-16/bin"), "16.0");
        let majors: Vec<u32> = inspect_all(candidates(None, root.path()))
            .iter()
            .map(|one| one.major)
            .collect();
        assert_eq!(majors, [16, 17]);
    }

    #[test]
    fn a_cluster_gets_the_major_that_made_it_or_an_error_naming_the_package() {
        let root = tempfile::tempdir().unwrap();
        install(&root.path().join("usr/lib/postgresql/16/bin"), "16.1");
        install(&root.path().join("usr/lib/postgresql/14/bin"), "14.9");
        let found = inspect_all(candidates(None, root.path()));
        let chosen = choose(found.clone(), None, &cluster_of(root.path(), 14)).unwrap();
        assert_eq!(chosen.major, 14);
        let error = choose(found, None, &cluster_of(root.path(), 15))
            .unwrap_err()
            .to_string();
        assert!(error.contains("apt-get install postgresql-15"), "{error}");
        assert!(error.contains("14, 16"), "{error}");
    }

    #[test]
    fn nothing_installed_says_how_to_install_on_one_line() {
        let root = tempfile::tempdir().unwrap();
        let error = choose(Vec::new(), None, root.path())
            .unwrap_err()
            .to_string();
        for part in [
            "apt-get install postgresql",
            "dnf install",
            "brew install",
            "DATABASE_URL",
        ] {
            assert!(error.contains(part), "{error}");
        }
        assert_eq!(error.lines().count(), 1);
    }

    #[test]
    fn too_old_is_said() {
        let root = tempfile::tempdir().unwrap();
        install(&root.path().join("usr/lib/postgresql/13/bin"), "13.1");
        let found = inspect_all(candidates(None, root.path()));
        let error = choose(found, None, root.path()).unwrap_err().to_string();
        assert!(error.contains("13") && error.contains("14"), "{error}");
    }
}
