//! Passes an operator's orders about parked messages to the worker that holds them, because only
//! the worker changes progress. A worker looks for orders between two batches and while it waits.
//! The caller waits for the answer, and withdraws the order if the worker does not reach it in
//! time.

use std::collections::VecDeque;
use std::sync::Arc;

use millrace_model::{Offset, Progress};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use crate::dispatch::input::Input;

/// A worker's parked messages.
pub(crate) struct ParkedIn {
    pub(crate) input: Input,
    /// `None` if the worker has not read them yet.
    pub(crate) progress: Option<Arc<Progress>>,
}

/// What to do with a parked message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ParkedAction {
    /// Make it due now.
    TryNow,
    /// Turn it into a dead letter, as if its attempts were spent.
    GiveUp,
}

/// The parked messages of a partition that an order applies to.
#[derive(Clone, Debug)]
pub(crate) enum Meant {
    /// The messages at these offsets.
    Offsets(Vec<Offset>),
    /// Messages whose last attempt failed with this class.
    Class(String),
    All,
}

/// The result of an order.
#[derive(Debug, Default)]
pub(crate) struct Obeyed {
    /// Number of messages that the order was applied to.
    pub(crate) done: usize,
    /// Named messages that were not handled, with the reason.
    pub(crate) left: Vec<(Offset, String)>,
}

/// An order.
pub(crate) struct Order {
    pub(crate) action: ParkedAction,
    pub(crate) meant: Meant,
    /// The caller's name, for the evidence.
    pub(crate) by: Option<String>,
    pub(crate) answer: oneshot::Sender<Result<Obeyed, String>>,
}

/// The orders that wait for one worker.
#[derive(Clone, Default)]
pub(crate) struct Orders(Arc<Mutex<Waiting>>);

#[derive(Default)]
struct Waiting {
    /// Number of orders that were ever put; numbers the next one.
    count: u64,
    orders: VecDeque<(u64, Order)>,
}

impl Orders {
    /// Adds an order; returns the number that withdraws it.
    pub(crate) fn put(&self, order: Order) -> u64 {
        let mut waiting = self.0.lock();
        waiting.count += 1;
        let number = waiting.count;
        waiting.orders.push_back((number, order));
        number
    }

    /// Takes the next order. From here on it can no longer be withdrawn.
    pub(crate) fn take(&self) -> Option<Order> {
        self.0.lock().orders.pop_front().map(|(_, order)| order)
    }

    /// Withdraws an order; false if a worker has already taken it.
    pub(crate) fn take_back(&self, number: u64) -> bool {
        let mut waiting = self.0.lock();
        let before = waiting.orders.len();
        waiting.orders.retain(|(known, _)| *known != number);
        waiting.orders.len() < before
    }

    /// Whether any orders wait.
    pub(crate) fn wait(&self) -> bool {
        !self.0.lock().orders.is_empty()
    }
}
