//! Names that people choose, parsed once: a value of these types is a valid name, and no path is ever built from raw text.

use std::fmt;
use std::sync::{Arc, LazyLock};

use serde::{Deserialize, Serialize};

use crate::advice::{Advice, Advised};
use crate::bounds::{
    CONSUMER_NAME_CHARS_MAX, PRINCIPAL_NAME_CHARS_MAX, PROCESSOR_NAME_CHARS_MAX,
    SCHEDULE_NAME_CHARS_MAX, SECRET_NAME_CHARS_MAX, TENANT_NAME_CHARS_MAX, TOKEN_NAME_CHARS_MAX,
    TOPIC_NAME_CHARS_MAX,
};
use crate::codes::Code;

/// Why a text is not a valid name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// The text is empty.
    #[error("a {kind} name cannot be empty")]
    Empty {
        /// The kind of name.
        kind: &'static str,
    },
    /// Longer than the bound.
    #[error("a {kind} name has at most {max} characters; this one has {length}")]
    TooLong {
        /// The kind of name.
        kind: &'static str,
        /// The bound.
        max: usize,
        /// The text's length.
        length: usize,
    },
    /// A character outside the allowed set.
    #[error("a {kind} name uses letters, digits, '.', '_' and '-' only; found {found:?}")]
    Character {
        /// The kind of name.
        kind: &'static str,
        /// The first character that is not allowed.
        found: char,
    },
    /// `.` and `..` have a meaning in file systems, and `__` is reserved for the host.
    #[error("{name:?} is reserved; choose another {kind} name")]
    Reserved {
        /// The kind of name.
        kind: &'static str,
        /// The name that was given.
        name: String,
    },
}

impl Advised for NameError {
    fn advice(&self) -> Advice {
        Code::BadName.advice()
    }
}

fn check(kind: &'static str, name: &str, max: usize) -> Result<(), NameError> {
    if name.is_empty() {
        return Err(NameError::Empty { kind });
    }
    if name.len() > max {
        return Err(NameError::TooLong {
            kind,
            max,
            length: name.chars().count(),
        });
    }
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if let Some(found) = name.chars().find(|&c| !allowed(c)) {
        return Err(NameError::Character { kind, found });
    }
    if name == "." || name == ".." || name.starts_with("__") {
        return Err(NameError::Reserved {
            kind,
            name: name.to_owned(),
        });
    }
    Ok(())
}

