//! What a caller may do, decided in one place: [`decide`] has no state and no clock.

use std::fmt;
use std::sync::Arc;

use millrace_model::{
    Advice, Advised, Code, PrincipalName, Resource, ResourceKind, Right, Rights, Rule,
};

use tokio_util::sync::CancellationToken;

use crate::ground::keys::{KeyPattern, is_for_some_keys, may_touch};
use crate::ground::meters::Meters;
use crate::ground::own_topics::AUDIT_LOG;
use crate::ground::verbs::Verb;

/// The rule that allows something, or `None`: what no rule grants is not allowed. With a scope, one of its rules must grant it too.
#[must_use]
pub fn decide<'a>(
    rules: &'a [Rule],
    scope: Option<&[Rule]>,
    any: Rights,
    resource: Resource<'_>,
) -> Option<&'a Rule> {
    let granted = rules.iter().find(|rule| rule.grants(any, resource))?;
    let is_in_scope = scope.is_none_or(|scope| scope.iter().any(|rule| rule.grants(any, resource)));
    is_in_scope.then_some(granted)
}

/// What a caller may do. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub enum Standing {
    /// Everything: the host itself, and everyone who can connect to a host that asks for no credentials.
    #[default]
    Everything,
    /// What the rules of a principal grant.
    Principal(Arc<Known>),
    /// Only what needs no right: nobody has said who it is.
    Nobody,
}

/// A principal that has proved who it is.
#[derive(Debug)]
pub struct Known {
    /// Its name.
    pub name: PrincipalName,
    /// Its rules.
    pub rules: Vec<Rule>,
    /// What its token allows of that; everything if absent.
    pub scope: Option<Vec<Rule>>,
    /// What it has used of its quotas.
    pub meters: Arc<Meters>,
    /// Cancelled when what it proved itself with counts no more.
    pub ended: CancellationToken,
    /// Whom it acts for, as a provider of identities names them, if it does not act for itself.
    pub subject: Option<Arc<str>>,
    /// The keys of the messages and the state that it may touch; all if absent.
    pub keys: Option<Vec<KeyPattern>>,
}

impl Standing {
    /// Whether the caller may do this.
    ///
    /// # Errors
    /// [`Forbidden`] says which right is missing.
    pub fn may(&self, verb: Verb, name: &str) -> Result<(), Forbidden> {
        let who = self.principal().cloned();
        if who.is_some() && verb.kind() == ResourceKind::Topic && name == AUDIT_LOG {
            return match verb.on_the_audit_log() {
                Some(verb) => self.may(verb, ""),
                None => Err(Forbidden::append_only(who, verb, name)),
            };
        }
        let resource = Resource::new(verb.kind(), name);
        match self {
            Self::Everything => return Ok(()),
            Self::Principal(known) => {
                let scope = known.scope.as_deref();
                let is_granted = decide(&known.rules, scope, verb.rights(), resource).is_some();
                if is_granted && known.keys.is_some() && !is_for_some_keys(verb) {
                    return Err(self.outside_keys(verb, name));
                }
                if is_granted {
                    return Ok(());
                }
            }
            Self::Nobody => {}
        }
        Err(Forbidden::new(who, verb, resource))
    }

    /// Whether the caller may do this with what has this key.
    ///
    /// # Errors
    /// [`Forbidden`] says which right is missing, or that it is the key.
    pub fn may_with_key(
        &self,
        verb: Verb,
        name: &str,
        key: Option<&[u8]>,
    ) -> Result<(), Forbidden> {
        self.may(verb, name)?;
        match may_touch(self.keys(), key) {
            true => Ok(()),
            false => Err(self.outside_keys(verb, name)),
        }
    }

    /// The keys that the caller may touch; `None` if it may touch all.
    #[must_use]
    pub fn keys(&self) -> Option<&[KeyPattern]> {
        match self {
            Self::Principal(known) => known.keys.as_deref(),
            Self::Everything | Self::Nobody => None,
        }
    }

    /// The refusal for a caller whose rules allow it, but with other keys only.
    pub(crate) fn outside_keys(&self, verb: Verb, name: &str) -> Forbidden {
        let who = self.principal().cloned();
        let mut refused = Forbidden::new(who, verb, Resource::new(verb.kind(), name));
        refused.0.is_about_keys = true;
        refused
    }

