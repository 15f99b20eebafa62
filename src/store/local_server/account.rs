//! Who the database runs as. Postgres refuses root, so a service that runs as root gives its server to an
//! unprivileged account; everybody else runs it as themselves.

use std::ffi::OsString;
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::{MetadataExt, lchown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::unistd::{Uid, User};

use super::LocalServerError;

/// Accounts tried by a service that runs as root, in this order.
const UNPRIVILEGED: [&str; 3] = ["postgres", "trialhead", "nobody"];

/// The account that owns the cluster and runs the server.
#[derive(Debug, Clone)]
pub(super) struct Account {
    pub name: String,
    pub uid: u32,
    pub gid: u32,
    /// Whether that is somebody else than this process.
    pub dropped: bool,
}

impl Account {
    /// The account to use; `owner` is that of a cluster which exists already.
    pub fn choose(setting: Option<&str>, owner: Option<u32>) -> Result<Self, LocalServerError> {
        let me = Uid::effective();
        if !me.is_root() {
            // initdb looks its own name up, and fails without an entry.
            let user = lookup_uid(me.as_raw())
                .ok_or(LocalServerError::NoPasswdEntry { uid: me.as_raw() })?;
            return match setting {
                Some(name) if name != user.name => Err(LocalServerError::CannotSwitch {
                    wanted: name.to_owned(),
                    me: user.name,
                }),
                _ => Ok(Self::of(user, false)),
            };
        }
        if let Some(name) = setting {
            let user = User::from_name(name)
                .ok()
                .flatten()
                .ok_or_else(|| LocalServerError::NoSuchAccount(name.to_owned()))?;
            if user.uid.is_root() {
                return Err(LocalServerError::RootAccount);
            }
            return Ok(Self::of(user, true));
        }
        owner
            .filter(|uid| *uid != 0)
            .and_then(lookup_uid)
            .or_else(|| {
                UNPRIVILEGED
                    .iter()
                    .find_map(|name| User::from_name(name).ok().flatten())
            })
            .filter(|user| !user.uid.is_root())
            .map(|user| Self::of(user, true))
            .ok_or(LocalServerError::NoAccount)
    }

    fn of(user: User, dropped: bool) -> Self {
        Self {
            name: user.name,
            uid: user.uid.as_raw(),
            gid: user.gid.as_raw(),
            dropped,
        }
    }

    /// Makes `command` run as this account, without root's groups.
    pub fn run(&self, command: &mut Command) {
        if self.dropped {
            // With a uid and no groups given, the standard library also clears the supplementary groups.
            command.gid(self.gid).uid(self.uid);
        }
    }

    /// Gives `path` itself to this account.
    pub fn own(&self, path: &Path) -> io::Result<()> {
        if self.dropped {
            lchown(path, Some(self.uid), Some(self.gid))?;
        }
        Ok(())
    }

    /// Gives everything below `path` to this account: after the setting changed, or an installation of
    /// Postgres brought its own account.
    pub fn own_all(&self, path: &Path) -> io::Result<()> {
        self.own(path)?;
        if fs::symlink_metadata(path)?.is_dir() {
            for entry in fs::read_dir(path)? {
                self.own_all(&entry?.path())?;
            }
        }
        Ok(())
    }

    /// The first directory on the way to `path` that this account may not pass.
    pub fn obstacle(&self, path: &Path) -> Option<PathBuf> {
        let mut ancestors: Vec<&Path> = path.ancestors().collect();
        ancestors.reverse();
        ancestors
            .into_iter()
            .find(|directory| {
                fs::metadata(directory).is_ok_and(|metadata| !self.may_pass(&metadata))
            })
            .map(Path::to_owned)
    }

    fn may_pass(&self, metadata: &Metadata) -> bool {
        let search = if metadata.uid() == self.uid {
            0o100
        } else if metadata.gid() == self.gid {
            0o010
        } else {
            0o001
        };
        metadata.mode() & search != 0
    }
}

fn lookup_uid(uid: u32) -> Option<User> {
    User::from_uid(Uid::from_raw(uid)).ok().flatten()
}

/// The environment of the database: nothing of ours, so that no `PG*` variable or secret reaches it.
pub(super) fn environment() -> Vec<(OsString, OsString)> {
    const KEPT: [&str; 4] = ["PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "TMPDIR"];
    KEPT.iter()
        .filter_map(|name| Some((OsString::from(name), std::env::var_os(name)?)))
        // Fixes the language of messages, some of which are told apart below.
        .chain([(OsString::from("LC_ALL"), OsString::from("C"))])
        .collect()
}
