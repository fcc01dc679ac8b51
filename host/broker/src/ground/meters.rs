//! What a principal has used of its quotas on this host.
//!
//! Each quota is a debt that is paid off at the quota's rate. A caller that owes nothing may take as much as it asks for, so a request
//! larger than a second's worth is possible; then it must wait until the debt is paid. (The same as a token bucket of one second that may
//! become overdrawn.) Nothing that was taken is forgotten, so in the long run nobody gets more than the rate.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use millrace_model::{Advice, Advised, Code, PrincipalName, Quota, Quotas};
use parking_lot::Mutex;

/// How much may be taken at once after a pause, in time at the quota's rate.
const BURST: Duration = Duration::from_secs(1);

/// A principal is over one of its quotas. Nothing was done.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "principal {principal} is over its quota of {limit} {unit} on this host; come back in {wait_ms} ms",
    unit = quota.unit()
)]
pub struct OverQuota {
    principal: PrincipalName,
    quota: Quota,
    limit: u64,
    /// Milliseconds until nothing is owed.
    pub wait_ms: u64,
}

impl Advised for OverQuota {
    fn advice(&self) -> Advice {
        let seconds = u32::try_from(self.wait_ms.div_ceil(1000)).unwrap_or(u32::MAX);
        Code::OverQuota.advice().after_s(seconds.max(1))
    }
}

/// The debts of one principal.
#[derive(Debug)]
pub struct Meters {
    principal: PrincipalName,
    /// Whether there is any quota: most principals have none, and their requests lock nothing.
    is_limited: AtomicBool,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    quotas: Quotas,
    debts: [Debt; Quota::ALL.len()],
}

/// When what was taken is paid off, in monotonic time.
#[derive(Clone, Copy, Debug, Default)]
struct Debt {
    paid_at: Duration,
}

impl Debt {
    /// How long until nothing is owed.
    fn owed(self, now: Duration) -> Duration {
        self.paid_at.saturating_sub(now)
    }

    fn take(&mut self, amount: u64, per_second: u64, now: Duration) {
        let nanos = u128::from(amount) * 1_000_000_000 / u128::from(per_second.max(1));
        let cost = Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
        // What was not used before is kept for one burst.
        let from = self.paid_at.max(now.saturating_sub(BURST));
        self.paid_at = from.saturating_add(cost);
    }
}

impl Meters {
    /// Meters of a principal that has used nothing.
    pub(crate) fn new(principal: PrincipalName, quotas: Quotas) -> Self {
        let inner = Inner {
            quotas,
            debts: Default::default(),
        };
        Self {
            principal,
            is_limited: AtomicBool::new(!quotas.is_empty()),
            inner: Mutex::new(inner),
        }
    }

    /// Other quotas from now on. What is owed stays owed.
    pub(crate) fn limit(&self, quotas: Quotas) {
        self.inner.lock().quotas = quotas;
        self.is_limited.store(!quotas.is_empty(), Ordering::Relaxed);
    }

    /// Whether nothing is owed of these.
    ///
    /// # Errors
    /// [`OverQuota`] for the one that takes longest.
    pub(crate) fn check(&self, quotas: &[Quota], now: Duration) -> Result<(), OverQuota> {
        if !self.is_limited.load(Ordering::Relaxed) {
            return Ok(());
        }
        let inner = self.inner.lock();
        let owed = |quota: &Quota| {
            let limit = inner.quotas.of(*quota)?;
            let owed = inner.debts[*quota as usize].owed(now);
            (!owed.is_zero()).then_some((owed, *quota, limit))
        };
        let Some((owed, quota, limit)) = quotas
            .iter()
            .filter_map(owed)
            .max_by_key(|(owed, ..)| *owed)
        else {
            return Ok(());
        };
        drop(inner);
        metrics::counter!("millrace_quota_refusals_total", "principal" => self.principal.to_string(), "quota" => quota.as_str())
            .increment(1);
        Err(OverQuota {
            principal: self.principal.clone(),
            quota,
            limit,
            wait_ms: u64::try_from(owed.as_millis()).unwrap_or(u64::MAX).max(1),
        })
    }

    /// Takes this much of each.
    pub(crate) fn take(&self, amounts: &[(Quota, u64)], now: Duration) {
        if !self.is_limited.load(Ordering::Relaxed) {
            return;
        }
        let mut inner = self.inner.lock();
        for (quota, amount) in amounts {
            if let Some(limit) = inner.quotas.of(*quota) {
                inner.debts[*quota as usize].take(*amount, limit, now);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn meters(quotas: Quotas) -> Meters {
        Meters::new(PrincipalName::parse("shop").unwrap(), quotas)
    }

    fn of_messages(per_second: u64) -> Meters {
        meters(Quotas {
            produced_messages: Some(per_second),
            ..Quotas::default()
        })
    }

    const SECOND: Duration = Duration::from_secs(1);
    const MESSAGES: [Quota; 1] = [Quota::ProducedMessages];

    #[test]
    fn who_took_too_much_waits_until_it_is_paid_off() {
        let meters = of_messages(10);
        let start = 10 * SECOND;
        assert_eq!(meters.check(&MESSAGES, start), Ok(()));
        meters.take(&[(Quota::ProducedMessages, 30)], start);
        let over = meters.check(&MESSAGES, start).unwrap_err();
        assert_eq!(over.wait_ms, 2000);
        assert_eq!(over.advice().retry_after_s, Some(2));
        assert!(
            over.to_string().contains("10 messages sent a second"),
            "{over}"
        );
        assert!(meters.check(&MESSAGES, start + 2 * SECOND).is_ok());
    }

    #[test]
    fn what_has_no_quota_is_not_limited_and_quotas_change_at_once() {
        let meters = of_messages(1);
        meters.take(
            &[(Quota::ReadBytes, u64::MAX), (Quota::ProducedMessages, 100)],
            SECOND,
        );
        assert!(meters.check(&[Quota::ReadBytes], SECOND).is_ok());
        assert!(meters.check(&MESSAGES, SECOND).is_err());
        meters.limit(Quotas::default());
        assert!(meters.check(&MESSAGES, SECOND).is_ok());
    }

    proptest! {
        #[test]
        fn in_the_long_run_nobody_gets_more_than_the_rate(
            asked in prop::collection::vec((1..2000u64, 0..500u64), 1..200), rate in 1..1000u64,
        ) {
            let meters = of_messages(rate);
            let start = 5 * SECOND;
            let mut now = start;
            let (mut taken, mut largest) = (0, 0);
            for (amount, pause_ms) in asked {
                now += Duration::from_millis(pause_ms);
                if meters.check(&MESSAGES, now).is_ok() {
                    meters.take(&[(Quota::ProducedMessages, amount)], now);
                    taken += amount;
                    largest = largest.max(amount);
                }
            }
            let seconds = (now - start + BURST).as_secs_f64();
            prop_assert!(taken as f64 <= rate as f64 * seconds + largest as f64 + 1.0);
        }

        #[test]
        fn who_stays_below_the_rate_is_never_refused(pauses in prop::collection::vec(100..300u64, 1..100)) {
            let meters = of_messages(10);
            let mut now = 5 * SECOND;
            for pause in pauses {
                now += Duration::from_millis(pause);
                prop_assert!(meters.check(&MESSAGES, now).is_ok());
                meters.take(&[(Quota::ProducedMessages, 1)], now);
            }
        }
    }
}