macro_rules! name_type {
    ($(#[$doc:meta])* $name:ident, $kind:literal, $max:expr) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(Arc<str>);

        impl $name {
            /// Parses the text.
            ///
            /// # Errors
            /// [`NameError`] says which rule the text breaks.
            pub fn parse(name: &str) -> Result<Self, NameError> {
                check($kind, name, $max)?;
                Ok(Self(name.into()))
            }

            /// The name as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl TryFrom<String> for $name {
            type Error = NameError;
            fn try_from(name: String) -> Result<Self, NameError> {
                Self::parse(&name)
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> Self {
                name.as_str().to_owned()
            }
        }

        impl From<&$name> for Arc<str> {
            fn from(name: &$name) -> Self {
                Self::clone(&name.0)
            }
        }

        impl std::str::FromStr for $name {
            type Err = NameError;
            fn from_str(name: &str) -> Result<Self, NameError> {
                Self::parse(name)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(self.as_str())
            }
        }
    };
}

name_type!(
    /// A topic's name: 1 to 249 letters, digits, `.`, `_`, `-`, as in Kafka.
    TopicName,
    "topic",
    TOPIC_NAME_CHARS_MAX
);
name_type!(
    /// A processor's name; also the name of its consumer group.
    ProcessorName,
    "processor",
    PROCESSOR_NAME_CHARS_MAX
);

name_type!(
    /// A schedule's name.
    ScheduleName,
    "schedule",
    SCHEDULE_NAME_CHARS_MAX
);

name_type!(
    /// The name of a topic's consumer; another topic may have one with the same name.
    ConsumerName,
    "consumer",
    CONSUMER_NAME_CHARS_MAX
);

name_type!(
    /// The name of a secret of the host.
    SecretName,
    "secret",
    SECRET_NAME_CHARS_MAX
);

name_type!(
    /// The name of a principal: a person or a program that may be given rights.
    PrincipalName,
    "principal",
    PRINCIPAL_NAME_CHARS_MAX
);

name_type!(
    /// The name of a principal's token; another principal may have one with the same name.
    TokenName,
    "token",
    TOKEN_NAME_CHARS_MAX
);

name_type!(
    /// The owner of a name. Each tenant has its own names, and two tenants may use the same name.
    Tenant,
    "tenant",
    TENANT_NAME_CHARS_MAX
);

/// Separates a tenant from a name in stored names. No name contains it.
const TENANT_END: char = '/';
/// The tenant of names without a tenant.
const DEFAULT_TENANT: &str = "default";

impl Default for Tenant {
    fn default() -> Self {
        static DEFAULT: LazyLock<Arc<str>> = LazyLock::new(|| DEFAULT_TENANT.into());
        Self(Arc::clone(&DEFAULT))
    }
}

impl Tenant {
    /// The stored form of a name of this tenant: the name itself for the default tenant,
    /// `tenant/name` for others.
    #[must_use]
    pub fn stored(&self, name: &str) -> String {
        match self.as_str() {
            DEFAULT_TENANT => name.to_owned(),
            tenant => format!("{tenant}{TENANT_END}{name}"),
        }
    }

    /// The tenant of a stored name, and the name itself.
    ///
    /// # Errors
    /// [`NameError`] if the part before the slash is not a tenant's name. The default tenant is
    /// never stored, because that would be a second spelling of the same name.
    pub fn of_stored(stored: &str) -> Result<(Self, &str), NameError> {
        let Some((tenant, name)) = stored.split_once(TENANT_END) else {
            return Ok((Self::default(), stored));
        };
        match Self::parse(tenant)? {
            tenant if tenant == Self::default() => Err(NameError::Reserved {
                kind: "tenant",
                name: tenant.to_string(),
            }),
            tenant => Ok((tenant, name)),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_stored_name_says_whose_it_is(
            tenant in "[a-z0-9][a-z0-9._-]{0,30}", name in "[A-Za-z0-9][A-Za-z0-9._-]{0,40}",
        ) {
            let tenant = Tenant::parse(&tenant).unwrap();
            let stored = tenant.stored(&name);
            prop_assert_eq!(Tenant::of_stored(&stored).unwrap(), (tenant, name.as_str()));
        }

        #[test]
        fn names_of_two_tenants_are_never_stored_alike(
            one in "[a-c]{1,2}", other in "[a-c]{1,2}", name in "[a-c]{1,2}", another in "[a-c]{1,2}",
        ) {
            let stored = |tenant: &str, name: &str| Tenant::parse(tenant).unwrap().stored(name);
            let alike = stored(&one, &name) == stored(&other, &another);
            prop_assert_eq!(alike, one == other && name == another);
        }
    }

    #[test]
    fn a_name_that_says_no_tenant_is_the_default_tenants() {
        let default = Tenant::default();
        assert_eq!(default.stored("orders"), "orders");
        assert_eq!(Tenant::of_stored("orders").unwrap(), (default, "orders"));
        for stored in ["default/orders", "/orders", "a b/orders"] {
            assert!(Tenant::of_stored(stored).is_err(), "{stored}");
        }
        assert!(
            TopicName::parse("acme/orders").is_err(),
            "no name contains it"
        );
    }

    #[test]
    fn ordinary_names_are_accepted_and_print_as_given() {
        for name in ["orders", "a", "Orders.v2_eu-west", &"x".repeat(249)] {
            assert_eq!(TopicName::parse(name).unwrap().to_string(), name);
        }
    }

    #[test]
    fn names_that_could_be_paths_markup_or_internals_are_refused() {
        for name in [
            "",
            ".",
            "..",
            "a/b",
            "a\0b",
            "<script>",
            "é",
            "__x",
            &"x".repeat(250),
        ] {
            assert!(TopicName::parse(name).is_err(), "{name:?} must be refused");
        }
    }

    #[test]
    fn deserialising_checks_the_name_too() {
        assert!(serde_json::from_str::<TopicName>("\"fine\"").is_ok());
        assert!(serde_json::from_str::<TopicName>("\"../etc\"").is_err());
    }
}
