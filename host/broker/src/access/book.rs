//! The principals as this host knows them now: by name, and by the tokens and passwords that prove them.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, OnceLock};

use millrace_engine::{Entry, Version};
use millrace_model::{
    Password, Principal, PrincipalName, Quotas, ResourceKind, Rule, Target, Timestamp, Token,
};
use tokio_util::sync::CancellationToken;

use crate::ground::meters::Meters;
use crate::ground::standing::Known;
use crate::ground::verbs::Verb;

/// All principals.
#[derive(Default)]
pub(super) struct Book {
    pub(super) principals: BTreeMap<PrincipalName, Kept>,
    tokens: HashMap<String, Proof>,
    meters: HashMap<PrincipalName, Arc<Meters>>,
    passwords: HashMap<PrincipalName, PasswordProof>,
}

/// A principal and the version of its entry.
pub(super) struct Kept {
    pub(super) principal: Principal,
    pub(super) version: Version,
    /// Bytes of its entry.
    pub(super) bytes: usize,
}

/// What a token proves, as long as it does.
#[derive(Clone)]
pub(super) struct Proof {
    pub(super) token: Token,
    pub(super) known: Arc<Known>,
    /// Cancelled when it proves this no more.
    pub(super) ended: CancellationToken,
}

/// What a password proves, as long as it does.
#[derive(Clone)]
pub(super) struct PasswordProof {
    pub(super) password: Arc<Password>,
    pub(super) known: Arc<Known>,
    /// Cancelled when it proves this no more.
    pub(super) ended: CancellationToken,
    /// The mark of the password, once somebody has proved to know it: it need not be derived again for every request.
    pub(super) remembered: Arc<OnceLock<[u8; 32]>>,
}

impl Book {
    /// Takes over the catalogue's entries. Returns those that cannot be read: what was known of them stays.
    pub(super) fn take_over(&mut self, entries: Vec<(String, Entry)>) -> Vec<(String, String)> {
        let mut unreadable = Vec::new();
        let mut before = std::mem::take(&mut self.principals);
        for (key, entry) in entries {
            let name = PrincipalName::parse(&key).ok();
            let known = name.and_then(|name| before.remove(&name));
            let kept = match known {
                Some(kept) if kept.version == entry.version => kept,
                known => match serde_json::from_slice::<Principal>(&entry.value) {
                    Ok(principal) => Kept {
                        principal,
                        version: entry.version,
                        bytes: entry.value.len(),
                    },
                    Err(error) => {
                        unreadable.push((key, error.to_string()));
                        match known {
                            Some(known) => known,
                            None => continue,
                        }
                    }
                },
            };
            self.principals.insert(kept.principal.name.clone(), kept);
        }
        self.limit();
        self.prove_anew();
        unreadable
    }

    /// Gives all principals their quotas. What they have used stays used.
    fn limit(&mut self) {
        let mut before = std::mem::take(&mut self.meters);
        for (name, Kept { principal, .. }) in &self.principals {
            let meters = before
                .remove(name)
                .unwrap_or_else(|| Arc::new(Meters::new(name.clone(), Quotas::default())));
            meters.limit(principal.quotas);
            self.meters.insert(name.clone(), meters);
        }
    }

    fn meters_of(&self, name: &PrincipalName) -> Arc<Meters> {
        let known = self.meters.get(name).map(Arc::clone);
        known.unwrap_or_else(|| Arc::new(Meters::new(name.clone(), Quotas::default())))
    }

    /// Finds all tokens and passwords again. Those that prove the same as before go on proving it; all others end.
    fn prove_anew(&mut self) {
        self.find_tokens();
        self.find_passwords();
    }

    fn find_passwords(&mut self) {
        let mut before = std::mem::take(&mut self.passwords);
        for Kept { principal, .. } in self.principals.values() {
            let Some(password) = &principal.password else {
                continue;
            };
            let is_same = |proof: &PasswordProof| {
                *proof.password == *password && proof.known.rules == principal.rules
            };
            let proof = unchanged(&mut before, &principal.name, is_same)
                .unwrap_or_else(|| PasswordProof::of(principal, password, self.meters_of(&principal.name)));
            self.passwords.insert(principal.name.clone(), proof);
        }
        for gone in before.into_values() {
            gone.ended.cancel();
        }
    }

