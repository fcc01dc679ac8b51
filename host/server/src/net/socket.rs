//! Where a door listens: a TCP port, or a Unix socket, which only users of this machine can reach.
//!
//! A Unix socket is a file. It is made for the process's user only, replaced if the host that made it is dead, and removed when its door
//! is closed.

use std::fs::{self, File, Permissions};
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use tokio::net::{TcpListener, TcpStream, UnixListener, UnixSocket, UnixStream};

use super::bounds::SOCKET_BACKLOG_MAX;
use super::peer::{Peer, Presented};
use super::stream::Duplex;

/// Read and write, for the owner.
const MODE: u32 = 0o600;

/// Where a door listens.
pub(crate) enum Socket {
    /// A port.
    Tcp(TcpListener),
    /// A file.
    Unix(SocketFile),
}

impl From<TcpListener> for Socket {
    fn from(listener: TcpListener) -> Self {
        Self::Tcp(listener)
    }
}

/// What was accepted.
pub(super) enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Socket {
    /// The address; `None` for a Unix socket.
    pub(super) fn address(&self) -> io::Result<Option<SocketAddr>> {
        match self {
            Self::Tcp(listener) => listener.local_addr().map(Some),
            Self::Unix(_) => Ok(None),
        }
    }

    pub(super) async fn accept(&self) -> io::Result<Stream> {
        match self {
            Self::Tcp(listener) => listener
                .accept()
                .await
                .map(|(stream, _)| Stream::Tcp(stream)),
            Self::Unix(file) => file
                .listener
                .accept()
                .await
                .map(|(stream, _)| Stream::Unix(stream)),
        }
    }
}

impl Stream {
    /// The stream and who is on the other side; `None` if that one has already disconnected.
    pub(super) fn known(self) -> Option<(Box<dyn Duplex>, Peer)> {
        match self {
            Self::Tcp(stream) => {
                // Answers are written as a whole; waiting for more data would only add delay.
                stream.set_nodelay(true).ok()?;
                let address = stream.peer_addr().ok().map(|address| address.ip());
                let presented = Presented::Nothing;
                Some((Box::new(stream), Peer { address, presented }))
            }
            Self::Unix(stream) => {
                let presented = Presented::User(stream.peer_cred().ok()?.uid());
                let address = None;
                Some((Box::new(stream), Peer { address, presented }))
            }
        }
    }
}

/// Why a Unix socket is not opened.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SocketError {
    /// A process listens there.
    #[error(
        "another process listens on {}; stop that one, or choose another file with --listen-socket", .0.display()
    )]
    InUse(PathBuf),
    /// It is something else.
    #[error(
        "{} exists and is no socket; choose another file with --listen-socket", .0.display()
    )]
    Other(PathBuf),
    /// The system refuses.
    #[error(
        "cannot listen on {}: {source}. Choose another file with --listen-socket, in a directory that this user may write to", path.display()
    )]
    System {
        /// The file.
        path: PathBuf,
        /// Its error.
        source: io::Error,
    },
}

/// A Unix socket that listens; its file is removed when it is dropped.
pub(crate) struct SocketFile {
    listener: UnixListener,
    path: PathBuf,
    /// Its device and number, by which it is known from one that has replaced it.
    file: (u64, u64),
}

impl SocketFile {
    /// Listens at a path.
    ///
    /// # Errors
    /// [`SocketError`].
    pub(crate) async fn open(path: &Path) -> Result<Self, SocketError> {
        let system = |source| SocketError::System {
            path: path.to_owned(),
            source,
        };
        // As long as it is locked, no other host takes a socket that does not listen yet for that of a dead one. Where directories
        // cannot be locked, hosts that start at the same instant are not kept apart.
        let directory = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        let directory = File::open(directory).map_err(system)?;
        let _ = directory.lock();
        clear(path).await?;
        let socket = UnixSocket::new_stream().map_err(system)?;
        socket.bind(path).map_err(system)?;
        // Before it listens, so that nobody else has connected by then.
        fs::set_permissions(path, Permissions::from_mode(MODE)).map_err(system)?;
        let made = fs::symlink_metadata(path).map_err(system)?;
        let listener = socket.listen(SOCKET_BACKLOG_MAX).map_err(system)?;
        Ok(Self {
            listener,
            path: path.to_owned(),
            file: (made.dev(), made.ino()),
        })
    }
}

/// Removes the socket of a dead host.
async fn clear(path: &Path) -> Result<(), SocketError> {
    let system = |source| SocketError::System {
        path: path.to_owned(),
        source,
    };
    let found = match fs::symlink_metadata(path) {
        Ok(found) => found,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(system(error)),
    };
    if !found.file_type().is_socket() {
        return Err(SocketError::Other(path.to_owned()));
    }
    let probe = UnixSocket::new_stream().map_err(system)?;
    match probe.connect(path).await {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            fs::remove_file(path).map_err(system)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        // A full queue is one of a living process, too.
        Ok(_) => Err(SocketError::InUse(path.to_owned())),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
            Err(SocketError::InUse(path.to_owned()))
        }
        Err(error) => Err(system(error)),
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let found = fs::symlink_metadata(&self.path);
        if found.is_ok_and(|found| (found.dev(), found.ino()) == self.file) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_socket_is_for_its_user_only_and_goes_with_its_door() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("mill.sock");
        let open = SocketFile::open(&path).await.expect("a socket");
        let mode = fs::metadata(&path).expect("a file").permissions().mode();
        assert_eq!(mode & 0o777, MODE);
        drop(open);
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn the_socket_of_a_dead_host_is_replaced_and_that_of_a_living_one_is_not() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("mill.sock");
        // As a process leaves it that is killed.
        drop(std::os::unix::net::UnixListener::bind(&path).expect("a socket"));
        let open = SocketFile::open(&path).await.expect("a socket");
        let refused = SocketFile::open(&path).await.err().expect("it is in use");
        assert!(matches!(refused, SocketError::InUse(_)), "{refused}");
        fs::remove_file(&path).expect("removed");
        let second = SocketFile::open(&path).await.expect("a socket");
        drop(open);
        assert!(path.exists(), "it is another one's by now");
        drop(second);
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn what_is_no_socket_stays() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("notes");
        fs::write(&path, "text").expect("written");
        let refused = SocketFile::open(&path)
            .await
            .err()
            .expect("it is no socket");
        assert!(matches!(refused, SocketError::Other(_)), "{refused}");
        assert_eq!(fs::read_to_string(&path).expect("text"), "text");
        let nowhere = directory.path().join("none/mill.sock");
        let refused = SocketFile::open(&nowhere)
            .await
            .err()
            .expect("no directory");
        assert!(refused.to_string().contains("none/mill.sock"), "{refused}");
    }
}
