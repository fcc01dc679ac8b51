//! What one instance may hold, as wasmtime asks while it grows, and the gauges that show it.

use std::sync::Arc;

use metrics::Gauge;
use wasmtime::ResourceLimiter;

use crate::engine::{
    CORE_INSTANCES_PER_INSTANCE_MAX, MEMORIES_PER_INSTANCE_MAX, MEMORY_BYTES_MAX,
    TABLE_ELEMENTS_MAX, TABLES_PER_INSTANCE_MAX,
};
use crate::notes::Notes;

/// Counts one instance's memory against its bound and remembers a refusal, so that the trap which follows is told apart.
pub(crate) struct InstanceLimits {
    memory_bytes_max: usize,
    memory_bytes: usize,
    refused_bytes: Option<usize>,
    gauges: InstanceGauges,
    notes: Arc<Notes>,
}

/// The gauges of one processor; all its instances add to them.
#[derive(Clone)]
pub(crate) struct InstanceGauges {
    pub(crate) instances: Gauge,
    pub(crate) memory_bytes: Gauge,
}

impl InstanceGauges {
    pub(crate) fn of(owner: &str) -> Self {
        let owner = owner.to_owned();
        Self {
            instances: metrics::gauge!("millrace_instances", "processor" => owner.clone()),
            memory_bytes: metrics::gauge!("millrace_guest_memory_bytes", "processor" => owner),
        }
    }
}

impl InstanceLimits {
    pub(crate) fn new(memory_bytes_max: u64, gauges: InstanceGauges, notes: Arc<Notes>) -> Self {
        gauges.instances.increment(1);
        Self {
            memory_bytes_max: usize::try_from(memory_bytes_max)
                .unwrap_or(usize::MAX)
                .min(MEMORY_BYTES_MAX),
            memory_bytes: 0,
            refused_bytes: None,
            gauges,
            notes,
        }
    }

    /// Forgets a refusal that the guest got over.
    pub(crate) fn begin_call(&mut self) {
        self.refused_bytes = None;
    }

    /// The refusal of this call, in words.
    pub(crate) fn refusal(&self) -> Option<String> {
        let asked = self.refused_bytes?;
        let max = self.memory_bytes_max;
        Some(format!(
            "asked for {asked} bytes of memory, it may have {max}"
        ))
    }

    /// Whether the instance is so near its bound that a fresh one is better.
    pub(crate) fn is_nearly_full(&self) -> bool {
        self.memory_bytes > self.memory_bytes_max / 4 * 3
    }

    fn refuse(&mut self, bytes: usize) {
        self.refused_bytes = Some(bytes);
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
        Ok(desired <= TABLE_ELEMENTS_MAX)
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