    fn find_tokens(&mut self) {
        let mut before = std::mem::take(&mut self.tokens);
        for Kept { principal, .. } in self.principals.values() {
            for token in &principal.tokens {
                let is_same = |proof: &Proof| {
                    proof.token == *token
                        && proof.known.name == principal.name
                        && proof.known.rules == principal.rules
                };
                let proof = unchanged(&mut before, &token.id, is_same)
                    .unwrap_or_else(|| Proof::of(principal, token, self.meters_of(&principal.name)));
                self.tokens.insert(token.id.clone(), proof);
            }
        }
        for gone in before.into_values() {
            gone.ended.cancel();
        }
    }

    pub(super) fn proof(&self, id: &str) -> Option<&Proof> {
        self.tokens.get(id)
    }

    pub(super) fn password(&self, name: &PrincipalName) -> Option<&PasswordProof> {
        self.passwords.get(name)
    }

    /// Ends what is proved by tokens that have expired.
    pub(super) fn expire(&self, now: Timestamp) {
        let expired = self
            .tokens
            .values()
            .filter(|proof| proof.token.is_expired(now));
        expired.for_each(|proof| proof.ended.cancel());
    }

    /// Bytes of all entries besides this principal's.
    pub(super) fn bytes_besides(&self, name: &PrincipalName) -> usize {
        let others = self.principals.iter().filter(|(of, _)| *of != name);
        others.map(|(_, kept)| kept.bytes).sum()
    }

    /// Whether somebody can administer principals.
    pub(super) fn has_admin(&self, now: Timestamp) -> bool {
        let mut all = self.principals.values();
        all.any(|kept| administers(&kept.principal, now))
    }

    /// Whether somebody could administer principals if this one were as given.
    pub(super) fn has_admin_with(
        &self,
        name: &PrincipalName,
        changed: Option<&Principal>,
        now: Timestamp,
    ) -> bool {
        let others = self.principals.iter().filter(|(of, _)| *of != name);
        let others = others.map(|(_, kept)| &kept.principal);
        others
            .chain(changed)
            .any(|principal| administers(principal, now))
    }
}

/// Takes out what goes on proving the same. What proves something else stays, to be ended.
fn unchanged<K: std::hash::Hash + Eq, P>(
    before: &mut HashMap<K, P>,
    key: &K,
    is_same: impl Fn(&P) -> bool,
) -> Option<P> {
    match before.get(key).is_some_and(is_same) {
        true => before.remove(key),
        false => None,
    }
}

/// Whether it has a token or a password with which it can change every principal.
fn administers(principal: &Principal, now: Timestamp) -> bool {
    let everyone = Target::Beginning(ResourceKind::Principal, "".into());
    let can = |rules: &[Rule]| {
        let mut rules = rules.iter();
        rules.any(|rule| {
            let rights = rule.granted.rights();
            rights.has_any(Verb::SetPrincipal.rights()) && rule.on.contains(&everyone)
        })
    };
    let counts = |token: &Token| !token.is_expired(now) && token.scope.as_deref().is_none_or(can);
    let proves = principal.password.is_some() || principal.tokens.iter().any(counts);
    can(&principal.rules) && proves
}

impl Proof {
    fn of(principal: &Principal, token: &Token, meters: Arc<Meters>) -> Self {
        Self {
            token: token.clone(),
            known: Arc::new(Known {
                name: principal.name.clone(),
                rules: principal.rules.clone(),
                scope: token.scope.clone(),
                meters,
            }),
            ended: CancellationToken::new(),
        }
    }
}

impl PasswordProof {
    fn of(principal: &Principal, password: &Password, meters: Arc<Meters>) -> Self {
        Self {
            password: Arc::new(password.clone()),
            known: Arc::new(Known {
                name: principal.name.clone(),
                rules: principal.rules.clone(),
                scope: None,
                meters,
            }),
            ended: CancellationToken::new(),
            remembered: Arc::default(),
        }
    }
}
