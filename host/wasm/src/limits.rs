//! The limits of one instance, as wasmtime checks them while it grows, and the gauges that show its size.

use std::sync::Arc;

use metrics::Gauge;
use wasmtime::ResourceLimiter;

use crate::engine::{
    CORE_INSTANCES_PER_INSTANCE_MAX, MEMORIES_PER_INSTANCE_MAX, TABLES_PER_INSTANCE_MAX, size,
};
use crate::logs::Owner;
use crate::notes::Notes;

/// Counts one instance's memory against its bound and remembers a refusal, so that the trap which follows can be explained.
pub(crate) struct InstanceLimits {
    memory_bytes_max: usize,
    memory_setting: &'static str,
    memory_bytes: usize,
    table_elements_max: usize,
    refused: Option<Refused>,
    gauges: InstanceGauges,
    notes: Arc<Notes>,
}

/// A refused request of an instance.
#[derive(Clone, Copy)]
enum Refused {
    Memory(usize),
    Table(usize),
}

/// The limits of one instance, and their settings.
#[derive(Clone, Copy)]
pub(crate) struct Allowed {
    pub(crate) memory_bytes_max: u64,
    /// The setting of the memory limit.
    pub(crate) memory_setting: &'static str,
    pub(crate) table_elements_max: u64,
}

/// The gauges of one processor, shared by all its instances.
#[derive(Clone)]
pub(crate) struct InstanceGauges {
    pub(crate) instances: Gauge,
    pub(crate) memory_bytes: Gauge,
}

impl InstanceGauges {
    pub(crate) fn of(owner: &Owner) -> Self {
        let (label, name) = (owner.label(), owner.name().to_owned());
        Self {
            instances: metrics::gauge!("millrace_instances", label => name.clone()),
            memory_bytes: metrics::gauge!("millrace_guest_memory_bytes", label => name),
        }
    }
}

impl InstanceLimits {
    pub(crate) fn new(allowed: Allowed, gauges: InstanceGauges, notes: Arc<Notes>) -> Self {
        gauges.instances.increment(1);
        Self {
            memory_bytes_max: size(allowed.memory_bytes_max),
            memory_setting: allowed.memory_setting,
            memory_bytes: 0,
            table_elements_max: size(allowed.table_elements_max),
            refused: None,
            gauges,
            notes,
        }
    }

    /// Forgets a refusal that the guest handled.
    pub(crate) fn begin_call(&mut self) {
        self.refused = None;
    }

    /// The refusal of this call as a sentence.
    pub(crate) fn refusal(&self) -> Option<String> {
        Some(match self.refused? {
            Refused::Memory(asked) => {
                let (setting, max) = (self.memory_setting, self.memory_bytes_max);
                format!(
                    "asked for {asked} bytes of memory; the maximum is {max} ({setting} = {max})"
                )
            }
            Refused::Table(asked) => {
                let max = self.table_elements_max;
                format!(
                    "asked for a table of {asked} elements; the maximum is {max} (the host's setting guest_table_elements_max = {max})"
                )
            }
        })
    }

    /// Whether the instance is so near its bound that a fresh one is better.
    pub(crate) fn is_nearly_full(&self) -> bool {
        self.memory_bytes > self.memory_bytes_max / 4 * 3
    }

    fn refuse(&mut self, bytes: usize) {
        self.refused = Some(Refused::Memory(bytes));
    }
}

impl ResourceLimiter for InstanceLimits {
    fn memory_growing(
        &mut self,
        current: usize,
        desired: usize,
        _maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        let total = self
            .memory_bytes
            .saturating_sub(current)
            .saturating_add(desired);
        if total > self.memory_bytes_max {
            self.refuse(total);
            return Ok(false);
        }
        self.gauges
            .memory_bytes
            .increment(total as f64 - self.memory_bytes as f64);
        self.memory_bytes = total;
        self.notes.memory(total);
        Ok(true)
    }

    fn memory_grow_failed(&mut self, _error: wasmtime::Error) -> wasmtime::Result<()> {
        self.refuse(self.memory_bytes);
        Ok(())
    }

    fn table_growing(
        &mut self,
        _current: usize,
        desired: usize,
        _maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        let is_allowed = desired <= self.table_elements_max;
        if !is_allowed {
            self.refused = Some(Refused::Table(desired));
        }
        Ok(is_allowed)
    }

    fn instances(&self) -> usize {
        CORE_INSTANCES_PER_INSTANCE_MAX as usize * 2
    }

    fn tables(&self) -> usize {
        TABLES_PER_INSTANCE_MAX as usize
    }

    fn memories(&self) -> usize {
        MEMORIES_PER_INSTANCE_MAX as usize
    }
}

impl Drop for InstanceLimits {
    fn drop(&mut self) {
        self.gauges.instances.decrement(1);
        self.gauges.memory_bytes.decrement(self.memory_bytes as f64);
    }
}
