//! Classifies earthquakes by magnitude and depth; revision 2 of the demo's processor. A header of
//! its outputs names the revision.

use millrace_guest::{Message, Outcome, processor};

processor!(process);

fn process(message: &Message) -> Outcome {
    let depth = |quake: &quakes::Quake| {
        let depth_km = quake.geometry.coordinates[2];
        format!(r#","depth":"{}""#, quakes::depth_class(depth_km))
    };
    match quakes::classify(message, 2, depth) {
        Outcome::Emit(output) => Outcome::Emit(output.header("classifier", "2")),
        outcome => outcome,
    }
}
