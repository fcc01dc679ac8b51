//! Changes of principals and their rules.

use millrace_engine::{EntryKind, Expectation};
use millrace_model::bounds::{PRINCIPAL_RULES_MAX, PRINCIPALS_BYTES_MAX, PRINCIPALS_MAX};
use millrace_model::{Principal, PrincipalName, Quotas, Rule};

use crate::access::book::Kept;
use crate::access::error::PrincipalError;
use crate::access::handle::{Access, Inner};
use crate::catalogue::deciding::decided;
use crate::ground::verbs::Verb;

impl Inner {
    /// Takes over what this host and others have changed.
    pub(super) fn follow(&self) {
        let newest = self.engine.version(EntryKind::Principal);
        if self.followed.version() == newest {
            return;
        }
        let mut book = self.book.write();
        // Again, under the lock: entries that are older than those of the book must not replace them.
        let newest = self.engine.version(EntryKind::Principal);
        let entries = self.engine.entries(EntryKind::Principal);
        for (key, error) in book.take_over(entries) {
            tracing::error!(principal = key, %error, "the catalogue's entry of a principal cannot be read; what is known of it stays in effect");
        }
        self.followed.up_to(newest);
    }
}

impl Access {
    /// The principals that the caller may see, by name.
    #[must_use]
    pub fn principals(&self) -> Vec<Principal> {
        self.inner.follow();
        let book = self.inner.book.read();
        let all = book.principals.values().map(|kept| &kept.principal);
        let seen = all.filter(|principal| {
            self.caller
                .sees(Verb::SeePrincipal, principal.name.as_str())
        });
        seen.cloned().collect()
    }

    /// One principal.
    ///
    /// # Errors
    /// [`PrincipalError::Forbidden`], [`PrincipalError::Unknown`].
    pub fn principal(&self, name: &PrincipalName) -> Result<Principal, PrincipalError> {
        self.caller.may(Verb::SeePrincipal, name.as_str())?;
        self.inner.follow();
        self.known(name)
            .ok_or_else(|| PrincipalError::Unknown(name.clone()))
    }

    pub(super) fn known(&self, name: &PrincipalName) -> Option<Principal> {
        let book = self.inner.book.read();
        book.principals.get(name).map(|kept| kept.principal.clone())
    }

    /// Creates a principal, or replaces the rules of one that exists; repeating it changes nothing.
    ///
    /// # Errors
    /// [`PrincipalError`].
    pub async fn set_principal(
        &self,
        name: &PrincipalName,
        rules: Vec<Rule>,
    ) -> Result<Principal, PrincipalError> {
        self.caller.may(Verb::SetPrincipal, name.as_str())?;
        self.decide(async || {
            let principal = self.known(name).unwrap_or_else(|| self.fresh(name));
            let new = rules.iter().filter(|rule| !principal.rules.contains(rule));
            self.check_gives(new)?;
            let rules = rules.clone();
            self.keep(Principal { rules, ..principal }).await
        })
        .await
    }

    /// Adds a rule to a principal, which is created if it does not exist.
    ///
    /// # Errors
    /// [`PrincipalError`].
    pub async fn grant(
        &self,
        name: &PrincipalName,
        rule: Rule,
    ) -> Result<Principal, PrincipalError> {
        self.caller.may(Verb::SetPrincipal, name.as_str())?;
        self.check_gives(std::iter::once(&rule))?;
        self.decide(async || {
            let mut principal = self.known(name).unwrap_or_else(|| self.fresh(name));
            if !principal.rules.contains(&rule) {
                principal.rules.push(rule.clone());
            }
            self.keep(principal).await
        })
        .await
    }

    /// Takes a rule from a principal; does nothing if it does not have it.
    ///
    /// # Errors
    /// [`PrincipalError`].
    pub async fn withdraw(
        &self,
        name: &PrincipalName,
        rule: &Rule,
    ) -> Result<Principal, PrincipalError> {
        self.caller.may(Verb::SetPrincipal, name.as_str())?;
        self.change(name, |principal| {
            principal.rules.retain(|has| has != rule);
            Ok(())
        })
        .await
    }

    /// Changes how much a principal may send, read and ask for; what it has used stays used.
    ///
    /// # Errors
    /// [`PrincipalError`].
    pub async fn change_quotas(
        &self,
        name: &PrincipalName,
        change: impl Fn(Quotas) -> Quotas,
    ) -> Result<Principal, PrincipalError> {
        self.caller.may(Verb::SetPrincipal, name.as_str())?;
        // Nobody frees themselves of a quota, unless they could free everyone.
        if self.caller.rights().principal() == Some(name) {
            self.check_administers_all()?;
        }
        self.change(name, |principal| {
            principal.quotas = change(principal.quotas);
            match principal.quotas.zero() {
                Some(zero) => Err(PrincipalError::ZeroQuota(zero.as_str())),
                None => Ok(()),
            }
        })
        .await
    }

    /// Whether the caller may administer every principal.
    pub(super) fn check_administers_all(&self) -> Result<(), PrincipalError> {
        let all: Rule = "administer on principal:*".parse()?;
        self.check_gives(std::iter::once(&all))
    }

