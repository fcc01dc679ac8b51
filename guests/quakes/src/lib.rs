//! Seismic events as the U.S. Geological Survey publishes them, and the common code of both
//! revisions of the classifier.

use std::borrow::Cow;
use std::io::Write;
use std::time::Duration;

use millrace_guest::{Message, Outcome};
use serde::Deserialize;

/// The part of an event, a GeoJSON feature, that the demo uses.
#[derive(Debug, Deserialize)]
pub struct Quake<'a> {
    /// The id: network and code.
    #[serde(borrow)]
    pub id: Cow<'a, str>,
    /// The measurements.
    #[serde(borrow)]
    pub properties: Properties<'a>,
    /// The location.
    pub geometry: Geometry,
}

/// The measurements.
#[derive(Debug, Deserialize)]
pub struct Properties<'a> {
    /// Magnitude; small ones can be negative.
    pub mag: f64,
    /// The kind, such as `earthquake`, `explosion` or `quarry blast`.
    #[serde(borrow, rename = "type")]
    pub kind: Cow<'a, str>,
    /// The seismic network that reported it.
    #[serde(borrow)]
    pub net: Cow<'a, str>,
}

/// The location.
#[derive(Debug, Deserialize)]
pub struct Geometry {
    /// Longitude, latitude, depth in kilometres.
    pub coordinates: [f64; 3],
}

/// Parses the value of a message.
pub fn parse<'a>(message: &Message<'a>) -> Result<Quake<'a>, serde_json::Error> {
    serde_json::from_slice(message.value().unwrap_or_default())
}

/// Sends strong events to `alerts` and the others to the default output, each with more fields at
/// its end. Rejects events that are not earthquakes. One event in ten fails once because of a busy
/// service.
pub fn classify(message: &Message, revision: u32, more: fn(&Quake) -> String) -> Outcome {
    let quake = match parse(message) {
        Ok(quake) => quake,
        Err(error) => return Outcome::reject("not-a-quake", error.to_string()),
    };
    if quake.properties.kind != "earthquake" {
        return Outcome::reject(
            "not-an-earthquake",
            format!("it is: {}", quake.properties.kind),
        );
    }
    if message.attempt() == 1 && is_slow_to_look_up(&quake) {
        let after = Duration::from_millis(50);
        return Outcome::retry_after(after, "busy", "the station register is busy");
    }
    let output = message.output().build_value(|buffer| {
        let value = message.value().unwrap_or_default().trim_ascii_end();
        buffer.extend_from_slice(&value[..value.len() - 1]);
        let class = magnitude_class(quake.properties.mag);
        let more = more(&quake);
        write!(
            buffer,
            r#","class":"{class}","revision":{revision}{more}}}"#
        )
        .expect("a buffer in memory takes everything");
    });
    Outcome::Emit(match quake.properties.mag {
        4.5.. => output.topic("alerts"),
        _ => output,
    })
}

/// The usual word for a magnitude.
#[must_use]
pub fn magnitude_class(magnitude: f64) -> &'static str {
    match magnitude {
        ..2.0 => "micro",
        ..4.0 => "minor",
        ..5.0 => "light",
        ..6.0 => "moderate",
        ..7.0 => "strong",
        ..8.0 => "major",
        _ => "great",
    }
}

/// The usual word for a depth in kilometres.
#[must_use]
pub fn depth_class(depth_km: f64) -> &'static str {
    match depth_km {
        ..70.0 => "shallow",
        ..300.0 => "intermediate",
        _ => "deep",
    }
}

/// The region that a network watches: 0 southern California, 1 northern California, 2 the Pacific (Alaska, Hawaii, the
/// north-west), 3 everywhere else.
#[must_use]
pub fn region(network: &str) -> u32 {
    match network {
        "ci" => 0,
        "nc" => 1,
        "ak" | "hv" | "uw" => 2,
        _ => 3,
    }
}

/// True for a tenth of the events, always the same ones.
fn is_slow_to_look_up(quake: &Quake) -> bool {
    hash(quake.id.as_bytes()).is_multiple_of(10)
}

/// The FNV-1a hash.
#[must_use]
pub fn hash(bytes: &[u8]) -> u32 {
    let mix = |hash: u32, byte: &u8| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193);
    bytes.iter().fold(0x811c_9dc5, mix)
}

#[cfg(test)]
mod tests {
    use millrace_guest::Sample;

    use super::*;

    fn event(id: &str, kind: &str, magnitude: f64) -> String {
        format!(
            r#"{{"properties":{{"mag":{magnitude},"type":"{kind}","net":"ci","felt":null}},"geometry":{{"coordinates":[1,2,3.5]}},"id":"{id}"}}"#
        )
    }

    #[test]
    fn strong_events_go_to_alerts_and_blasts_are_rejected() {
        let columns = Sample::new("quakes")
            .message("a", event("a", "earthquake", 5.1))
            .attempt(2)
            .message("b", event("b", "quarry blast", 1.0))
            .message("c", event("c", "earthquake", -0.4))
            .attempt(2)
            .columns();
        let answer =
            millrace_guest::process(columns, |message| classify(message, 1, |_| String::new()));
        let answer = answer.unwrap();
        assert_eq!(answer.outcomes, [1, 3, 1]);
        assert_eq!(
            (answer.topic_names, answer.topics),
            (vec!["alerts".into()], vec![0, u32::MAX])
        );
        assert!(
            String::from_utf8(answer.data)
                .unwrap()
                .contains(r#""id":"a","class":"moderate","revision":1}"#)
        );
    }

    #[test]
    fn one_event_in_ten_is_retried_and_only_once() {
        let sample = |attempt| {
            (0..1_000).fold(Sample::new("quakes"), |sample, number| {
                let id = format!("ci{number}");
                sample
                    .message(&id, event(&id, "earthquake", 1.0))
                    .attempt(attempt)
            })
        };
        let retries = |attempt| {
            let answer = millrace_guest::process(sample(attempt).columns(), |message| {
                classify(message, 1, |_| String::new())
            });
            answer.unwrap().details.len()
        };
        assert!((50..200).contains(&retries(1)), "{}", retries(1));
        assert_eq!(retries(2), 0);
    }
}
