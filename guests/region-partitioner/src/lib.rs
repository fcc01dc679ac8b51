//! A partitioner that keeps events of one region together and in order, by the seismic network that
//! reported them.

use millrace_guest::{Message, partitioner};

partitioner!(choose);

fn choose(message: &Message, partitions: u32) -> u32 {
    let region = match quakes::parse(message) {
        Ok(quake) => quakes::region(&quake.properties.net),
        // Not an event: any partition is fine if it is always the same for a key.
        Err(_) => quakes::hash(message.key().unwrap_or_default()),
    };
    region % partitions
}
