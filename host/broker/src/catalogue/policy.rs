//! The host's rules for modules.

use crate::catalogue::signatures::SignaturePolicy;
use crate::catalogue::tags::VersionOrder;

/// What a host demands of modules, besides what admission does.
#[derive(Clone, Debug, Default)]
pub struct ModulePolicy {
    /// How the versions of a name may follow each other.
    pub versions: VersionOrder,
    /// Whose signatures count, and whether each module needs one.
    pub signatures: SignaturePolicy,
}
