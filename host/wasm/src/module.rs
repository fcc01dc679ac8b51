//! A module ready to be instantiated: its code, linked to its permitted imports, and the names of its exported interfaces.

use std::sync::Arc;

use millrace_broker::handler::{AdmitError, Interface};
use wasmtime::component::{Component, ComponentExportIndex, InstancePre, Linker};

use crate::admission::{
    handles_messages, interface_of, is_http, missing_export, own_interface, sends_http,
};
use crate::compiled::{self, TrustedCode};
use crate::interfaces::http;
use crate::logs::{clean, without_places};
use crate::pool::GuestState;

/// Bytes of an error's text.
const ERROR_BYTES_MAX: usize = 1_000;

/// A module that any number of processors share.
pub(crate) struct Module {
    pub(crate) linked: InstancePre<GuestState>,
    component: Component,
    /// Names of its exports.
    exports: Vec<String>,
    /// Names of its imports.
    imports: Vec<String>,
    imports_state: bool,
    sends_http: bool,
}

impl Module {
    pub(crate) fn link(
        linker: &Linker<GuestState>,
        code: &TrustedCode,
    ) -> Result<Arc<Self>, AdmitError> {
        let component = compiled::load(linker.engine(), code).map_err(|error| invalid(&error))?;
        let imports: Vec<String> = component
            .component_type()
            .imports(component.engine())
            .map(|(name, _)| name.to_owned())
            .collect();
        let with_http = match imports.iter().any(|import| is_http(import)) {
            true => {
                let mut linker = linker.clone();
                http::link(&mut linker).map_err(|error| invalid(&error))?;
                Some(linker)
            }
            false => None,
        };
        let linked = with_http
            .as_ref()
            .unwrap_or(linker)
            .instantiate_pre(&component)
            .map_err(|error| invalid(&error))?;
        let exports = component
            .component_type()
            .exports(component.engine())
            .map(|(name, _)| name.to_owned())
            .collect();
        let imports_state = imports
            .iter()
            .any(|import| own_interface(import) == Some("state"));
        let sends_http = imports.iter().any(|import| sends_http(import));
        Ok(Arc::new(Self {
            linked,
            component,
            exports,
            imports,
            imports_state,
            sends_http,
        }))
    }

    /// Whether it imports `state`.
    pub(crate) fn imports_state(&self) -> bool {
        self.imports_state
    }

    /// Whether it imports what sends HTTP requests.
    pub(crate) fn sends_http(&self) -> bool {
        self.sends_http
    }

    /// What it imports.
    pub(crate) fn imports(&self) -> &[String] {
        &self.imports
    }

    /// The position of an interface's function.
    pub(crate) fn function(
        &self,
        interface: Interface,
        function: &str,
    ) -> Result<ComponentExportIndex, AdmitError> {
        let index = |name: &String| {
            let instance = self.component.get_export_index(None, name)?;
            self.component.get_export_index(Some(&instance), function)
        };
        // Two exports may be the same interface to the broker; their functions differ.
        self.exports
            .iter()
            .filter(|name| interface_of(name) == Some(interface))
            .find_map(index)
            .ok_or_else(|| missing_export(&[interface], &self.exports))
    }

    /// Whether it processes messages by `wasi:messaging` alone.
    pub(crate) fn handles_messages(&self) -> bool {
        let mut processors = self
            .exports
            .iter()
            .filter(|name| interface_of(name) == Some(Interface::MessageProcessor));
        processors.all(|name| handles_messages(name))
    }

    /// Its exported interfaces.
    pub(crate) fn interfaces(&self) -> Vec<Interface> {
        let mut found: Vec<_> = self
            .exports
            .iter()
            .filter_map(|name| interface_of(name))
            .collect();
        found.sort_unstable();
        found.dedup();
        found
    }
}

fn invalid(error: &wasmtime::Error) -> AdmitError {
    // How instances are kept is an internal detail, and where the module was built is not for others.
    let text = without_places(&format!("{error:#}"));
    let text = text
        .replace(" in the pooling allocator", "")
        .replace("the pooling allocator's", "this host's")
        .replace("pooling allocator", "host");
    AdmitError::Invalid(clean(&text, ERROR_BYTES_MAX))
}
