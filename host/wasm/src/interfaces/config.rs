//! `config`: a guest reads the settings of its processor.

use wasmtime::StoreContextMut;
use wasmtime::component::{Linker, WasmStr};

use crate::pool::GuestState;

pub(crate) fn link(linker: &mut Linker<GuestState>) -> wasmtime::Result<()> {
    let mut interface = linker.instance("millrace:broker/config@0.1.1")?;
    interface.func_wrap(
        "get",
        |store: StoreContextMut<'_, GuestState>, (key,): (WasmStr,)| {
            let key = key.to_str(&store)?;
            let value = store.data().config.get(&key).map(str::to_owned);
            Ok((value,))
        },
    )?;
    interface.func_wrap("all", |store: StoreContextMut<'_, GuestState>, (): ()| {
        let config = &store.data().config;
        let all: Vec<(String, String)> = config
            .iter()
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect();
        Ok((all,))
    })
}
