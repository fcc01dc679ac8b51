//! Load on a host that is killed meanwhile: sends numbered messages and records which were
//! acknowledged.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::Result;
use millrace_tests::{Client, Host};
use serde_json::Value;

/// Messages per request.
const BATCH: u32 = 40;

/// The messages that two clients send to topic `in`, through several lives of the host.
pub(crate) struct Load {
    message: fn(u32) -> Value,
    next: AtomicU32,
    acknowledged: Mutex<Vec<u32>>,
}

impl Load {
    /// `message` creates the message with a number.
    pub(crate) fn of(message: fn(u32) -> Value) -> Self {
        Self {
            message,
            next: AtomicU32::new(0),
            acknowledged: Mutex::default(),
        }
    }

    /// Kills the host while the clients send, and starts it again.
    pub(crate) fn kill(&self, host: &mut Host) -> Result<()> {
        let clients = [host.client(), host.client()];
        std::thread::scope(|scope| {
            for client in &clients {
                scope.spawn(|| self.send_until_refused(client));
            }
            std::thread::sleep(Duration::from_millis(80 + fastrand::u64(0..250)));
            host.kill()
        })?;
        host.start_again()
    }

    fn send_until_refused(&self, client: &Client) {
        loop {
            let first = self.next.fetch_add(BATCH, Ordering::Relaxed);
            let numbers = first..first + BATCH;
            let batch: Vec<Value> = numbers.clone().map(self.message).collect();
            if client.produce("in", &batch).is_err() {
                return;
            }
            if let Ok(mut acknowledged) = self.acknowledged.lock() {
                acknowledged.extend(numbers);
            }
        }
    }

    /// The numbers of the acknowledged messages.
    pub(crate) fn acknowledged(self) -> Vec<u32> {
        self.acknowledged.into_inner().unwrap_or_default()
    }
}
