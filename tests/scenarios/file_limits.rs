//! Limits that the system sets on a process's files are not disk errors. What does not fit is
//! refused with a reason, reading continues, and the host continues by itself once the limit is
//! lifted.

use std::fs;
use std::time::Duration;

use anyhow::{Result, ensure};
use millrace_tests::{Client, Host, Reply, wait_for};
use rustix::process::{Resource, Rlimit, prlimit};

use crate::MILLRACE;

const SIZE_MAX: u64 = 80 << 20;

/// Sets the running host's limit; the maximum up to which it may be raised stays.
fn limit(host: &Host, resource: Resource, current: Option<u64>) -> Result<()> {
    let pid = host.pid()?;
    let maximum = match resource {
        Resource::Nofile => Some(4_096),
        _ => None,
    };
    prlimit(Some(pid), resource, Rlimit { current, maximum })?;
    Ok(())
}

fn produce(client: &Client, partition: usize, bytes: usize) -> Result<Reply> {
    let path = format!("/v1/topics/t/messages?partition={partition}");
    client.post(&path, "application/octet-stream", &vec![b'x'; bytes])
}

/// Whether the request was accepted; any refusal must be for lack of room.
fn is_taken(reply: &Reply) -> Result<bool> {
    if reply.status == 200 {
        return Ok(true);
    }
    let (code, message, _) = reply.error()?;
    ensure!(code == "disk-full", "{code}: {message}");
    Ok(false)
}

fn goes_on_when_lifted(host: &mut Host, resource: Resource, lifted: Option<u64>) -> Result<()> {
    ensure!(host.ended()?.is_none(), "the host runs");
    limit(host, resource, lifted)?;
    let client = host.client();
    wait_for("messages to be taken again", || {
        Ok(is_taken(&produce(&client, 0, 100)?)?.then_some(()))
    })?;
    let count = client.count("t")?;
    host.kill()?;
    host.start_again()?;
    ensure!(host.client().count("t")? == count, "all of them are there");
    Ok(())
}

#[test]
fn a_file_that_may_not_grow_is_like_a_full_disk() -> Result<()> {
    let mut host = Host::start_with(MILLRACE, &["--checkpoint-journal-bytes", "1048576"])?;
    let client = host.client();
    client.topic("t", 1)?;
    limit(&host, Resource::Fsize, Some(SIZE_MAX))?;
    let mut refused = false;
    for _ in 0..60 {
        if !is_taken(&produce(&client, 0, 7_000_000)?)? {
            refused = true;
            break;
        }
    }
    ensure!(refused, "420 MB, where a file may have 80");
    let read = client.get("/v1/topics/t/partitions/0/messages?from=0&max=1")?;
    ensure!(read.status == 200, "reading goes on");
    goes_on_when_lifted(&mut host, Resource::Fsize, None)
}

#[test]
fn a_file_that_cannot_be_opened_for_want_of_descriptors_is_no_disk_error() -> Result<()> {
    let options = [
        "--checkpoint-journal-bytes",
        "65536",
        "--segment-bytes",
        "65536",
    ];
    let mut host = Host::start_with(MILLRACE, &options)?;
    let client = Client::with_timeout(host.url(), Duration::from_secs(5));
    client.topic("t", 64)?;
    // This connection is already open: a new one would need a descriptor, too.
    let open = fs::read_dir(format!("/proc/{}/fd", host.pid()?.as_raw_nonzero()))?.count();
    limit(&host, Resource::Nofile, Some(open as u64 - 1))?;
    let mut number = 0;
    wait_for("no file to be left for messages", || {
        number += 1;
        // Work that lacks a descriptor waits for one, and so does its producer.
        let taken = match produce(&client, number % 64, 20_000) {
            Ok(reply) => is_taken(&reply)?,
            Err(_) => false,
        };
        Ok((!taken).then_some(()))
    })?;
    goes_on_when_lifted(&mut host, Resource::Nofile, Some(4_096))
}