    /// Whether there is anything of its kind with which the caller may do this.
    ///
    /// # Errors
    /// [`Forbidden`] says which right is missing.
    pub fn may_with_some(&self, verb: Verb) -> Result<(), Forbidden> {
        let (any, kind) = (verb.rights(), verb.kind());
        let has = |rules: &[Rule]| {
            rules
                .iter()
                .any(|rule| rule.granted.rights().has_any(any) && rule.on.covers_some(kind))
        };
        let who = match self {
            Self::Everything => return Ok(()),
            Self::Principal(known) => {
                let is_granted = has(&known.rules) && known.scope.as_deref().is_none_or(has);
                if is_granted && known.keys.is_some() && !is_for_some_keys(verb) {
                    return Err(self.outside_keys(verb, ""));
                }
                if is_granted {
                    return Ok(());
                }
                Some(known.name.clone())
            }
            Self::Nobody => None,
        };
        Err(Forbidden::new(who, verb, Resource::new(kind, "")))
    }

    /// Whether the caller has itself all that a rule would give: nobody gives what they do not have.
    #[must_use]
    pub fn has_all_of(&self, rule: &Rule) -> bool {
        let gives = |rules: &[Rule], right: Right| {
            let mut rules = rules.iter();
            rules.any(|own| {
                own.granted.rights().has_any(Rights::of(&[right])) && own.on.contains(&rule.on)
            })
        };
        match self {
            Self::Everything => true,
            Self::Nobody => false,
            Self::Principal(known) => rule.granted.rights().iter().all(|right| {
                gives(&known.rules, right)
                    && known
                        .scope
                        .as_deref()
                        .is_none_or(|scope| gives(scope, right))
            }),
        }
    }

    /// Whether what the caller proved itself with counts no more.
    pub(crate) fn has_ended(&self) -> bool {
        match self {
            Self::Principal(known) => known.ended.is_cancelled(),
            Self::Everything | Self::Nobody => false,
        }
    }

    /// The meters of the caller's quotas; `None` if it has no quotas.
    pub(crate) fn meters(&self) -> Option<&Meters> {
        match self {
            Self::Principal(known) => Some(&known.meters),
            Self::Everything | Self::Nobody => None,
        }
    }

    /// The principal's name; `None` if there is no principal.
    #[must_use]
    pub fn principal(&self) -> Option<&PrincipalName> {
        match self {
            Self::Principal(known) => Some(&known.name),
            Self::Everything | Self::Nobody => None,
        }
    }

    /// Whom the principal acts for, as an identity provider names them; `None` if it acts for itself.
    #[must_use]
    pub fn subject(&self) -> Option<&str> {
        match self {
            Self::Principal(known) => known.subject.as_deref(),
            Self::Everything | Self::Nobody => None,
        }
    }

    /// What is recorded with changes: the principal, and whom it acts for; `None` if there is no principal.
    #[must_use]
    pub fn signature(&self) -> Option<Arc<str>> {
        let Self::Principal(known) = self else {
            return None;
        };
        Some(match &known.subject {
            Some(subject) => format!("{}/{subject}", known.name).into(),
            None => known.name.as_str().into(),
        })
    }
}

/// The caller may not do this. Whether the thing exists is not said: the right is asked for first.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct Forbidden(Box<Refused>);

#[derive(Clone, Debug, PartialEq, Eq)]
struct Refused {
    who: Option<PrincipalName>,
    verb: Verb,
    kind: ResourceKind,
    name: String,
    /// Whether only the host may do it.
    is_append_only: bool,
    /// Whether its rules allow it, but only with other keys.
    is_about_keys: bool,
}

impl Forbidden {
    fn new(who: Option<PrincipalName>, verb: Verb, resource: Resource<'_>) -> Self {
        Self(Box::new(Refused {
            who,
            verb,
            kind: resource.kind,
            name: resource.name.to_owned(),
            is_append_only: false,
            is_about_keys: false,
        }))
    }

    fn append_only(who: Option<PrincipalName>, verb: Verb, name: &str) -> Self {
        Self(Box::new(Refused {
            who,
            verb,
            kind: ResourceKind::Topic,
            name: name.to_owned(),
            is_append_only: true,
            is_about_keys: false,
        }))
    }

    /// What was refused.
    #[must_use]
    pub fn verb(&self) -> Verb {
        self.0.verb
    }

    /// The rules of which one is missing, as they would be granted.
    fn missing(&self) -> Vec<String> {
        let on = self.on();
        // Any right lets its holder see a thing; one name for them is enough.
        let rights = match self.0.verb.rights() {
            any if any == Rights::of(Right::ALL) => Rights::of(&[Right::View]),
            rights => rights,
        };
        rights
            .iter()
            .map(|right| format!("{right} on {on}"))
            .collect()
    }

    /// What it is about, as in a rule; without a name, all of its kind.
    fn on(&self) -> Resource<'_> {
        match self.0.name.as_str() {
            "" => Resource::new(self.0.kind, "*"),
            name => Resource::new(self.0.kind, name),
        }
    }
}

