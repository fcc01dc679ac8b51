//! Texts within bounds.

/// The text, cut to this many bytes at a character boundary.
pub(crate) fn cut(mut text: String, bytes_max: usize) -> String {
    text.truncate(text.floor_char_boundary(bytes_max));
    text
}
