//! `completions` and `man`: shell completions and manual pages, generated from the command line itself.

use std::io::Write;
use std::path::PathBuf;

use clap::Command;
use clap_complete::Shell;

use super::failure::Failure;

/// The name that a shell knows.
const PROGRAM: &str = "millrace";

const COMPLETIONS_HELP: &str = "\
Examples:
  millrace completions bash > /etc/bash_completion.d/millrace
  millrace completions zsh > \"${fpath[1]}/_millrace\"
  millrace completions fish > ~/.config/fish/completions/millrace.fish";

const MAN_HELP: &str = "\
Examples:
  millrace man | man -l -                          read it
  millrace man --dir /usr/local/share/man/man1     a page for every command";

/// Print a completion script for a shell
#[derive(clap::Args)]
#[command(after_help = COMPLETIONS_HELP)]
pub(super) struct CompletionsArgs {
    /// The shell
    shell: Shell,
}

/// Print the manual page, or write a page for every command
#[derive(clap::Args)]
#[command(after_help = MAN_HELP)]
pub(super) struct ManArgs {
    /// Write a page for every command into this directory
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

pub(super) fn complete(args: &CompletionsArgs, mut command: Command) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut command, PROGRAM, &mut script);
    print(&script)
}

pub(super) fn man(args: &ManArgs, command: Command) -> Result<(), Failure> {
    match &args.dir {
        Some(dir) => {
            std::fs::create_dir_all(dir)?;
            Ok(clap_mangen::generate_to(command, dir)?)
        }
        None => {
            let mut page = Vec::new();
            clap_mangen::Man::new(command).render(&mut page)?;
            print(&page)
        }
    }
}

fn print(bytes: &[u8]) -> Result<(), Failure> {
    let mut out = std::io::stdout();
    out.write_all(bytes)?;
    Ok(out.flush()?)
}