impl fmt::Display for Forbidden {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verb = self.0.verb.as_str();
        match &self.0.who {
            Some(who) => write!(f, "principal {who} may not {verb} {}", self.on())?,
            None => write!(f, "without credentials nobody may {verb} {}", self.on())?,
        }
        if self.0.is_append_only {
            return f.write_str(": only the host writes the audit log");
        }
        if self.0.is_about_keys {
            return f
                .write_str(" here: its credentials are for messages and state of some keys only");
        }
        write!(f, ": that takes `{}`", self.missing().join("` or `"))
    }
}

impl Advised for Forbidden {
    fn advice(&self) -> Advice {
        match &self.0.who {
            Some(_) if self.0.is_append_only => Code::NotAllowed.hint(
                "leave it as it is; how long it is kept can be changed by who may administer",
            ),
            Some(_) if self.0.is_about_keys => Code::NotAllowed.hint(
                "use one of the keys that `millrace access self` shows; for everything else, use credentials for all keys",
            ),
            Some(who) => {
                let rule = self.missing().swap_remove(0);
                Code::NotAllowed.hint(format!(
                    "a principal that may administer principals can grant it: `millrace access grant {who} \"{rule}\"`"
                ))
            }
            None => Code::CredentialsMissing.advice(),
        }
    }
}

#[cfg(test)]
mod tests {
    use millrace_model::Quotas;
    use proptest::prelude::*;

    use super::*;

    fn rules(texts: &[&str]) -> Vec<Rule> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn standing(texts: &[&str], scope: Option<&[&str]>) -> Standing {
        Standing::Principal(Arc::new(Known {
            name: PrincipalName::parse("billing").unwrap(),
            rules: rules(texts),
            scope: scope.map(rules),
            meters: Arc::new(Meters::new(
                PrincipalName::parse("billing").unwrap(),
                Quotas::default(),
            )),
            ended: CancellationToken::new(),
            subject: None,
            keys: None,
        }))
    }

    #[test]
    fn what_no_rule_grants_is_refused_with_the_rule_that_is_missing() {
        let billing = standing(&["consumer on topic:orders"], None);
        assert_eq!(billing.may(Verb::Read, "orders"), Ok(()));
        let refused = billing.may(Verb::Produce, "orders").unwrap_err();
        assert_eq!(
            refused.to_string(),
            "principal billing may not send messages to topic:orders: that takes `produce on topic:orders`"
        );
        let advice = refused.advice();
        assert_eq!(advice.code, Code::NotAllowed);
        assert!(
            advice
                .hint
                .contains("millrace access grant billing \"produce on topic:orders\"")
        );
    }

    #[test]
    fn who_has_not_said_who_it_is_is_asked_for_credentials() {
        let refused = Standing::Nobody.may(Verb::SeeHost, "").unwrap_err();
        assert_eq!(refused.advice().code, Code::CredentialsMissing);
        assert!(refused.to_string().contains("may see host:"), "{refused}");
    }

    #[test]
    fn a_refusal_about_no_one_thing_names_all_of_its_kind() {
        let refused = Standing::Nobody.may_with_some(Verb::SeeTopic).unwrap_err();
        assert_eq!(
            refused.to_string(),
            "without credentials nobody may see topic:*: that takes `view on topic:*`"
        );
    }

    #[test]
    fn a_token_may_do_what_both_it_and_its_principal_may() {
        let narrowed = standing(&["admin"], Some(&["producer on topic:orders"]));
        assert!(narrowed.may(Verb::Produce, "orders").is_ok());
        assert!(narrowed.may(Verb::Read, "orders").is_err());
        let widened = standing(&["producer on topic:orders"], Some(&["admin"]));
        assert!(widened.may(Verb::DeleteTopic, "orders").is_err());
    }

    #[test]
    fn nobody_gives_what_they_do_not_have() {
        let ops = standing(&["administer", "operator on topic:a*"], None);
        let gives = |rule: &str| ops.has_all_of(&rule.parse().unwrap());
        assert!(
            gives("administer") && gives("operate on topic:ab") && gives("operator on topic:a*")
        );
        assert!(!gives("operator") && !gives("admin") && !gives("produce on topic:a"));
        let narrow = standing(&["admin"], Some(&["administer on principal:x"]));
        assert!(narrow.has_all_of(&"administer on principal:x".parse().unwrap()));
        assert!(!narrow.has_all_of(&"view".parse().unwrap()));
    }

