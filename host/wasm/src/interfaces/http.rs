//! `wasi:http`: types for all components that use HTTP, and requests to granted servers. Linked only for components that import it.

use std::sync::Arc;

use http::Request;
use wasmtime::StoreContextMut;
use wasmtime::component::{Linker, Resource};
use wasmtime_wasi_http::p2::bindings::http::types::ErrorCode;
use wasmtime_wasi_http::p2::bindings::{LinkOptions, http as wasi_http};
use wasmtime_wasi_http::{
    Error, RequestOptions, WasiBody, WasiHttp, WasiHttpCtx, WasiHttpHooks, WasiHttpView as _,
};
use wasmtime_wasi_io::streams::Error as StreamFailure;

use crate::outbound::{Access, Answering, code_of};
use crate::pool::GuestState;

/// Approximate bytes of a request's or an answer's headers in the host's memory, as a guest makes them.
const FIELDS_BYTES_MAX: usize = 64 << 10;

/// Bytes that a guest writes to a body at a time.
const BODY_WRITE_BYTES_MAX: usize = 64 << 10;

/// Such writes that the host keeps until the body is sent; then the guest waits.
const BODY_WRITES_MAX: usize = 2;

pub(crate) fn link(linker: &mut Linker<GuestState>) -> wasmtime::Result<()> {
    type T = GuestState;
    let options = LinkOptions::default();
    wasi_http::outgoing_handler::add_to_linker::<T, WasiHttp>(linker, T::http)?;
    wasi_http::types::add_to_linker::<T, WasiHttp>(linker, &(&options).into(), T::http)?;
    // wasmtime-wasi-http knows the codes of failed requests, but not of bodies that broke off.
    linker.allow_shadowing(true);
    linker.instance("wasi:http/types@0.2.12")?.func_wrap(
        "http-error-code",
        |mut store: StoreContextMut<'_, GuestState>, (error,): (Resource<StreamFailure>,)| {
            let error = store.data_mut().http().table.get(&error)?;
            let code = match error.downcast_ref::<ErrorCode>() {
                Some(code) => Some(code.clone()),
                None => error.downcast_ref::<Error>().map(code_of),
            };
            Ok((code,))
        },
    )?;
    linker.allow_shadowing(false);
    Ok(())
}

/// One instance's part of `wasi:http`.
pub(crate) struct HttpState {
    pub(crate) context: WasiHttpCtx,
    pub(crate) hooks: Hooks,
}

impl HttpState {
    /// With access to the servers that are granted; `None`: the component does not send requests.
    pub(crate) fn new(access: Option<Arc<Access>>) -> Self {
        let mut context = WasiHttpCtx::new();
        context.set_field_size_limit(FIELDS_BYTES_MAX);
        let hooks = Hooks(access);
        Self { context, hooks }
    }
}

/// Sends requests by our own client.
pub(crate) struct Hooks(Option<Arc<Access>>);

impl WasiHttpHooks for Hooks {
    /// The host writes it itself, from the granted server.
    fn set_host_header(&mut self) -> bool {
        false
    }

    fn send_request(
        &mut self,
        request: Request<WasiBody>,
        options: Option<RequestOptions>,
        _processed: Box<dyn Future<Output = Result<(), Error>> + Send>,
    ) -> Answering {
        match &self.0 {
            Some(access) => access.send(request, options),
            None => Box::new(std::future::ready(Err(Error::HttpRequestDenied))),
        }
    }

    fn p2_outgoing_body_buffer_chunks(&mut self) -> usize {
        BODY_WRITES_MAX
    }

    fn p2_outgoing_body_chunk_size(&mut self) -> usize {
        BODY_WRITE_BYTES_MAX
    }
}
