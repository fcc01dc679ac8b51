//! WASI's packages that the world of a component for HTTP refers to. Other components need no text of WASI: their toolchains bring it, or
//! the adapter answers their calls.

use crate::world::Kind;

/// The version, which the host links.
pub(crate) const VERSION: &str = "0.2.12";

/// The packages' names and texts, each after those that it refers to.
pub const WASI: [(&str, &str); 3] = [
    ("wasi-io", include_str!("../wasi/io.wit")),
    ("wasi-clocks", include_str!("../wasi/clocks.wit")),
    ("wasi-http", include_str!("../wasi/http.wit")),
];

/// How the names of their interfaces begin.
const PACKAGES: [&str; 3] = ["wasi:io/", "wasi:clocks/", "wasi:http/"];

/// Whether the world of a component of this kind with these imports refers to them.
#[must_use]
pub fn needs_wasi(kind: Kind, imports: &[String]) -> bool {
    kind == Kind::Http || imports.iter().any(|name| name.starts_with("wasi:"))
}

/// Whether an interface is one of theirs.
pub(crate) fn has(interface: &str) -> bool {
    let name = interface.strip_suffix(VERSION);
    let name = name.and_then(|name| name.strip_suffix('@'));
    name.is_some_and(|name| PACKAGES.iter().any(|package| name.starts_with(package)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_packages_have_one_version_and_refer_to_those_before_them() {
        for (at, (package, text)) in WASI.iter().enumerate() {
            let name = package.replacen('-', ":", 1);
            assert!(
                text.contains(&format!("package {name}@{VERSION};")),
                "{name}"
            );
            for (later, _) in &WASI[at + 1..] {
                let later = later.replacen('-', ":", 1);
                assert!(!text.contains(&format!("{later}/")), "{name} uses {later}");
            }
        }
        assert!(has("wasi:http/types@0.2.12") && has("wasi:io/poll@0.2.12"));
        for other in [
            "wasi:http/types@0.2.0",
            "wasi:http/types",
            "wasi:random/random@0.2.12",
        ] {
            assert!(!has(other), "{other}");
        }
    }
}
