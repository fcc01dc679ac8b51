//! The bundled guests as components, built with the host, for the demo, the tests and the bench.
//! The first lines of each guest say what it does.
#![forbid(unsafe_code)]

/// A component with its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Guest {
    /// Its package's name, such as `quake-classifier`.
    pub name: &'static str,
    /// The bytes of the component.
    pub bytes: &'static [u8],
}

/// All guests.
#[must_use]
pub fn all() -> &'static [Guest] {
    ALL
}

/// The guest with this name.
#[must_use]
pub fn find(name: &str) -> Option<Guest> {
    ALL.iter().copied().find(|guest| guest.name == name)
}

/// Defines a constant with the bytes of each guest, and the list of all guests.
macro_rules! guests {
    ($($(#[$doc:meta])* $constant:ident = $name:literal;)*) => {
        $(
            $(#[$doc])*
            pub const $constant: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/", $name, ".wasm"));
        )*

        const ALL: &[Guest] = &[$(Guest { name: $name, bytes: $constant }),*];
    };
}

guests! {
    /// Converts values to ASCII upper case.
    UPPERCASE = "uppercase";
    /// Passes orders of 100 and more.
    FILTER = "filter";
    /// Sends each message to the topic in its header.
    ROUTE = "route";
    /// Forwards each message as its headers say.
    FORWARD = "forward";
    /// Emits every message unchanged.
    PASSTHROUGH = "passthrough";
    /// Passes messages through with the header revision: 1.
    STAMP_1 = "stamp-1";
    /// Passes messages through with the header revision: 2.
    STAMP_2 = "stamp-2";
    /// Classifies earthquakes, revision 1.
    QUAKE_CLASSIFIER = "quake-classifier";
    /// Classifies earthquakes, revision 2.
    QUAKE_CLASSIFIER_2 = "quake-classifier-2";
    /// Chooses partitions for earthquakes by the region of their seismic network.
    REGION_PARTITIONER = "region-partitioner";
    /// An error handler that waits patiently for busy services.
    PATIENT_ERRORS = "patient-errors";
    /// Counts the messages of each key in state.
    COUNTER = "counter";
    /// Counts the messages of each key in its own memory.
    FORGETFUL_COUNTER = "forgetful-counter";
    /// Counts the messages of each key in state, in values of a hundred bytes.
    PADDED_COUNTER = "padded-counter";
    /// Counts the messages of each key in state, and then fails as a header says.
    MISCOUNT = "miscount";
    /// Fails as often as a header says.
    FLAKY = "flaky";
    /// Computes as long as a header says.
    SLOW = "slow";
    /// Traps on one value.
    POISON = "poison";
    /// Never returns on one value.
    ENDLESS = "endless";
    /// Allocates memory without bound on one value.
    HOARD = "hoard";
    /// Fills its state as its messages say.
    FILL = "fill";
    /// Returns malformed answers, chosen by the value.
    BABBLE = "babble";
    /// Recurses without bound on one value.
    DEEP = "deep";
    /// Floods its log on one value.
    CHATTY = "chatty";
    /// Sends HTTP requests as its messages say.
    FETCH = "fetch";
    /// Sends each message to a server by HTTP, and decides by the status what becomes of it.
    HTTP_SINK = "http-sink";
    /// Answers questions about the state of processors in JSON.
    QUERY = "query";
    /// Takes webhooks of Twilio and Meta in, and keeps the last message of each sender.
    WEBHOOK = "webhook";
    /// Answers HTTP requests as their paths say.
    WEB = "web";
    /// A component of WASI messaging that sends, forwards and fails as its messages say.
    MESSENGER = "messenger";
    /// Sends messages and reads state as its requests say.
    COURIER = "courier";
    /// Tries to reach out of its sandbox.
    SOCKET = "socket";
    /// Imports an interface that no host has.
    OUTSIDER = "outsider";
    /// Gives away what it may know: secrets, settings, metrics, as the value says.
    BLABBER = "blabber";
    /// The processor of the conformance scenario, in Rust.
    CONFORMANCE = "conformance-rust";
    /// Traps during instantiation.
    START_TRAP = "start-trap";
    /// Writes without line ends, or lines that are too long, as the value says.
    MUMBLE = "mumble";
    /// Starts with 100 MiB of memory.
    BEGINS_LARGE = "begins-large";
}
