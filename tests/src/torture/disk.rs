//! A private disk whose power can be cut: ext4 in a file, mounted by a loop device in a directory
//! that nothing else uses. The file is in memory (in its own tmpfs), so that the file system's
//! journal, and not the medium, decides what a cut loses.
//!
//! The cut is the ioctl `EXT4_IOC_SHUTDOWN`. Calling it takes unsafe code, so `xfs_io` (package
//! xfsprogs) or python3 does it.

use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use fastrand::Rng;
use tempfile::TempDir;

/// Large enough for a world of small files.
const IMAGE_BYTES: u64 = 192 << 20;
/// How long a mount point, or the device under it, may be busy: a killed process keeps its files
/// open until it has been scheduled once more.
const UNMOUNT_PATIENCE: Duration = Duration::from_secs(120);
const LOOK_DELAY: Duration = Duration::from_millis(20);
/// Cuts the power when it reads a line.
const CUT_BY_PYTHON: &str = "import fcntl, os, struct, sys
file = os.open(sys.argv[1], os.O_RDONLY)
sys.stdin.readline()
fcntl.ioctl(file, 0x8004587d, struct.pack('I', int(sys.argv[2])))";

/// The file system; unmounted and removed when dropped.
pub(super) struct LoopDisk {
    directory: TempDir,
    image_bytes: u64,
    options: &'static str,
    mounted: Vec<PathBuf>,
}

/// A process that is ready to cut the power; starting it only then would take too long.
pub(super) struct Cutter {
    process: Child,
    flag: u8,
    line: &'static str,
}

/// Checks that this machine can do it; the error is the reason why not.
pub(super) fn available() -> Result<(), String> {
    static TRIED: OnceLock<Result<(), String>> = OnceLock::new();
    TRIED.get_or_init(attempt).clone()
}

fn attempt() -> Result<(), String> {
    let attempt = || -> Result<()> {
        ensure!(rustix::process::geteuid().is_root(), "not root");
        let mut disk = LoopDisk::new(&mut Rng::with_seed(0))?;
        let file = disk.path().join("proof");
        std::fs::write(&file, "unsynced")?;
        disk.cutter(2)?.cut()?;
        disk.restore()?;
        ensure!(
            std::fs::read(&file).unwrap_or_default().is_empty(),
            "the cut lost nothing"
        );
        Ok(())
    };
    attempt().map_err(|error| {
        format!("needs root and loop devices, and xfs_io or python3 to cut the power ({error:#})")
    })
}

impl LoopDisk {
    /// Makes and mounts a disk, with a random ordering of data and metadata.
    pub(super) fn new(random: &mut Rng) -> Result<Self> {
        let options = [
            "loop",
            "loop,data=writeback",
            "loop,nodelalloc",
            "loop,data=journal",
        ];
        Self::of(
            IMAGE_BYTES,
            IMAGE_BYTES + (8 << 20),
            options[random.usize(..options.len())],
        )
    }

    /// Makes one with an image of `image_bytes` in a memory file system of `memory_bytes`.
    pub(super) fn of(image_bytes: u64, memory_bytes: u64, options: &'static str) -> Result<Self> {
        let mut disk = Self {
            directory: tempfile::Builder::new()
                .prefix("millrace-torture-")
                .tempdir()?,
            image_bytes,
            options,
            mounted: Vec::new(),
        };
        disk.make(memory_bytes)?;
        Ok(disk)
    }

    fn make(&mut self, memory_bytes: u64) -> Result<()> {
        let memory = self.directory.path().join("memory");
        std::fs::create_dir(&memory)?;
        std::fs::create_dir(self.path())?;
        let size = format!("size={memory_bytes}");
        tool(
            "mount",
            &[
                "-t",
                "tmpfs",
                "-o",
                &size,
                "millrace-torture",
                text(&memory)?,
            ],
        )?;
        self.mounted.push(memory);
        let image = self.image();
        std::fs::File::create_new(&image)?.set_len(self.image_bytes)?;
        let lazily = "lazy_itable_init=1,lazy_journal_init=1,nodiscard";
        tool("mkfs.ext4", &["-q", "-F", "-E", lazily, text(&image)?])?;
        self.mount()
    }

    /// The mount point.
    pub(super) fn path(&self) -> PathBuf {
        self.directory.path().join("disk")
    }

    /// A process that can cut the power. With flag 2 whatever is not in the file system's journal
    /// on disk is lost; 1 first writes the journal out, 0 everything.
    pub(super) fn cutter(&self, flag: u8) -> Result<Cutter> {
        let path = self.path();
        let path = text(&path)?;
        // xfs_io has no option for 0.
        let (by_tool, line) = match flag {
            1 => (spawn("xfs_io", &["-x", path]), "shutdown -f\n"),
            2 => (spawn("xfs_io", &["-x", path]), "shutdown\n"),
            _ => (Err(anyhow!("not by xfs_io")), "\n"),
        };
        let by_python = |_| spawn("python3", &["-c", CUT_BY_PYTHON, path, &flag.to_string()]);
        let process = by_tool.or_else(by_python)?;
        Ok(Cutter {
            process,
            flag,
            line,
        })
    }

