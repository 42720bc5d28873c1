//! Truncates texts whose length somebody else chose: a guest, the toolstack or a library.

use std::fmt;

/// Maximum length in bytes of a text in XenStore, in the log and in `stat`. XenStore takes 4096 for
/// path and value together.
const LONGEST_TEXT: usize = 1024;

/// Maximum length in characters of a quoted text of a peer.
const LONGEST_QUOTE: usize = 200;

/// The end of a truncated text.
const CUT: &str = "…";

/// Returns at most [`LONGEST_TEXT`] bytes of `text`, truncated between characters.
pub fn excerpt(text: &str) -> String {
    cut(text, LONGEST_TEXT)
}

fn cut(text: &str, longest: usize) -> String {
    if text.len() <= longest {
        return text.to_owned();
    }
    let capacity = longest.saturating_sub(CUT.len());
    let end = (0..=capacity).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
    let kept = text.get(..end).unwrap_or_default();
    format!("{kept}{CUT}")
}

/// Escapes control characters, such as line breaks in a key, so that a text takes one line.
pub fn one_line(text: &str) -> String {
    let mut line = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter.is_control() {
            true => line.extend(letter.escape_default()),
            false => line.push(letter),
        }
    }
    line
}

/// A peer's text, safe for messages: at most [`LONGEST_QUOTE`] characters, in quotation marks, with
/// control characters escaped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Quote(String);

impl Quote {
    /// Quotes `text`.
    pub fn of(text: &str) -> Self {
        let mut kept: String = text.chars().take(LONGEST_QUOTE).collect();
        if kept.len() < text.len() {
            kept.push_str(CUT);
        }
        Self(kept)
    }
}

impl fmt::Display for Quote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_text_is_truncated_between_characters() {
        assert_eq!(excerpt("short"), "short");
        for longest in 3..20 {
            let text = cut("aäöü€uvwxyz0123456789", longest);
            assert!(text.len() <= longest && text.ends_with(CUT), "{text:?}");
        }
        assert!(excerpt(&"ä".repeat(4096)).len() <= LONGEST_TEXT);
    }

    #[test]
    fn quote_is_short_and_on_one_line() {
        assert_eq!(Quote::of("a\nb\0").to_string(), r#""a\nb\0""#);
        let long = Quote::of(&"x".repeat(10_000)).to_string();
        assert_eq!(long.chars().count(), LONGEST_QUOTE + 3);
    }
}
