//! `secrets`: a guest reads the secrets that were granted to it.

use millrace_model::SecretName;
use wasmtime::StoreContextMut;
use wasmtime::component::{ComponentType, Linker, Lower, WasmStr};

use crate::logs::clean;
use crate::pool::GuestState;

/// Bytes of an asked name that an error repeats.
const NAME_SHOWN_BYTES_MAX: usize = 100;

/// `secrets.secret-error`.
#[derive(ComponentType, Lower)]
#[component(variant)]
enum SecretError {
    #[component(name = "not-granted")]
    NotGranted(String),
    #[component(name = "unavailable")]
    Unavailable(String),
}

pub(crate) fn link(linker: &mut Linker<GuestState>) -> wasmtime::Result<()> {
    linker.instance("millrace:broker/secrets@0.1.1")?.func_wrap(
        "get",
        |store: StoreContextMut<'_, GuestState>, (name,): (WasmStr,)| {
            let name = name.to_str(&store)?;
            Ok((secret(store.data(), &name),))
        },
    )
}

fn secret(guest: &GuestState, asked: &str) -> Result<Vec<u8>, SecretError> {
    let granted = |name: &SecretName| guest.grants.secrets.contains(name);
    let Some(name) = SecretName::parse(asked).ok().filter(granted) else {
        let asked = clean(asked, NAME_SHOWN_BYTES_MAX);
        return Err(SecretError::NotGranted(format!(
            "secret {asked:?} is not granted to this processor"
        )));
    };
    let value = guest
        .secret_store
        .secret(&name)
        .map_err(SecretError::Unavailable)?;
    guest.log.hidden.hide(&name, &value);
    Ok(value)
}
