//! What an examination of a store without a host finds, for people and programs.

/// Maximum number of findings of one kind in a report; more are counted in one line.
pub const FINDINGS_OF_A_KIND_MAX: usize = 100;

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Severity {
    /// As it should be.
    Ok,
    /// Worth knowing; no promise is broken.
    Note,
    /// A promise is broken, or work stands still.
    Fault,
}

impl Severity {
    /// The word for it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Note => "note",
            Self::Fault => "fault",
        }
    }
}

/// A single finding.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// What it is about, such as a setting, a table or a session.
    pub place: String,
    /// What it means.
    pub meaning: String,
    /// What to do.
    pub advice: Option<String>,
}

impl Finding {
    /// Something is as it should be.
    #[must_use]
    pub fn ok(place: impl Into<String>, meaning: impl Into<String>) -> Self {
        Self::new(Severity::Ok, place, meaning)
    }

    /// Something worth knowing.
    #[must_use]
    pub fn note(place: impl Into<String>, meaning: impl Into<String>) -> Self {
        Self::new(Severity::Note, place, meaning)
    }

    /// Something that breaks a promise, or makes work stand still.
    #[must_use]
    pub fn fault(place: impl Into<String>, meaning: impl Into<String>) -> Self {
        Self::new(Severity::Fault, place, meaning)
    }

    fn new(severity: Severity, place: impl Into<String>, meaning: impl Into<String>) -> Self {
        Self {
            severity,
            place: place.into(),
            meaning: meaning.into(),
            advice: None,
        }
    }

    /// With what to do.
    #[must_use]
    pub fn advise(mut self, advice: impl Into<String>) -> Self {
        self.advice = Some(advice.into());
        self
    }
}

/// The worst severity; that of nothing is [`Severity::Ok`].
#[must_use]
pub fn worst(findings: &[Finding]) -> Severity {
    let severities = findings.iter().map(|finding| finding.severity);
    severities.max().unwrap_or(Severity::Ok)
}

/// Bytes for people.
#[must_use]
pub fn bytes(count: i64) -> String {
    let count = count.max(0);
    match count {
        0..1024 => format!("{count} B"),
        1024..1_048_576 => format!("{} KiB", count >> 10),
        1_048_576..1_073_741_824 => format!("{} MiB", count >> 20),
        _ => format!("{} GiB", count >> 30),
    }
}
