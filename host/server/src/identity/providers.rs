//! The providers of a running host: their keys, which are fetched at the start, every five minutes, and when a JWT names one that is not
//! known; and what their JWTs proved.

use std::sync::Arc;
use std::time::Duration;

use millrace_broker::{Access, Proved};
use millrace_model::Clock;
use parking_lot::{Mutex, RwLock};
use sha2::{Digest as _, Sha256};
use tokio::task::AbortHandle;

use super::fetching::fetch;
use super::jwt::{self, Jwt};
use super::keys::Keys;
use super::refusal::Refusal;
use super::remembered::{Memory, Print, Remembered};
use super::settings::{Provider, ProviderSettings};
use super::verifying::{provider_of, verify};
use crate::config::ConfigError;

/// How often keys are fetched.
const REFRESH: Duration = Duration::from_secs(300);
/// How often they are fetched while the provider does not answer.
const RETRY: Duration = Duration::from_secs(20);
/// How long keys are not fetched again because of a JWT with an unknown key, after they were because of another: anyone can make up such
/// JWTs.
const ASK_INTERVAL: Duration = Duration::from_secs(10);

/// The identity providers of a host.
pub(crate) struct Identity {
    clock: Arc<dyn Clock>,
    access: Access,
    providers: Vec<Provider>,
    running: Vec<Arc<Running>>,
    memory: Arc<Mutex<Memory>>,
    /// What refreshes the keys.
    tasks: Vec<AbortHandle>,
}

/// A provider's keys.
struct Running {
    at: usize,
    provider: Provider,
    clock: Arc<dyn Clock>,
    keys: RwLock<Option<Arc<Keys>>>,
    /// When keys were last fetched because of a JWT; locked while they are.
    asked: tokio::sync::Mutex<Option<Duration>>,
    /// Whether the last fetch failed.
    is_away: Mutex<bool>,
    memory: Arc<Mutex<Memory>>,
}

/// Who sends a request, by a JWT.
#[derive(Debug)]
pub(crate) struct Identified {
    pub(crate) proved: Proved,
    /// Whether components do not see the JWT.
    pub(crate) strip: bool,
}

impl Drop for Identity {
    fn drop(&mut self) {
        self.tasks.iter().for_each(AbortHandle::abort);
    }
}

impl Identity {
    /// Begins to fetch the keys, without waiting for them: a host starts also while a provider is away.
    ///
    /// # Errors
    /// [`ConfigError`].
    pub(crate) fn start(
        settings: &[ProviderSettings],
        access: Access,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, ConfigError> {
        let providers = Provider::all(settings)?;
        let memory = Arc::<Mutex<Memory>>::default();
        let running = providers.iter().enumerate().map(|(at, provider)| {
            Arc::new(Running {
                at,
                provider: provider.clone(),
                clock: clock.clone(),
                keys: RwLock::default(),
                asked: tokio::sync::Mutex::default(),
                is_away: Mutex::default(),
                memory: memory.clone(),
            })
        });
        let running: Vec<Arc<Running>> = running.collect();
        let refreshing = running
            .iter()
            .cloned()
            .map(|one| tokio::spawn(one.refresh()));
        Ok(Self {
            tasks: refreshing.map(|task| task.abort_handle()).collect(),
            clock,
            access,
            providers,
            running,
            memory,
        })
    }

    /// Whether JWTs of any provider count here.
    pub(crate) fn has_providers(&self) -> bool {
        !self.providers.is_empty()
    }

    /// Who presents this credential. `None` if it is none of a provider: it is no JWT, or, unless it `must` be of one, one of a provider
    /// that this host does not know. Unless it must, it is for a component, and then what may be a JWT and is not one for certain is
    /// refused.
    ///
    /// # Errors
    /// [`Refusal`].
    pub(crate) async fn prove(
        &self,
        presented: &str,
        must: bool,
    ) -> Result<Option<Identified>, Refusal> {
        let may_be_one = match must {
            true => jwt::is_one(presented),
            false => jwt::may_be_one(presented),
        };
        if !self.has_providers() || !may_be_one {
            return Ok(None);
        }
        let print: Print = Sha256::digest(presented.as_bytes()).into();
        if let Some(known) = self.remembered(&print) {
            return Ok(Some(known));
        }
        let read = match must {
            true => Jwt::read(presented).map(Some),
            false => jwt::of_route(presented, |issuer| self.knows(issuer)),
        };
        let proved = match read {
            Ok(Some(jwt)) => self.verified(&jwt, print).await,
            Ok(None) => return Ok(None),
            Err(refusal) => Err(refusal),
        };
        if let Err(refusal) = &proved {
            let reason = refusal.reason();
            metrics::counter!("millrace_identity_refused_total", "reason" => reason).increment(1);
            tracing::debug!(%refusal, "a JWT was refused");
        }
        proved.map(Some)
    }

    fn knows(&self, issuer: &str) -> bool {
        self.providers.iter().any(|one| one.issuer == issuer)
    }

    fn remembered(&self, print: &Print) -> Option<Identified> {
        let now = self.clock.wall();
        let known = self.memory.lock().find(print, now)?;
        if !self.access.still_counts(&known.proved) {
            // Its principal has other rules now: the JWT is judged again.
            self.memory.lock().forget(print);
            return None;
        }
        Some(Identified {
            proved: known.proved,
            strip: self.providers[known.provider].strip,
        })
    }

    async fn verified(&self, jwt: &Jwt<'_>, print: Print) -> Result<Identified, Refusal> {
        let at = provider_of(&jwt.claims, &self.providers)?;
        let (provider, running) = (&self.providers[at], &self.running[at]);
        let verified = match running.judge(jwt, self.clock.as_ref()) {
            Err(Refusal::UnknownKey | Refusal::NoKeys) => {
                running.ask().await;
                running.judge(jwt, self.clock.as_ref())
            }
            judged => judged,
        }?;
        let until = verified.presented.until;
        let proved = self.access.prove_as(verified.presented)?;
        let mut memory = self.memory.lock();
        // Under the lock: keys that are replaced are forgotten under it, after they were replaced.
        if running.has(&verified.print) {
            let proved = proved.clone();
            let (provider, key) = (at, verified.print);
            let remembered = Remembered {
                proved,
                until,
                provider,
                key,
            };
            memory.add(print, remembered);
        }
        Ok(Identified {
            proved,
            strip: provider.strip,
        })
    }
}

impl Running {
    fn judge(
        &self,
        jwt: &Jwt<'_>,
        clock: &dyn Clock,
    ) -> Result<super::verifying::Verified, Refusal> {
        let keys = self.keys.read().clone().ok_or(Refusal::NoKeys)?;
        verify(jwt, &keys, &self.provider, clock.wall())
    }

