//! Cutting texts to a maximum length.

/// The longest beginning of the text that has at most this many bytes and ends at a character
/// boundary.
pub(crate) fn cut(mut text: String, bytes_max: usize) -> String {
    text.truncate(text.floor_char_boundary(bytes_max));
    text
}
