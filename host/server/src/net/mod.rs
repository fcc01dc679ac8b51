//! What every door has in common, whatever its protocol: a bound on connections, timeouts, memory
//! shared by all doors, and an orderly end.
//!
//! The [`Listener`] accepts a connection, gives it one of its [`places`](Places), and hands it to
//! the door as a [`Connection`]. Its [`Line`] shows what is happening on it; timeouts and evictions
//! go by that. [`Doors`] holds the listeners of one host, and [`Budgets`] the memory that they
//! share. Nothing here knows a protocol.

pub(crate) mod bounds;
mod budgets;
mod certificate;
mod connection;
mod doors;
mod line;
mod listener;
mod peer;
mod places;
mod socket;
mod stream;
mod tls;

pub(crate) use budgets::{Budgets, Room};
pub(crate) use connection::{Connection, Seat};
pub(crate) use doors::Doors;
pub(crate) use line::{Line, Phase};
pub(crate) use listener::Listener;
pub(crate) use peer::Presented;
pub(crate) use places::{DoorLimits, Places};
pub(crate) use socket::{Socket, SocketError, SocketFile};
pub(crate) use stream::{Duplex, Impatient};
pub(crate) use tls::{ClientFiles, Tls, TlsError, TlsFiles, Trust};
