//! `module pull` and `module publish`: modules from a registry to the host, and from the host to a registry.

mod artefact;
mod credentials;
mod reference;
mod registry;

use millrace_model::calendar::date;
use serde_json::{Value, json};

use super::client::Client;
use super::failure::Failure;
use super::module;
use super::table::cell;
use credentials::Credentials;
use reference::Reference;
use registry::Registry;

/// The largest module that any host takes: 192 MiB. Asked for if the host does not say what it takes.
const MODULE_BYTES_MAX: u64 = 192 << 20;

#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  millrace module pull oci://127.0.0.1:5000/modules/uppercase:1.0.0 --tag uppercase@1.0.0\n  millrace module pull oci://registry.example/uppercase@sha256:… --username ada < password\n\nThe command downloads the component, checks its digest and uploads it to the host, with its signature if it has one.\nRegistries on this machine are spoken to over HTTP, all others over HTTPS."
)]
pub(super) struct PullArgs {
    /// The component: oci://HOST[:PORT]/REPOSITORY[:TAG] or …@sha256:DIGEST
    #[arg(value_name = "OCI")]
    from: String,
    /// A tag for it on the host
    #[arg(long, value_name = "NAME@VERSION")]
    tag: Option<String>,
    #[command(flatten)]
    access: Access,
}

#[derive(clap::Args)]
#[command(
    after_help = "Example:\n  millrace module publish uppercase@1.0.0 oci://127.0.0.1:5000/modules/uppercase:1.0.0\n\nThe component is stored as registries store WebAssembly (application/wasm), its signature as an annotation.\nOther tools can read it, and the answer has the digest by which exactly this artefact is found."
)]
pub(super) struct PublishArgs {
    /// Digest, a unique beginning of it, or tag
    module: String,
    /// Where to: oci://HOST[:PORT]/REPOSITORY[:TAG]
    #[arg(value_name = "OCI")]
    to: String,
    #[command(flatten)]
    access: Access,
}

/// How the registry is spoken to.
#[derive(clap::Args)]
struct Access {
    /// The name for the registry, with the password on standard input; by default what `docker login` stored
    #[arg(long, value_name = "NAME")]
    username: Option<String>,
    /// Speak to the registry without TLS, although it is on another machine: anyone between can change the module
    #[arg(long)]
    insecure: bool,
}

impl Access {
    fn registry(self, reference: Reference) -> Result<Registry, Failure> {
        let credentials = Credentials::find(self.username, &reference.registry)?;
        Ok(Registry::new(reference, credentials, self.insecure))
    }
}

/// Copies a component from a registry to the host.
pub(super) fn pull(client: &Client, args: PullArgs) -> Result<(), Failure> {
    let reference = Reference::parse(&args.from)?;
    let name = reference.to_string();
    // First, because the host also says what it takes.
    let host = client.get("/v1/host")?;
    let taken = host["limits"]["module_bytes_max"].as_u64();
    let bytes_max = taken.unwrap_or(MODULE_BYTES_MAX).min(MODULE_BYTES_MAX);
    let mut registry = args.access.registry(reference)?;
    let layer = artefact::layer_of(&registry.manifest()?)?;
    if layer.bytes > bytes_max {
        let message = format!(
            "the module has {} bytes; the maximum of the host is {bytes_max} (setting module_bytes_max = {bytes_max})",
            layer.bytes
        );
        return Err(Failure::refused(message).with_hint("nothing was downloaded"));
    }
    let bytes = registry.blob(&layer.digest, layer.bytes)?;
    let tag = args.tag.as_deref();
    let digest = layer.digest.strip_prefix("sha256:");
    let signature = layer.signature.as_deref();
    let module = module::upload(client, tag, digest, signature, bytes.as_slice())?;
    client.output().answer(&module, |module| {
        format!("{name} is on the host\n{}", module::admitted(module, tag))
    })
}

/// Copies a module of the host to a registry.
pub(super) fn publish(client: &Client, args: PublishArgs) -> Result<(), Failure> {
    let reference = Reference::parse(&args.to)?;
    let module = client.get(&module::path(&args.module))?;
    let digest = cell(&module["digest"]);
    let bytes = client.get_bytes(
        &format!("{}/bytes", module::path(&digest)),
        MODULE_BYTES_MAX,
    )?;
    if artefact::digest_of(&bytes) != format!("sha256:{digest}") {
        let message = format!("the host sent other bytes than those of module {digest}");
        return Err(
            Failure::failed(message).with_hint("`millrace doctor` examines the host's data")
        );
    }
    let (config, manifest) = artefact::described(&module, &bytes, &created(&module["uploaded_at"]));
    let mut registry = args.access.registry(reference.clone())?;
    registry.put_blob(&config)?;
    registry.put_blob(&bytes)?;
    let published = registry.put_manifest(&manifest)?;
    let answer =
        json!({"module": digest, "reference": reference.to_string(), "manifest": published});
    client.output().answer(&answer, |answer| {
        format!(
            "{} holds the module\nmodule    {digest}\nmanifest  {published}",
            cell(&answer["reference"])
        )
    })
}

/// A time as RFC 3339 says it, in seconds.
fn created(ms: &Value) -> String {
    let seconds = ms.as_u64().unwrap_or_default() / 1_000;
    let (year, month, day) = date(seconds / 86_400);
    let (hour, minute, second) = (seconds / 3_600 % 24, seconds / 60 % 60, seconds % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}
