//! The first command in the README, as a newcomer runs it.

use std::process::Command;

use anyhow::Result;

use crate::MILLRACE;

#[test]
fn the_demo_ends_with_totals_that_add_up() -> Result<()> {
    let output = Command::new(MILLRACE).args(["demo", "--fast"]).output()?;
    let story = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success(),
        "{story}\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(story.contains("1,707 in = 1,679 out + 28 dead"), "{story}");
    Ok(())
}
