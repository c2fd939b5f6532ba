//! The key behind the tracker's peer id: made once, kept in a file that only its owner may read.

use std::{
    fs,
    io::{self, Read, Write},
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

use libp2p::identity::Keypair;

use super::{ServerError, in_dir};

/// An Ed25519 key in libp2p's encoding has 68 bytes.
const FILE_BYTES_MAX: u64 = 1024;

/// Reads the identity, or makes one. The caller holds the state folder's lock.
pub(super) fn load_or_create(path: &Path) -> Result<Keypair, ServerError> {
    match fs::File::open(path) {
        Ok(file) => {
            let mut bytes = Vec::new();
            file.take(FILE_BYTES_MAX)
                .read_to_end(&mut bytes)
                .map_err(in_dir(path))?;
            Keypair::from_protobuf_encoding(&bytes)
                .map_err(|_| ServerError::Identity(path.to_owned()))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let identity = Keypair::generate_ed25519();
            let bytes = identity
                .to_protobuf_encoding()
                .map_err(|_| ServerError::Identity(path.to_owned()))?;
            create(path, &bytes).map_err(in_dir(path))?;
            Ok(identity)
        }
        Err(error) => Err(in_dir(path)(error)),
    }
}

/// Written whole under another name first: a crash leaves either no identity or a sound one.
fn create(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let new = path.with_extension("new");
    match fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&new)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&new, path)?;
    match path.parent() {
        Some(folder) => fs::File::open(folder)?.sync_all(),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn the_identity_is_made_once_and_readable_by_its_owner_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("identity");
        let made = load_or_create(&path).unwrap().public();
        assert_eq!(load_or_create(&path).unwrap().public(), made);
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn a_damaged_identity_is_reported_and_not_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("identity");
        fs::write(&path, b"no key").unwrap();
        assert!(matches!(
            load_or_create(&path),
            Err(ServerError::Identity(_))
        ));
        assert_eq!(fs::read(&path).unwrap(), b"no key");
    }
}
