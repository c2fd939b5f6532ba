//! Cluster ids as people copy them.

use std::{fmt, str::FromStr};

use bech32::{Bech32m, Hrp, primitives::decode::CheckedHrpstring};
use zeroize::Zeroizing;

use super::{ClusterKeys, Role, Topic};

/// What ids start with: the human-readable part and bech32's separator.
const PREFIX_READ_WRITE: &str = "p2pfsrw1";
const PREFIX_READ_ONLY: &str = "p2pfsro1";

/// The characters behind the prefix (BIP-173).
const CHARSET: &str = "qpzry9x8gf2tvdw0s3jn54khce6mua7l";

/// The first byte of what an id encodes; the 32-byte secret follows.
const VERSION: u8 = 0;

/// 8 of prefix, 53 for 33 bytes, 6 of checksum.
const ID_CHARS: usize = 67;

const NAME_BYTES_MAX: usize = 64;

/// A cluster id: an opaque secret word. `Display` prints the secret; `Debug` does not.
#[derive(Clone, PartialEq, Eq)]
pub struct ClusterId {
    pub(super) role: Role,
    pub(super) secret: Zeroizing<[u8; 32]>,
}

/// What was wrong with an id; the message names the place of a typo where the checksum allows.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum IdError {
    /// Not a cluster id.
    #[error("{0}")]
    Malformed(String),
}

/// An id as given on a command line: `p2pfsrw1…[@tracker[,tracker…]]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParsedCluster {
    /// The id.
    pub id: ClusterId,
    /// The trackers named after `@`, as they were written.
    pub trackers: Vec<String>,
}

/// A saved name: 1 to 64 bytes of `[A-Za-z0-9._-]`, not starting with `.` or `-`, not starting with `p2pfsrw1` or `p2pfsro1`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ClusterName(String);

impl ClusterId {
    /// A new read-write id from 32 random bytes.
    pub fn generate(random: [u8; 32]) -> Self {
        Self {
            role: Role::ReadWrite,
            secret: Zeroizing::new(random),
        }
    }

    /// Whether it grants writing.
    pub fn role(&self) -> Role {
        self.role
    }

    /// The read-only id of the same cluster.
    pub fn read_only(&self) -> ClusterId {
        Self {
            role: Role::ReadOnly,
            secret: self.keys().read_secret().clone(),
        }
    }

    /// The keys it grants.
    pub fn keys(&self) -> ClusterKeys {
        ClusterKeys::derive(self.role, &self.secret)
    }
}

impl fmt::Display for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let prefix = match self.role {
            Role::ReadWrite => PREFIX_READ_WRITE,
            Role::ReadOnly => PREFIX_READ_ONLY,
        };
        let hrp = Hrp::parse(prefix.trim_end_matches('1')).map_err(|_| fmt::Error)?;
        let mut payload = Zeroizing::new([VERSION; 33]);
        payload[1..].copy_from_slice(&*self.secret);
        bech32::encode_lower_to_fmt::<Bech32m, _>(f, hrp, &*payload).map_err(|_| fmt::Error)
    }
}

impl fmt::Debug for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ClusterId(secret)")
    }
}

impl FromStr for ClusterId {
    type Err = IdError;

