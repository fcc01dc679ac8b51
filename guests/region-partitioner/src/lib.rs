//! A partitioner: keeps the events of one region, known by the seismic network that reports them,
//! together and in order.

use millrace_guest::{Message, partitioner};

partitioner!(choose);

fn choose(message: &Message, partitions: u32) -> u32 {
    let region = match quakes::parse(message) {
        Ok(quake) => quakes::region(&quake.properties.net),
        // Not an event: any partition will do, as long as the same key gets the same one.
        Err(_) => quakes::hash(message.key().unwrap_or_default()),
    };
    region % partitions
}
