//! A partitioner: events of one region, by the seismic network that reports them, stay together and in order.

use millrace_guest::{Message, partitioner};

partitioner!(choose);

fn choose(message: &Message, partitions: u32) -> u32 {
    let region = match quakes::parse(message) {
        Ok(quake) => quakes::region(&quake.properties.net),
        // Not an event: anywhere will do, as long as it is the same place for the same key.
        Err(_) => quakes::hash(message.key().unwrap_or_default()),
    };
    region % partitions
}