    #[test]
    fn the_audit_log_is_read_with_a_right_of_its_own_and_written_by_nobody() {
        let reads_all = standing(&["developer"], None);
        assert!(reads_all.may(Verb::Read, "orders").is_ok());
        let refused = reads_all.may(Verb::Read, AUDIT_LOG).unwrap_err();
        assert!(refused.to_string().contains("audit on host"), "{refused}");
        let auditor = standing(&["auditor"], None);
        assert!(auditor.may(Verb::Read, AUDIT_LOG).is_ok());
        assert!(auditor.may(Verb::ChangeTopic, AUDIT_LOG).is_err());
        let admin = standing(&["admin"], None);
        assert!(admin.may(Verb::ChangeTopic, AUDIT_LOG).is_ok());
        for verb in [
            Verb::Produce,
            Verb::Trim,
            Verb::DeleteTopic,
            Verb::CreateTopic,
        ] {
            let refused = admin.may(verb, AUDIT_LOG).unwrap_err();
            assert!(
                refused.to_string().contains("only the host writes"),
                "{refused}"
            );
            assert_eq!(refused.advice().code, Code::NotAllowed);
        }
    }

    #[test]
    fn a_caller_with_keys_may_do_with_these_what_its_rules_grant_and_nothing_about_others() {
        let Standing::Principal(known) = standing(&["developer"], None) else {
            unreachable!("a principal")
        };
        let ann = Standing::Principal(Arc::new(Known {
            name: known.name.clone(),
            rules: known.rules.clone(),
            scope: None,
            subject: Some("ann".into()),
            keys: Some(vec![KeyPattern::Beginning(b"user:ann:"[..].into())]),
            meters: Arc::clone(&known.meters),
            ended: CancellationToken::new(),
        }));
        assert_eq!(ann.signature().as_deref(), Some("billing/ann"));
        let produce = |key: Option<&[u8]>| ann.may_with_key(Verb::Produce, "orders", key);
        assert_eq!(produce(Some(b"user:ann:1")), Ok(()));
        for key in [Some(b"user:anna:1".as_slice()), Some(b""), None] {
            let refused = produce(key).unwrap_err();
            assert!(refused.to_string().contains("some keys only"), "{refused}");
            assert_eq!(refused.advice().code, Code::NotAllowed);
        }
        for verb in [
            Verb::ReadDeadLetters,
            Verb::ReadLogs,
            Verb::Replay,
            Verb::SeeDelayed,
        ] {
            assert!(known.rules[0].granted.rights().has_any(verb.rights()));
            assert!(ann.may(verb, "orders").is_err(), "{verb:?}");
            assert!(ann.may_with_some(verb).is_err(), "{verb:?}");
        }
        // Without the rule it is the rule that is missing, whatever the key.
        let refused = ann.may_with_key(Verb::MakeToken, "ann", None).unwrap_err();
        assert!(refused.to_string().contains("administer"), "{refused}");
    }

    fn any_rule() -> impl Strategy<Value = Rule> {
        "(admin|viewer|producer|consume|deploy|administer)( on (\\*|host|(topic|route):[ab]{0,2}\\*|(topic|processor):[ab]{1,3}))?"
            .prop_map(|text| text.parse().unwrap())
    }

    fn any_resource() -> impl Strategy<Value = (ResourceKind, String)> {
        let kinds = prop::sample::select(ResourceKind::ALL);
        (kinds, "[ab]{1,3}")
    }

    proptest! {
        #[test]
        fn more_rules_never_allow_less_and_no_rules_allow_nothing(
            rules in prop::collection::vec(any_rule(), 0..5), another in any_rule(),
            (kind, name) in any_resource(), right in prop::sample::select(Right::ALL),
        ) {
            let (any, resource) = (Rights::of(&[right]), Resource::new(kind, &name));
            let before = decide(&rules, None, any, resource).is_some();
            let mut more = rules;
            more.push(another);
            let after = decide(&more, None, any, resource).is_some();
            prop_assert!(after || !before);
            prop_assert!(decide(&[], None, any, resource).is_none());
        }

        #[test]
        fn a_scope_only_ever_takes_away(
            rules in prop::collection::vec(any_rule(), 0..5), scope in prop::collection::vec(any_rule(), 0..5),
            (kind, name) in any_resource(), right in prop::sample::select(Right::ALL),
        ) {
            let (any, resource) = (Rights::of(&[right]), Resource::new(kind, &name));
            let without = decide(&rules, None, any, resource);
            let with = decide(&rules, Some(&scope), any, resource);
            prop_assert!(with.is_none() || with == without);
            let both = without.is_some() && decide(&scope, None, any, resource).is_some();
            prop_assert_eq!(with.is_some(), both);
        }

        #[test]
        fn the_rule_that_allows_is_one_that_grants_it(
            rules in prop::collection::vec(any_rule(), 0..5), (kind, name) in any_resource(),
            verb in prop::sample::select(Verb::ALL),
        ) {
            let resource = Resource::new(kind, &name);
            let allowed = decide(&rules, None, verb.rights(), resource);
            let grants = rules.iter().any(|rule| rule.grants(verb.rights(), resource));
            prop_assert_eq!(allowed.is_some(), grants);
        }
    }
}