    /// Restores the power: mounts again, which replays the file system's journal. Nothing may use
    /// the disk meanwhile.
    pub(super) fn restore(&mut self) -> Result<()> {
        self.unmount_last()?;
        self.mount()
    }

    /// Uses up the memory under the file system, so that its writes fail from now on, as on a disk
    /// that breaks.
    pub(super) fn break_down(&self) -> Result<()> {
        fill(&self.directory.path().join("memory/ballast"))
    }

    /// Repairs the medium; call [`LoopDisk::restore`] afterwards.
    pub(super) fn mend(&self) -> Result<()> {
        Ok(std::fs::remove_file(
            self.directory.path().join("memory/ballast"),
        )?)
    }

    fn image(&self) -> PathBuf {
        self.directory.path().join("memory/image")
    }

    fn mount(&mut self) -> Result<()> {
        let (image, path) = (self.image(), self.path());
        tool("mount", &["-o", self.options, text(&image)?, text(&path)?])?;
        self.mounted.push(path);
        Ok(())
    }

    fn unmount_last(&mut self) -> Result<()> {
        let path = self.mounted.pop().context("not mounted")?;
        let began = Instant::now();
        while began.elapsed() < UNMOUNT_PATIENCE {
            if tool("umount", &[text(&path)?]).is_ok() {
                return self.wait_for_device();
            }
            thread::sleep(LOOK_DELAY);
        }
        tool("umount", &["-l", text(&path)?])?;
        bail!("{} stays busy", path.display())
    }
}

impl LoopDisk {
    /// Waits until no loop device uses the image any more. A device outlives the mount while
    /// another process has it open, and two devices on one image do not see each other's writes.
    fn wait_for_device(&self) -> Result<()> {
        let image = self.image();
        let began = Instant::now();
        while image.exists() && began.elapsed() < UNMOUNT_PATIENCE {
            let devices = Command::new("losetup").arg("-j").arg(&image).output();
            // Where devices cannot be listed there is nothing to wait for.
            if devices.is_ok_and(|devices| devices.stdout.is_empty()) || !knows_devices() {
                return Ok(());
            }
            thread::sleep(LOOK_DELAY);
        }
        ensure!(!image.exists(), "the device of {} stays", image.display());
        Ok(())
    }
}

/// Whether the system lists its loop devices.
fn knows_devices() -> bool {
    static KNOWS: OnceLock<bool> = OnceLock::new();
    *KNOWS.get_or_init(|| tool("losetup", &["-a"]).is_ok())
}

impl Cutter {
    /// The flag of the cut.
    pub(super) fn flag(&self) -> u8 {
        self.flag
    }

    /// Cuts the power.
    pub(super) fn cut(mut self) -> Result<()> {
        let told = self.process.stdin.take().context("told before")?;
        (&told).write_all(self.line.as_bytes())?;
        drop(told);
        let mut says = String::new();
        if let Some(stderr) = &mut self.process.stderr {
            stderr.read_to_string(&mut says)?;
        }
        let status = self.process.wait()?;
        let is_cut = status.success() && says.is_empty();
        ensure!(is_cut, "the power is not cut: {status}: {}", says.trim());
        Ok(())
    }
}

impl Drop for Cutter {
    fn drop(&mut self) {
        // After the cut the process has ended.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Drop for LoopDisk {
    fn drop(&mut self) {
        while !self.mounted.is_empty() {
            if let Err(error) = self.unmount_last() {
                eprintln!("torture: {error:#}");
            }
        }
    }
}

/// Writes a file until the disk is full.
pub(super) fn fill(path: &Path) -> Result<()> {
    let file = std::fs::File::create(path)?;
    for bytes in [1 << 20, 64 << 10, 4 << 10, 512] {
        let chunk = vec![0x55; bytes];
        while (&file).write_all(&chunk).is_ok() {}
    }
    Ok(())
}

fn spawn(name: &str, arguments: &[&str]) -> Result<Child> {
    let mut command = Command::new(name);
    command.args(arguments).stdin(Stdio::piped());
    let spawned = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn();
    spawned.with_context(|| format!("{name} does not run"))
}

/// Runs a tool of the system; its standard error becomes the error.
pub(super) fn tool(name: &str, arguments: &[&str]) -> Result<()> {
    let output = Command::new(name)
        .args(arguments)
        .stdin(Stdio::null())
        .output();
    let output = output.with_context(|| format!("{name} does not run"))?;
    let says = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.success(),
        "{name}: {}: {}",
        output.status,
        says.trim()
    );
    Ok(())
}

fn text(path: &Path) -> Result<&str> {
    path.to_str().context("a path that is no text")
}
