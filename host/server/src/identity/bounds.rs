//! Bounds of identity providers and of what they sign.

/// Providers in the settings; more are refused at the start.
pub(crate) const PROVIDERS_MAX: usize = 16;
/// Audiences, algorithms, or patterns of keys of one provider; more are refused at the start.
pub(crate) const PROVIDER_LIST_MAX: usize = 16;
/// Seconds that the clocks of a provider and this host may differ; a larger leeway is refused at the start.
pub(crate) const LEEWAY_S_MAX: u64 = 300;
/// Bytes of a JWT. A longer one is refused before it is read.
pub(crate) const JWT_BYTES_MAX: usize = 16 << 10;
/// How deep claims may be nested. A JWT with deeper ones is refused.
pub(crate) const CLAIMS_DEPTH_MAX: usize = 8;
/// Bytes of the subject's name in records; longer ones are cut.
pub(crate) const SUBJECT_BYTES_MAX: usize = 128;
/// Bytes of a JWKS, and of the document by which it is found. A larger one is not used; the keys before it stay.
pub(crate) const JWKS_BYTES_MAX: u64 = 512 << 10;
/// Keys of a JWKS. One with more is not used; the keys before it stay.
pub(crate) const JWKS_KEYS_MAX: usize = 128;
/// How long fetching a document of a provider may take.
pub(crate) const JWKS_FETCH_MS_MAX: u64 = 5_000;
/// JWTs that are remembered, so that their signatures need not be checked again. Beyond it those that were not used lately are forgotten,
/// and are checked again.
pub(crate) const JWTS_REMEMBERED_MAX: usize = 8_192;
