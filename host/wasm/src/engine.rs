//! wasmtime's configuration: one for compiling (in the child process), one for running, with the same code settings.
//!
//! Everything that no toolchain needs is off, so that guests can reach less of wasmtime.

use std::num::NonZeroUsize;

use millrace_model::GuestLimits;
use wasmtime::{Config, Engine, OptLevel, PoolingAllocationConfig, Strategy};

/// Stack that a guest may use; recursion beyond it traps.
const GUEST_STACK_BYTES: usize = 512 << 10;

/// Stack of the fiber that a call runs on: the guest's part and what host functions need above it.
const FIBER_STACK_BYTES: usize = 1 << 20;

/// Frames that a trap's backtrace keeps.
const BACKTRACE_FRAMES_MAX: usize = 20;

/// Core instances within one component instance: the module itself, its shims and adapters.
pub(crate) const CORE_INSTANCES_PER_INSTANCE_MAX: u32 = 64;

/// Linear memories within one component instance: one for each of the components that it is composed of.
pub(crate) const MEMORIES_PER_INSTANCE_MAX: u32 = 6;

/// Tables within one component instance.
pub(crate) const TABLES_PER_INSTANCE_MAX: u32 = 32;

/// Memory of a returned slot that stays resident, so that its next instance starts without page faults.
const WARM_SLOT_BYTES: usize = 256 << 10;

/// Slots that stay resident, of memories and likewise of tables; fewer if that would exceed a fraction of the guests' memory.
const WARM_SLOTS_MAX: u64 = 64;

/// That fraction.
const WARM_PART: u64 = 16;

/// The engine of the compiler process: produces code for [`runner`], and never runs any.
pub(crate) fn compiler() -> wasmtime::Result<Engine> {
    Engine::new(&code_settings())
}

/// The engine of this process: runs up to `instances_max` component instances at once, with `memory_bytes_max` for all of them.
pub(crate) fn runner(
    instances_max: u32,
    memory_bytes_max: u64,
    limits: &GuestLimits,
) -> wasmtime::Result<Engine> {
    let mut config = code_settings();
    let warm = memory_bytes_max / WARM_PART / (2 * WARM_SLOT_BYTES as u64);
    let warm = warm.clamp(1, WARM_SLOTS_MAX) as u32;
    config.allocation_strategy(slots(instances_max, warm, limits));
    Engine::new(&config)
}

fn code_settings() -> Config {
    let mut config = Config::new();
    config
        .strategy(Strategy::Cranelift)
        .cranelift_opt_level(OptLevel::Speed)
        .epoch_interruption(true)
        .max_wasm_stack(GUEST_STACK_BYTES)
        .async_stack_size(FIBER_STACK_BYTES)
        .memory_init_cow(true)
        .wasm_backtrace_max_frames(NonZeroUsize::new(BACKTRACE_FRAMES_MAX))
        .native_unwind_info(false);
    config
        .wasm_component_model(true)
        // Only WASI 0.3 needs it, and it triples the cost of a call.
        .concurrency_support(false)
        .shared_memory(false)
        .wasm_memory64(false)
        // The adapters that pass values between composed components read one memory and write another.
        .wasm_multi_memory(true)
        .wasm_relaxed_simd(false)
        .wasm_tail_call(true);
    config
}

/// Every instance's memory, tables and stack come from slots reserved once: an instance costs microseconds, and the totals are bounded.
fn slots(instances_max: u32, warm: u32, limits: &GuestLimits) -> PoolingAllocationConfig {
    let mut slots = PoolingAllocationConfig::new();
    slots
        .total_component_instances(instances_max)
        .total_core_instances(instances_max.saturating_mul(CORE_INSTANCES_PER_INSTANCE_MAX))
        .total_memories(instances_max.saturating_mul(MEMORIES_PER_INSTANCE_MAX))
        .total_tables(instances_max.saturating_mul(TABLES_PER_INSTANCE_MAX))
        .total_stacks(instances_max)
        .max_core_instances_per_component(CORE_INSTANCES_PER_INSTANCE_MAX)
        .max_memories_per_component(MEMORIES_PER_INSTANCE_MAX)
        .max_tables_per_component(TABLES_PER_INSTANCE_MAX)
        .max_memory_size(size(limits.guest_memory_bytes_max))
        .table_elements(size(limits.guest_table_elements_max))
        .max_unused_warm_slots(warm)
        .linear_memory_keep_resident(WARM_SLOT_BYTES)
        .table_keep_resident(WARM_SLOT_BYTES);
    slots
}

/// As a size in memory, which the bounds of the settings are.
pub(crate) fn size(value: u64) -> usize {
    usize::try_from(value).unwrap_or(usize::MAX)
}
