//! Several hosts on three NATS servers: they share the work, and neither the loss of a host nor that of a server loses or repeats anything.

use std::collections::BTreeMap;

use anyhow::{Result, ensure};
use millrace_tests::{Host, Nats, nats_server, wait_for};
use serde_json::json;

use crate::MILLRACE;
use crate::load::Load;
use crate::shared::{
    FAILING_EVERY, deploy, each_was_done_once, message, numbers, wait_until_all_is_done,
};

const HOSTS: usize = 3;

#[test]
fn what_a_killed_host_was_at_is_done_once_though_a_server_of_nats_is_lost_as_well() -> Result<()> {
    if nats_server().is_none() {
        println!("skipped: there is no nats-server on this machine");
        return Ok(());
    }
    let (servers, directory) = (Nats::start(3)?, tempfile::tempdir()?);
    let urls = servers.urls().join(",");
    let options = [
        "--engine",
        "jetstream",
        "--jetstream-url",
        &urls,
        "--jetstream-synced",
    ];
    let mut hosts = Vec::new();
    for number in 0..HOSTS {
        let data = directory.path().join(number.to_string());
        let mut host = Host::in_directory(MILLRACE, &data, &options);
        host.start_again()?;
        hosts.push(host);
    }
    let client = hosts[0].client();
    let about = client.get("/v1/host")?.ok()?;
    ensure!(about["engine"] == json!("jetstream"), "{about}");
    wait_for("all hosts are listed", || {
        let listed = client.get("/v1/hosts")?.ok()?;
        let count = listed["hosts"].as_array().map_or(0, Vec::len);
        Ok((count == HOSTS).then_some(()))
    })?;
    deploy(&client)?;
    let load = Load::of(message);
    load.kill(&mut hosts[1])?;
    servers.kill(2)?;
    load.kill(&mut hosts[2])?;
    load.kill(&mut hosts[1])?;
    wait_until_all_is_done(&client)?;
    let acknowledged = load.acknowledged();
    each_was_done_once(&client, &acknowledged, || {
        match acknowledged.iter().any(|n| n.is_multiple_of(FAILING_EVERY)) {
            true => Ok(numbers(&client.read("in.worker.dlq")?)),
            false => Ok(BTreeMap::new()),
        }
    })
}
