//! The world of a project: what its component imports and exports, written as WIT from its kind and its list of imports.

use std::fmt;

use crate::wasi;

/// The name of the package and of the world that are generated.
pub const WORLD: (&str, &str) = ("user:module", "module");

/// The package of our interfaces.
pub(crate) const PACKAGE: &str = "millrace:broker";
/// The standard interface of a component that answers HTTP.
const HTTP_EXPORT: &str = "wasi:http/incoming-handler";

/// What a component is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Processes messages.
    Processor,
    /// Chooses partitions.
    Partitioner,
    /// Decides about failures.
    ErrorHandler,
    /// Answers HTTP requests.
    Http,
}

impl Kind {
    /// All kinds.
    pub const ALL: [Self; 4] = [
        Self::Processor,
        Self::Partitioner,
        Self::ErrorHandler,
        Self::Http,
    ];

    /// The kind's word.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Processor => "processor",
            Self::Partitioner => "partitioner",
            Self::ErrorHandler => "error-handler",
            Self::Http => "http",
        }
    }

    /// The kind with this word.
    #[must_use]
    pub fn of(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == word)
    }

    /// The interfaces that a component of this kind imports if its project does not say.
    #[must_use]
    pub fn imports_default(self) -> &'static [&'static str] {
        match self {
            Self::Processor => &["log", "state", "config"],
            Self::Partitioner => &["log"],
            Self::ErrorHandler | Self::Http => &["log", "config"],
        }
    }

    /// The interface that a component of this kind exports, with its version.
    #[must_use]
    pub fn export(self, contract: &Contract<'_>) -> String {
        match self {
            Self::Processor => contract.interface("message-processor"),
            Self::Partitioner => contract.interface("partitioner"),
            Self::ErrorHandler => contract.interface("error-handler"),
            Self::Http => contract.full_name(HTTP_EXPORT),
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The contract's WIT files.
#[derive(Clone, Copy, Debug)]
pub struct Contract<'a> {
    /// Name and text of each file of our package.
    pub files: &'a [(&'a str, &'a str)],
}

impl Contract<'_> {
    /// The version that the files give for our package; empty if they give none.
    #[must_use]
    pub fn version(&self) -> &str {
        let versions = self.files.iter().find_map(|(_, text)| {
            let line = text.lines().find(|line| line.starts_with("package "))?;
            let (_, version) = line.split_once('@')?;
            Some(version.trim_end_matches(';').trim())
        });
        versions.unwrap_or_default()
    }

    /// The full name of one of our interfaces.
    #[must_use]
    pub fn interface(&self, name: &str) -> String {
        format!("{PACKAGE}/{name}@{}", self.version())
    }

    /// The full name of an interface that a project names: one of ours, one of WASI's, or a full name as it is.
    #[must_use]
    pub fn full_name(&self, name: &str) -> String {
        match name.contains(':') {
            true if name.starts_with("wasi:") && !name.contains('@') => {
                format!("{name}@{}", wasi::VERSION)
            }
            true => name.to_owned(),
            false => self.interface(name),
        }
    }

    /// The interfaces that a component may import.
    #[must_use]
    pub fn importable(&self) -> Vec<&str> {
        let exported = ["message-processor", "partitioner", "error-handler", "types"];
        let declared = self.files.iter().flat_map(|(_, text)| {
            let names = text.lines().filter_map(|line| {
                let rest = line.strip_prefix("interface ")?;
                rest.split([' ', '{']).next()
            });
            names.filter(|name| !exported.contains(name))
        });
        declared.collect()
    }
}

/// A project wants an interface that the contract does not have.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("there is no interface {name:?} to import; a component may import {}", .known.join(", "))]
pub struct UnknownImport {
    name: String,
    known: Vec<String>,
}

/// The world of a project as WIT. A full name such as `example:pay/api@1.0.0` is imported as it is; `wasi:http/outgoing-handler` gets its
/// version.
///
/// # Errors
/// [`UnknownImport`].
pub fn world(
    contract: &Contract<'_>,
    kind: Kind,
    imports: &[String],
) -> Result<String, UnknownImport> {
    let known = contract.importable();
    let mut text = format!("package {};\n\nworld {} {{\n", WORLD.0, WORLD.1);
    for name in imports {
        if !name.contains(':') && !known.contains(&name.as_str()) {
            return Err(UnknownImport {
                name: name.clone(),
                known: known.iter().map(|&name| name.to_owned()).collect(),
            });
        }
        text.push_str(&format!("  import {};\n", contract.full_name(name)));
    }
    text.push_str(&format!("  export {};\n}}\n", kind.export(contract)));
    Ok(text)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// The contract of this repository.
    pub(crate) const CONTRACT: Contract<'static> = Contract {
        files: &[
            ("config.wit", include_str!("../../../wit/config.wit")),
            (
                "error-handler.wit",
                include_str!("../../../wit/error-handler.wit"),
            ),
            ("log.wit", include_str!("../../../wit/log.wit")),
            (
                "message-processor.wit",
                include_str!("../../../wit/message-processor.wit"),
            ),
            ("metrics.wit", include_str!("../../../wit/metrics.wit")),
            (
                "partitioner.wit",
                include_str!("../../../wit/partitioner.wit"),
            ),
            ("producer.wit", include_str!("../../../wit/producer.wit")),
            ("secrets.wit", include_str!("../../../wit/secrets.wit")),
            ("state.wit", include_str!("../../../wit/state.wit")),
            ("types.wit", include_str!("../../../wit/types.wit")),
            ("views.wit", include_str!("../../../wit/views.wit")),
        ],
    };

    #[test]
    fn the_world_has_the_imports_and_the_export_of_the_kind() {
        let imports = ["log", "metrics"].map(str::to_owned);
        let text = world(&CONTRACT, Kind::Partitioner, &imports).expect("a world");
        let version = CONTRACT.version();
        assert!(version.starts_with("0.1."), "{version}");
        assert_eq!(
            text,
            format!(
                "package user:module;\n\nworld module {{\n  import millrace:broker/log@{version};\n  import \
                 millrace:broker/metrics@{version};\n  export millrace:broker/partitioner@{version};\n}}\n"
            )
        );
    }

    #[test]
    fn the_world_of_a_component_for_http_has_wasis_export_and_no_state_unless_asked() {
        let http = Kind::Http.imports_default();
        assert!(!http.contains(&"state"), "a route has none");
        let imports = [
            "producer",
            "wasi:http/outgoing-handler",
            "example:pay/api@1.0.0",
        ];
        let text = world(&CONTRACT, Kind::Http, &imports.map(str::to_owned)).expect("a world");
        let producer = CONTRACT.interface("producer");
        for line in [
            format!("import {producer};"),
            "import wasi:http/outgoing-handler@0.2.12;".to_owned(),
            "import example:pay/api@1.0.0;".to_owned(),
            "export wasi:http/incoming-handler@0.2.12;".to_owned(),
        ] {
            assert!(text.contains(&line), "{line}: {text}");
        }
    }

    #[test]
    fn an_import_that_does_not_exist_is_refused_with_those_that_do() {
        let error = world(&CONTRACT, Kind::Processor, &["logs".to_owned()]).expect_err("refused");
        let text = error.to_string();
        assert!(
            text.contains("\"logs\"")
                && text.contains("config, log, metrics, producer, secrets, state, views"),
            "{text}"
        );
    }
}