    /// Whoever administers some principals only must not become more than they are, by what they give to these.
    pub(super) fn check_gives<'a>(
        &self,
        mut rules: impl Iterator<Item = &'a Rule>,
    ) -> Result<(), PrincipalError> {
        match rules.find(|rule| !self.caller.rights().has_all_of(rule)) {
            Some(rule) => Err(PrincipalError::NotOwn(rule.clone())),
            None => Ok(()),
        }
    }

    /// Deletes a principal. All its tokens are refused from now on.
    ///
    /// # Errors
    /// [`PrincipalError`].
    pub async fn delete_principal(&self, name: &PrincipalName) -> Result<(), PrincipalError> {
        self.caller.may(Verb::DeletePrincipal, name.as_str())?;
        self.decide(async || {
            self.known(name)
                .ok_or_else(|| PrincipalError::Unknown(name.clone()))?;
            self.check_admin_is_left(name, None)?;
            self.write(name, None).await
        })
        .await
    }

    /// Changes a principal that exists.
    pub(super) async fn change(
        &self,
        name: &PrincipalName,
        change: impl Fn(&mut Principal) -> Result<(), PrincipalError>,
    ) -> Result<Principal, PrincipalError> {
        self.decide(async || {
            let known = self.known(name);
            let mut principal = known.ok_or_else(|| PrincipalError::Unknown(name.clone()))?;
            change(&mut principal)?;
            self.keep(principal).await
        })
        .await
    }

    pub(super) fn fresh(&self, name: &PrincipalName) -> Principal {
        Principal {
            name: name.clone(),
            rules: Vec::new(),
            tokens: Vec::new(),
            quotas: Quotas::default(),
            password: None,
            identities: Vec::new(),
            made_at: self.inner.clock.wall(),
            made_by: self.caller.signature().to_owned(),
        }
    }

    /// Decides something and commits it, one decision of this host at a time, and again if another host was quicker.
    pub(super) async fn decide<T, F>(&self, decision: impl Fn() -> F) -> Result<T, PrincipalError>
    where
        F: Future<Output = Result<T, PrincipalError>>,
    {
        let _change = self.inner.changes.lock().await;
        decided(&*self.inner.engine, || {
            self.inner.follow();
            // Changes wait for each other: one that was asked for with what was revoked meanwhile is not made.
            let is_ended = self.caller.rights().has_ended();
            let decided = (!is_ended).then(&decision);
            async {
                match decided {
                    Some(decided) => decided.await,
                    None => Err(PrincipalError::Ended),
                }
            }
        })
        .await
    }

    /// Stores a principal.
    pub(super) async fn keep(&self, principal: Principal) -> Result<Principal, PrincipalError> {
        if principal.rules.len() > PRINCIPAL_RULES_MAX {
            return Err(PrincipalError::TooManyRules(principal.rules.len()));
        }
        self.check_bounds(&principal)?;
        self.check_admin_is_left(&principal.name, Some(&principal))?;
        self.write(&principal.name, Some(&principal)).await?;
        Ok(principal)
    }

    fn check_bounds(&self, principal: &Principal) -> Result<(), PrincipalError> {
        let book = self.inner.book.read();
        let before = book.principals.get(&principal.name);
        if before.is_none() && book.principals.len() >= PRINCIPALS_MAX {
            return Err(PrincipalError::TooMany);
        }
        let own = serde_json::to_vec(principal).unwrap_or_default().len();
        let bytes = book.bytes_besides(&principal.name) + own;
        let is_larger = before.is_none_or(|before| own > before.bytes);
        match bytes > PRINCIPALS_BYTES_MAX && is_larger {
            true => Err(PrincipalError::TooMuch(bytes)),
            false => Ok(()),
        }
    }

    /// Who administers principals must not take that from the last one who can.
    fn check_admin_is_left(
        &self,
        name: &PrincipalName,
        changed: Option<&Principal>,
    ) -> Result<(), PrincipalError> {
        let now = self.inner.clock.wall();
        let book = self.inner.book.read();
        let before = book.principals.get(name).map(|kept| &kept.principal);
        let is_kept =
            !book.has_admin_with(name, before, now) || book.has_admin_with(name, changed, now);
        is_kept.then_some(()).ok_or(PrincipalError::LastAdmin)
    }

    async fn write(
        &self,
        name: &PrincipalName,
        principal: Option<&Principal>,
    ) -> Result<(), PrincipalError> {
        let kind = EntryKind::Principal;
        // The bounds and the last administrator are about all of them.
        let expects = vec![
            self.as_known(name),
            Expectation::Kind {
                kind,
                version: self.inner.followed.version(),
            },
        ];
        let key = name.to_string();
        let write = self
            .inner
            .catalogue
            .write_entry(kind, key, principal, expects);
        write.await?;
        self.inner.follow();
        Ok(())
    }

    fn as_known(&self, name: &PrincipalName) -> Expectation {
        let book = self.inner.book.read();
        let version = |kept: &Kept| kept.version;
        Expectation::Entry {
            kind: EntryKind::Principal,
            key: name.to_string(),
            version: book.principals.get(name).map(version),
        }
    }
}
