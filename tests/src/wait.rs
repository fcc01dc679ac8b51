//! Waiting for conditions, never for time.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// Maximum wait for a condition before the test fails. Generous, because the machines are small and
/// shared.
const PATIENCE: Duration = Duration::from_secs(240);
const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// Calls `look` until it returns something; fails after [`PATIENCE`] and says what was awaited.
pub fn wait_for<T>(what: &str, mut look: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look().with_context(|| format!("while waiting for {what}"))? {
            return Ok(found);
        }
        if Instant::now() > deadline {
            bail!("waited {} s in vain for {what}", PATIENCE.as_secs());
        }
        std::thread::sleep(LOOK_AGAIN);
    }
}

/// Calls `act` repeatedly for `how_long`; for load, not for waiting.
pub fn hold_for(how_long: Duration, mut act: impl FnMut() -> Result<()>) -> Result<()> {
    let deadline = Instant::now() + how_long;
    while Instant::now() < deadline {
        act()?;
    }
    Ok(())
}
