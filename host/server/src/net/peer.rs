//! Who is on the other side of a connection, as far as the connection itself says.

use std::net::IpAddr;
use std::sync::Arc;

use super::certificate::ClientCertificate;

/// The other side of a connection.
#[derive(Clone, Debug, Default)]
pub(crate) struct Peer {
    /// Its address; `None` on a Unix socket, or if the system does not say.
    pub(crate) address: Option<IpAddr>,
    /// What proves who it is.
    pub(crate) presented: Presented,
}

/// What a connection proves about the other side.
#[derive(Clone, Debug, Default)]
pub(crate) enum Presented {
    /// Nothing.
    #[default]
    Nothing,
    /// A client's certificate that an authority of ours has signed.
    Certificate(Arc<ClientCertificate>),
    /// The user of this machine with this number.
    User(u32),
}