    /// Reads an id alone, without trackers. Errors never repeat more of it than one wrong character.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let text = text.trim();
        let lower = Zeroizing::new(text.to_ascii_lowercase());
        let (role, prefix) = if lower.starts_with(PREFIX_READ_WRITE) {
            (Role::ReadWrite, PREFIX_READ_WRITE)
        } else if lower.starts_with(PREFIX_READ_ONLY) {
            (Role::ReadOnly, PREFIX_READ_ONLY)
        } else {
            return Err(malformed(format!(
                "a cluster id starts with {PREFIX_READ_WRITE} or {PREFIX_READ_ONLY}"
            )));
        };
        for (index, character) in text.chars().enumerate().skip(prefix.len()) {
            if !CHARSET.contains(character.to_ascii_lowercase()) {
                return Err(malformed(format!(
                    "character {} of the cluster id, {character:?}, does not occur in cluster ids",
                    index + 1
                )));
            }
        }
        if text.contains(|c: char| c.is_ascii_uppercase())
            && text.contains(|c: char| c.is_ascii_lowercase())
        {
            return Err(malformed(
                "the cluster id mixes upper and lower case: it is copied wrongly",
            ));
        }
        if text.len() != ID_CHARS {
            return Err(malformed(format!(
                "a cluster id has {ID_CHARS} characters, this one has {}: it is not copied in full, or something follows it",
                text.len()
            )));
        }
        let Ok(checked) = CheckedHrpstring::new::<Bech32m>(&lower) else {
            return Err(malformed(match typo(&lower, role) {
                Some(index) => format!(
                    "the cluster id has a typo: compare character {} with the original",
                    index + 1
                ),
                None => "the cluster id has more than one typo: copy it again".into(),
            }));
        };
        let payload: Zeroizing<Vec<u8>> = Zeroizing::new(checked.byte_iter().collect());
        let Some((&version, secret)) = payload.split_first() else {
            return Err(malformed("the cluster id is empty"));
        };
        if version != VERSION {
            return Err(malformed(
                "the cluster id was made by a newer version of p2pfs: update this one",
            ));
        }
        let secret = secret
            .try_into()
            .map_err(|_| malformed("the cluster id has the wrong length"))?;
        let id = Self {
            role,
            secret: Zeroizing::new(secret),
        };
        // The last data character has a spare bit: only one value of it is an id.
        if *Zeroizing::new(id.to_string()) != *lower {
            return Err(malformed("the cluster id is not in canonical form"));
        }
        Ok(id)
    }
}

/// Finds the one character (counted from 0) whose change makes the checksum hold. The checksum tells all ids apart that
/// differ in up to four characters, so a single typo has a single place; with more typos there is none to be found.
fn typo(lower: &str, role: Role) -> Option<usize> {
    let holds = |candidate: &str| CheckedHrpstring::new::<Bech32m>(candidate).is_ok();
    let (prefix, other) = match role {
        Role::ReadWrite => (PREFIX_READ_WRITE, PREFIX_READ_ONLY),
        Role::ReadOnly => (PREFIX_READ_ONLY, PREFIX_READ_WRITE),
    };
    let mut candidate = Zeroizing::new(lower.to_owned());
    candidate.replace_range(..prefix.len(), other);
    if holds(&candidate) {
        return prefix.chars().zip(other.chars()).position(|(a, b)| a != b);
    }
    candidate.replace_range(..prefix.len(), prefix);
    for (index, written) in lower.char_indices().skip(prefix.len()) {
        let mut buffer = [0; 4];
        for character in CHARSET.chars() {
            candidate.replace_range(index..=index, character.encode_utf8(&mut buffer));
            if holds(&candidate) {
                return Some(index);
            }
        }
        candidate.replace_range(index..=index, written.encode_utf8(&mut buffer));
    }
    None
}

fn malformed(text: impl Into<String>) -> IdError {
    IdError::Malformed(text.into())
}

impl FromStr for ParsedCluster {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (id, trackers) = match text.trim().split_once('@') {
            Some((id, trackers)) => (id, trackers.split(',').map(str::trim).collect()),
            None => (text, Vec::new()),
        };
        let id = id.parse()?;
        if trackers.contains(&"") {
            return Err(malformed(
                "a tracker's address is missing: behind @ stand addresses, separated by commas",
            ));
        }
        let trackers = trackers.into_iter().map(str::to_owned).collect();
        Ok(Self { id, trackers })
    }
}

impl ClusterName {
    /// The name of a cluster that nobody named: `cluster-` and the first eight hexadecimal digits of the topic.
    pub fn default_for(topic: &Topic) -> Self {
        let hex = topic.to_string();
        Self(format!("cluster-{}", &hex[..8]))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for ClusterName {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.is_empty() || text.len() > NAME_BYTES_MAX {
            return Err(malformed(format!(
                "a cluster name has 1 to {NAME_BYTES_MAX} characters"
            )));
        }
        let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
        if let Some(character) = text.chars().find(|&c| !allowed(c)) {
            return Err(malformed(format!(
                "a cluster name consists of letters, digits, '.', '_' and '-', not {character:?}"
            )));
        }
        if text.starts_with(['.', '-']) {
            return Err(malformed("a cluster name does not start with '.' or '-'"));
        }
        let lower = text.to_ascii_lowercase();
        if lower.starts_with(PREFIX_READ_WRITE) || lower.starts_with(PREFIX_READ_ONLY) {
            return Err(malformed(
                "this looks like a cluster id: a cluster name would be mistaken for one",
            ));
        }
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for ClusterName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests;
