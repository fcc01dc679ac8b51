//! What an operator wants done with parked messages, on its way to the worker that has them: it alone changes progress. A worker looks
//! between two batches, and while it waits for whatever; the one who asks waits for its answer, and takes the order back if it does not
//! come to it in time.

use std::collections::VecDeque;
use std::sync::Arc;

use millrace_model::{Offset, Progress};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use crate::dispatch::input::Input;

/// A worker's parked messages, as they are.
pub(crate) struct ParkedIn {
    pub(crate) input: Input,
    /// `None` if the worker has not read them yet.
    pub(crate) progress: Option<Arc<Progress>>,
}

/// What is to be done with a parked message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ParkedAction {
    /// It is due now.
    TryNow,
    /// It becomes a dead letter, as if its attempts were spent.
    GiveUp,
}

/// Which of a partition's parked messages are meant.
#[derive(Clone, Debug)]
pub(crate) enum Meant {
    /// These.
    Offsets(Vec<Offset>),
    /// Those whose last attempt failed under this class.
    Class(String),
    All,
}

/// What became of an order.
#[derive(Debug, Default)]
pub(crate) struct Obeyed {
    /// Messages that it was done with.
    pub(crate) done: usize,
    /// Messages that were named and that it was not done with, and why.
    pub(crate) left: Vec<(Offset, String)>,
}

/// An order.
pub(crate) struct Order {
    pub(crate) action: ParkedAction,
    pub(crate) meant: Meant,
    /// Who asks, for the evidence.
    pub(crate) by: Option<String>,
    pub(crate) answer: oneshot::Sender<Result<Obeyed, String>>,
}

/// The orders that wait for one worker.
#[derive(Clone, Default)]
pub(crate) struct Orders(Arc<Mutex<Waiting>>);

#[derive(Default)]
struct Waiting {
    /// So many came so far.
    count: u64,
    orders: VecDeque<(u64, Order)>,
}

impl Orders {
    /// Adds one; by what it can be taken back.
    pub(crate) fn put(&self, order: Order) -> u64 {
        let mut waiting = self.0.lock();
        waiting.count += 1;
        let number = waiting.count;
        waiting.orders.push_back((number, order));
        number
    }

    /// The next one, which is obeyed from here on.
    pub(crate) fn take(&self) -> Option<Order> {
        self.0.lock().orders.pop_front().map(|(_, order)| order)
    }

    /// Takes one back; false if a worker has it already.
    pub(crate) fn take_back(&self, number: u64) -> bool {
        let mut waiting = self.0.lock();
        let before = waiting.orders.len();
        waiting.orders.retain(|(known, _)| *known != number);
        waiting.orders.len() < before
    }

    /// Whether any waits.
    pub(crate) fn wait(&self) -> bool {
        !self.0.lock().orders.is_empty()
    }
}
