//! The limits of modules on a host: one definition for the API, the checks before compiling, the compiler, the engine that runs guests,
//! and the check of a specification. Each limit is a host setting of the same name, and errors name it with its value.

/// Default maximum size of an uploaded module in bytes: several times what the largest of the common toolchains produces.
pub const MODULE_BYTES_DEFAULT: u64 = 64 << 20;

/// Default maximum of linear memory that a processor may request.
pub const GUEST_MEMORY_BYTES_DEFAULT: u64 = 1 << 30;

/// Default maximum of elements in one table of a guest. The largest of the common toolchains need about 8,000.
pub const GUEST_TABLE_ELEMENTS_DEFAULT: u64 = 20_000;

/// Default maximum of milliseconds that a module may take to start when it is uploaded. When it is deployed, the processor's own call
/// limit applies.
pub const GUEST_START_MS_DEFAULT: u64 = 10_000;

/// Default maximum of CPU seconds for a compile; each MiB of the module adds [`COMPILE_CPU_SECONDS_PER_MIB`].
pub const COMPILE_CPU_SECONDS_DEFAULT: u64 = 30;

/// Additional CPU seconds of a compile for each full MiB of the module: large modules are legitimate, bombs are small.
pub const COMPILE_CPU_SECONDS_PER_MIB: u64 = 5;

/// Default maximum memory of the compiler process.
pub const COMPILE_MEMORY_BYTES_DEFAULT: u64 = 2 << 30;

/// The limits of modules on a host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GuestLimits {
    /// Bytes of an uploaded module; a larger one is refused.
    pub module_bytes_max: u64,
    /// Linear memory of one instance that a processor may request, and that an upload is tried with.
    pub guest_memory_bytes_max: u64,
    /// Elements of one table; a module that starts with more is refused.
    pub guest_table_elements_max: u64,
    /// How long an uploaded module may take to start.
    pub guest_start_ms_max: u64,
    /// CPU time of a compile, in seconds; see [`GuestLimits::compile_cpu_seconds`].
    pub compile_cpu_seconds_max: u64,
    /// Memory of the compiler process.
    pub compile_memory_bytes_max: u64,
}

impl Default for GuestLimits {
    fn default() -> Self {
        Self {
            module_bytes_max: MODULE_BYTES_DEFAULT,
            guest_memory_bytes_max: GUEST_MEMORY_BYTES_DEFAULT,
            guest_table_elements_max: GUEST_TABLE_ELEMENTS_DEFAULT,
            guest_start_ms_max: GUEST_START_MS_DEFAULT,
            compile_cpu_seconds_max: COMPILE_CPU_SECONDS_DEFAULT,
            compile_memory_bytes_max: COMPILE_MEMORY_BYTES_DEFAULT,
        }
    }
}

impl GuestLimits {
    /// The range of each: its name, from, to (inclusive).
    pub const BOUNDS: [(&'static str, u64, u64); 6] = [
        ("module_bytes_max", 64 << 10, 192 << 20),
        ("guest_memory_bytes_max", 1 << 20, 4 << 30),
        ("guest_table_elements_max", 100, 1_000_000),
        ("guest_start_ms_max", 10, 600_000),
        ("compile_cpu_seconds_max", 1, 3_600),
        ("compile_memory_bytes_max", 32 << 20, 64 << 30),
    ];

    /// Names and values, in the order of [`GuestLimits::BOUNDS`].
    #[must_use]
    pub fn named(&self) -> [(&'static str, u64); 6] {
        let values = [
            self.module_bytes_max,
            self.guest_memory_bytes_max,
            self.guest_table_elements_max,
            self.guest_start_ms_max,
            self.compile_cpu_seconds_max,
            self.compile_memory_bytes_max,
        ];
        std::array::from_fn(|at| (Self::BOUNDS[at].0, values[at]))
    }

    /// The first one out of range: its name, its value, and the range.
    #[must_use]
    pub fn out_of_bounds(&self) -> Option<(&'static str, u64, u64, u64)> {
        let both = self.named().into_iter().zip(Self::BOUNDS);
        both.map(|((name, value), (_, from, to))| (name, value, from, to))
            .find(|(_, value, from, to)| !(from..=to).contains(&value))
    }

    /// CPU seconds that the compile of a module of this size may take.
    #[must_use]
    pub fn compile_cpu_seconds(&self, module_bytes: usize) -> u64 {
        let mib = (module_bytes >> 20) as u64;
        self.compile_cpu_seconds_max
            .saturating_add(mib.saturating_mul(COMPILE_CPU_SECONDS_PER_MIB))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_within_the_bounds_that_settings_have() {
        assert_eq!(GuestLimits::default().out_of_bounds(), None);
        let small = GuestLimits {
            guest_start_ms_max: 0,
            ..GuestLimits::default()
        };
        let found = small.out_of_bounds();
        assert_eq!(found, Some(("guest_start_ms_max", 0, 10, 600_000)));
    }

    #[test]
    fn a_large_module_may_be_compiled_for_longer() {
        let limits = GuestLimits::default();
        assert_eq!(limits.compile_cpu_seconds(15 << 10), 30);
        assert_eq!(limits.compile_cpu_seconds(18 << 20), 120);
    }
}
