//! Compiled code survives a restart, and only our own is ever loaded.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;

use guest_artifacts as guests;
use millrace_broker::handler::ModuleHost as _;

use crate::bytes::{name, section};
use crate::support::{TestHost, digest, one, request};

/// The same guest with another digest, because of an extra section without a meaning.
fn variant(number: usize) -> Vec<u8> {
    let label = section(0, &name(&format!("variant {number}")));
    [guests::PASSTHROUGH.to_vec(), label].concat()
}

fn code_file(host: &TestHost, bytes: &[u8]) -> PathBuf {
    let digest = digest(bytes).to_string();
    let mut files = fs::read_dir(host.directory.path().join("code")).unwrap();
    let file = files.find_map(|entry| {
        let entry = entry.unwrap();
        entry
            .file_name()
            .to_string_lossy()
            .starts_with(&digest)
            .then(|| entry.path())
    });
    file.expect("the code is kept")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_with_a_hundred_modules_compiles_none_of_them() {
    const MODULES: usize = 100;
    let host = TestHost::start_with(|options| options.instances_max = 256);
    for number in 0..MODULES {
        host.admit(&variant(number)).await.unwrap();
    }
    assert_eq!(host.host.compiles(), MODULES as u64);
    let host = host.restart();
    for number in 0..MODULES {
        let handler = host
            .processor(&format!("p{number}"), &variant(number))
            .await;
        assert_eq!(one(&handler, "hello").await.unwrap(), "hello");
    }
    assert_eq!(host.host.compiles(), 0);
}

#[tokio::test]
async fn changed_code_is_never_loaded_but_compiled_again() {
    let mut host = TestHost::start();
    host.admit(guests::PASSTHROUGH).await.unwrap();
    let length = fs::metadata(code_file(&host, guests::PASSTHROUGH))
        .unwrap()
        .len() as usize;
    for place in [0, 8, 39, 40, 1_000, length / 2, length - 1] {
        let file = code_file(&host, guests::PASSTHROUGH);
        let mut code = fs::read(&file).unwrap();
        code[place] ^= 1;
        fs::write(&file, code).unwrap();
        host = host.restart();
        let handler = host.processor("p", guests::PASSTHROUGH).await;
        assert_eq!(one(&handler, "hello").await.unwrap(), "hello");
        assert_eq!(host.host.compiles(), 1, "byte {place}");
    }
    for cut in [0, 5, 20, length - 1] {
        let file = code_file(&host, guests::PASSTHROUGH);
        let code = fs::read(&file).unwrap();
        fs::write(&file, &code[..cut]).unwrap();
        host = host.restart();
        host.processor("p", guests::PASSTHROUGH).await;
        assert_eq!(host.host.compiles(), 1, "cut to {cut}");
    }
}

#[tokio::test]
async fn the_code_of_one_module_does_not_pass_for_anothers() {
    let host = TestHost::start();
    host.admit(guests::PASSTHROUGH).await.unwrap();
    host.admit(guests::UPPERCASE).await.unwrap();
    let (from, to) = (
        code_file(&host, guests::PASSTHROUGH),
        code_file(&host, guests::UPPERCASE),
    );
    fs::copy(from, to).unwrap();
    let host = host.restart();
    let handler = host.processor("p", guests::UPPERCASE).await;
    assert_eq!(one(&handler, "hello").await.unwrap(), "HELLO");
    assert_eq!(host.host.compiles(), 1);
}

#[tokio::test]
async fn the_secret_and_the_directory_are_private() {
    let host = TestHost::start();
    let directory = host.directory.path().join("code");
    let mode = |path: PathBuf| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(directory.join("secret")), 0o600);
    assert_eq!(mode(directory), 0o700);
}

#[tokio::test]
async fn a_forgotten_module_leaves_no_code_and_its_handlers_go_on() {
    let host = TestHost::start();
    let handler = host.processor("p", guests::UPPERCASE).await;
    let file = code_file(&host, guests::UPPERCASE);
    host.host.forget(digest(guests::UPPERCASE));
    assert!(!file.exists());
    assert_eq!(one(&handler, "on").await.unwrap(), "ON");
}

#[tokio::test]
async fn what_other_versions_left_in_the_directory_is_removed() {
    let host = TestHost::start();
    let stranger = host.directory.path().join("code").join("0123-0000.code");
    fs::write(&stranger, "old").unwrap();
    let host = host.restart();
    assert!(!stranger.exists());
    host.host
        .processor(request("p", guests::UPPERCASE))
        .await
        .map(drop)
        .unwrap();
}
