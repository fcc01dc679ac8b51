//! What a host lets modules have: one definition for the door, the checks before compiling, the compiler, the engine that runs guests
//! and the check of a specification. Each limit is a setting of the host of the same name; errors name it with its value.

/// Bytes of an uploaded module, unless the host is told otherwise: what the largest of the usual toolchains makes, several times over.
pub const MODULE_BYTES_DEFAULT: u64 = 64 << 20;

/// Linear memory that a processor may ask for, unless the host is told otherwise.
pub const GUEST_MEMORY_BYTES_DEFAULT: u64 = 1 << 30;

/// Elements of one table of a guest, unless the host is told otherwise. The largest of the usual toolchains need some 8,000.
pub const GUEST_TABLE_ELEMENTS_DEFAULT: u64 = 20_000;

/// Milliseconds that a module may take to start when it is uploaded, unless the host is told otherwise. A processor's own limit of a
/// call decides when it is deployed.
pub const GUEST_START_MS_DEFAULT: u64 = 10_000;

/// Seconds of CPU time of a compile, unless the host is told otherwise; each MiB of the module adds
/// [`COMPILE_CPU_SECONDS_PER_MIB`].
pub const COMPILE_CPU_SECONDS_DEFAULT: u64 = 30;

/// Seconds of CPU time that a compile may take longer for each full MiB of the module: large ones are honest work, bombs are small.
pub const COMPILE_CPU_SECONDS_PER_MIB: u64 = 5;

/// Memory of the process that compiles, unless the host is told otherwise.
pub const COMPILE_MEMORY_BYTES_DEFAULT: u64 = 2 << 30;

/// What a host lets modules have, at the most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GuestLimits {
    /// Bytes of an uploaded module; a larger one is refused.
    pub module_bytes_max: u64,
    /// Linear memory of one instance that a processor may ask for, and that an upload is tried with.
    pub guest_memory_bytes_max: u64,
    /// Elements of one table; a module that begins with more is refused.
    pub guest_table_elements_max: u64,
    /// How long an uploaded module may take to start.
    pub guest_start_ms_max: u64,
    /// CPU time of a compile, in seconds; see [`GuestLimits::compile_cpu_seconds`].
    pub compile_cpu_seconds_max: u64,
    /// Memory of the process that compiles.
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
    /// What each may be set to: its name, from, to (inclusive).
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

    /// The first that is out of bounds: its name, value, and the bounds.
    #[must_use]
    pub fn out_of_bounds(&self) -> Option<(&'static str, u64, u64, u64)> {
        let both = self.named().into_iter().zip(Self::BOUNDS);
        both.map(|((name, value), (_, from, to))| (name, value, from, to))
            .find(|(_, value, from, to)| !(from..=to).contains(&value))
    }

    /// CPU time that the compile of a module of so many bytes may take, in seconds.
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
