//! The principals as this host knows them now: by name, and by the tokens, passwords and identities that prove them.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, OnceLock};

use millrace_engine::{Entry, Version};
use millrace_model::{
    Identity, Password, Principal, PrincipalName, Quotas, ResourceKind, Rule, Target, Timestamp,
    Token,
};
use tokio_util::sync::CancellationToken;

use crate::access::presented::AllPresented;
use crate::ground::meters::Meters;
use crate::ground::standing::Known;
use crate::ground::verbs::Verb;

/// All principals.
#[derive(Default)]
pub(super) struct Book {
    pub(super) principals: BTreeMap<PrincipalName, Kept>,
    meters: HashMap<PrincipalName, Arc<Meters>>,
    tokens: HashMap<String, TokenProof>,
    passwords: HashMap<PrincipalName, PasswordProof>,
    identities: HashMap<Identity, Proof>,
    pub(super) presented: AllPresented,
}

/// A principal and the version of its entry.
pub(super) struct Kept {
    pub(super) principal: Principal,
    pub(super) version: Version,
    /// Bytes of its entry.
    pub(super) bytes: usize,
}

/// What a token, a password or an identity proves, as long as it does.
#[derive(Clone)]
pub(super) struct Proof {
    pub(super) known: Arc<Known>,
    /// Cancelled when it proves this no more.
    pub(super) ended: CancellationToken,
}

/// A token, and what it proves.
#[derive(Clone)]
pub(super) struct TokenProof {
    pub(super) token: Token,
    pub(super) proof: Proof,
}

/// A password, and what it proves.
#[derive(Clone)]
pub(super) struct PasswordProof {
    pub(super) password: Arc<Password>,
    pub(super) proof: Proof,
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

    pub(super) fn meters_of(&self, name: &PrincipalName) -> Arc<Meters> {
        let known = self.meters.get(name).map(Arc::clone);
        known.unwrap_or_else(|| Arc::new(Meters::new(name.clone(), Quotas::default())))
    }

    /// Finds all tokens, passwords and identities again. Those that prove the same as before go on proving it; all others end.
    fn prove_anew(&mut self) {
        let tokens = std::mem::take(&mut self.tokens);
        let passwords = std::mem::take(&mut self.passwords);
        let identities = std::mem::take(&mut self.identities);
        for Kept { principal, .. } in self.principals.values() {
            let meters = self.meters_of(&principal.name);
            let anew = |scope: Option<&Vec<Rule>>| Proof::of(principal, scope, &meters);
            for token in &principal.tokens {
                // Its name and its expiry may change, as in a rotation, without an end of what is under way.
                let same = tokens.get(&token.id).filter(|before| {
                    before.token.hash == token.hash
                        && before.token.scope == token.scope
                        && before.proof.is_still_of(principal)
                });
                let proof = same.map(|before| before.proof.clone());
                let found = TokenProof {
                    token: token.clone(),
                    proof: proof.unwrap_or_else(|| anew(token.scope.as_ref())),
                };
                self.tokens.insert(token.id.clone(), found);
            }
            if let Some(password) = &principal.password {
                let same = passwords.get(&principal.name).filter(|before| {
                    *before.password == *password && before.proof.is_still_of(principal)
                });
                let found = same.cloned().unwrap_or_else(|| PasswordProof {
                    password: Arc::new(password.clone()),
                    proof: anew(None),
                    remembered: Arc::default(),
                });
                self.passwords.insert(principal.name.clone(), found);
            }
            for identity in &principal.identities {
                let before = identities.get(identity);
                let same = before.filter(|before| before.is_still_of(principal));
                let found = || same.cloned().unwrap_or_else(|| anew(None));
                // Only a damaged catalogue has one twice; then it stays with the first.
                self.identities
                    .entry(identity.clone())
                    .or_insert_with(found);
            }
        }
        for (id, TokenProof { proof, .. }) in &tokens {
            let now = self.tokens.get(id).map(|now| &now.proof);
            proof.end_unless_same(now);
        }
        for (name, PasswordProof { proof, .. }) in &passwords {
            let now = self.passwords.get(name).map(|now| &now.proof);
            proof.end_unless_same(now);
        }
        for (identity, proof) in &identities {
            proof.end_unless_same(self.identities.get(identity));
        }
        let principals = &self.principals;
        self.presented.keep(|known| {
            let kept = principals.get(&known.name);
            kept.is_some_and(|kept| kept.principal.rules == known.rules)
        });
    }

    pub(super) fn token(&self, id: &str) -> Option<&TokenProof> {
        self.tokens.get(id)
    }

    pub(super) fn password(&self, name: &PrincipalName) -> Option<&PasswordProof> {
        self.passwords.get(name)
    }

    /// What the first of these identities that a principal has proves.
    pub(super) fn identity(&self, identities: &[Identity]) -> Option<&Proof> {
        let mut proofs = identities.iter();
        proofs.find_map(|identity| self.identities.get(identity))
    }

    /// Whose identity it is.
    pub(super) fn holder(&self, identity: &Identity) -> Option<&PrincipalName> {
        let proof = self.identities.get(identity)?;
        Some(&proof.known.name)
    }

    /// Ends what is proved by tokens and other credentials that have expired.
    pub(super) fn expire(&mut self, now: Timestamp) {
        self.presented.expire(now);
        let all = self.tokens.values();
        let expired = all.filter(|found| found.token.is_expired(now));
        expired.for_each(|found| found.proof.ended.cancel());
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

/// Whether it has a token, a password or an identity with which it can change every principal.
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
    let proves = principal.password.is_some()
        || !principal.identities.is_empty()
        || principal.tokens.iter().any(counts);
    can(&principal.rules) && proves
}

impl Proof {
    fn of(principal: &Principal, scope: Option<&Vec<Rule>>, meters: &Arc<Meters>) -> Self {
        let ended = CancellationToken::new();
        Self {
            known: Arc::new(Known {
                name: principal.name.clone(),
                rules: principal.rules.clone(),
                scope: scope.cloned(),
                subject: None,
                keys: None,
                meters: Arc::clone(meters),
                ended: ended.clone(),
            }),
            ended,
        }
    }

    fn is_still_of(&self, principal: &Principal) -> bool {
        self.known.name == principal.name && self.known.rules == principal.rules
    }

    fn end_unless_same(&self, now: Option<&Self>) {
        if !now.is_some_and(|now| Arc::ptr_eq(&now.known, &self.known)) {
            self.ended.cancel();
        }
    }
}