    fn has(&self, key: &Print) -> bool {
        self.keys.read().as_ref().is_some_and(|keys| keys.has(key))
    }

    /// Fetches the keys now and then, for ever.
    async fn refresh(self: Arc<Self>) {
        loop {
            let pause = match self.clone().renew().await {
                true => REFRESH,
                false => RETRY,
            };
            tokio::time::sleep(pause).await;
        }
    }

    /// Fetches the keys because a JWT has one that is not known, unless that was done just now.
    async fn ask(self: &Arc<Self>) {
        // Whoever comes while they are fetched waits, and finds the new ones.
        let mut asked = self.asked.lock().await;
        let now = self.clock.monotonic();
        if asked.is_some_and(|before| now.saturating_sub(before) < ASK_INTERVAL) {
            return;
        }
        *asked = Some(now);
        // On its own: it is for all who wait, so it does not end with the one who asked.
        let _ = tokio::spawn(self.clone().renew()).await;
    }

    /// Fetches the keys. If that fails, those before stay. Returns whether it did not.
    async fn renew(self: Arc<Self>) -> bool {
        let provider = self.provider.clone();
        let fetched = tokio::task::spawn_blocking(move || fetch(&provider)).await;
        let issuer = &self.provider.issuer;
        let is_fetched = match fetched {
            Ok(Ok(keys)) => {
                self.replace(keys);
                if std::mem::take(&mut *self.is_away.lock()) {
                    tracing::info!(issuer, "the keys of the identity provider are there again");
                }
                true
            }
            Ok(Err(error)) => {
                let was_away = std::mem::replace(&mut *self.is_away.lock(), true);
                if !was_away {
                    let kept = self.keys.read().as_ref().map_or(0, |keys| keys.len());
                    tracing::warn!(
                        issuer, %error, kept,
                        "the keys of the identity provider cannot be fetched; those that are known stay in use"
                    );
                }
                false
            }
            // It panicked; the log says how.
            Err(_) => false,
        };
        let outcome = if is_fetched { "fetched" } else { "failed" };
        metrics::counter!(
            "millrace_identity_key_fetches_total", "issuer" => issuer.clone(), "outcome" => outcome
        )
        .increment(1);
        is_fetched
    }

    fn replace(&self, keys: Keys) {
        metrics::gauge!("millrace_identity_keys", "issuer" => self.provider.issuer.clone())
            .set(keys.len() as f64);
        *self.keys.write() = Some(Arc::new(keys));
        let mut memory = self.memory.lock();
        memory.keep_keys(self.at, |key| self.has(key));
    }
}
