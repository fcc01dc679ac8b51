//! Who may do something, and by which rule.

use millrace_model::{PrincipalName, Resource, Rights, Rule};

use crate::access::handle::Access;
use crate::ground::standing::decide;

/// A principal that may do something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Allowed {
    /// The principal.
    pub principal: PrincipalName,
    /// The first of its rules that allows it.
    pub rule: Rule,
}

impl Access {
    /// The principals, among those that the caller may see, that have one of these rights on the thing, by name.
    #[must_use]
    pub fn who_may(&self, any: Rights, resource: Resource<'_>) -> Vec<Allowed> {
        let all = self.principals().into_iter();
        let allowed = all.filter_map(|principal| {
            let rule = decide(&principal.rules, None, any, resource)?.clone();
            Some(Allowed {
                principal: principal.name,
                rule,
            })
        });
        allowed.collect()
    }
}
