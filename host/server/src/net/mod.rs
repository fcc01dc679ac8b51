//! What every front door stands on, whatever it speaks: so many connections at once, patience within bounds, memory that all doors
//! share, and a polite end.
//!
//! A connection comes in at the [`Listener`], gets one of its [`places`](Places), and is handed to whoever serves it as a
//! [`Connection`]. What happens on it stands in its [`Line`], by which others judge it. [`Doors`] holds the listeners of one host,
//! and [`Budgets`] the memory that is theirs together. Nothing here knows a protocol.

pub(crate) mod bounds;
mod budgets;
mod connection;
mod doors;
mod line;
mod listener;
mod places;
mod stream;

pub(crate) use budgets::{Budgets, Room};
pub(crate) use connection::{Connection, Seat};
pub(crate) use doors::Doors;
pub(crate) use line::{Line, Phase};
pub(crate) use listener::Listener;
pub(crate) use places::{DoorLimits, Places};
pub(crate) use stream::Impatient;
